"""What a layout costs, found by building it in a fake world (`fake_world`, `memory`)."""
