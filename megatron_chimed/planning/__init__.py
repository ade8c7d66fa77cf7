"""The memory that a layout takes, measured on fake tensors (`fake_world`, `memory`)."""
