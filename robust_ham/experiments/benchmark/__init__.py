"""Benchmark our attacks against those of other libraries: time, passes, memory."""
