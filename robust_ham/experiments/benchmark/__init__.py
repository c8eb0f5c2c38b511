"""Our attacks beside those of other libraries: time, passes, memory."""
