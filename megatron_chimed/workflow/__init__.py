"""Declared steps, run in order: what is stale is run again. Read `declaration`, then `runner`."""
