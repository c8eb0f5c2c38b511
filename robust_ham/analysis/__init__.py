"""Tables in, tables out; no torch."""
