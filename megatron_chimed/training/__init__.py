"""One loop for every training stage. Read `loop` first, then `job` and `state`."""
