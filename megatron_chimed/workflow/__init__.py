"""Declared steps, run in order; only stale ones run again. Read `declaration`, then `runner`."""
