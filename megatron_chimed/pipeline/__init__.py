"""Running stages: one by its configuration (`stage`)."""
