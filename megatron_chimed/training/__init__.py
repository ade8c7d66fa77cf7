"""One loop for every stage. Read `loop` first; `job` is what it works on, `state` what it saves."""
