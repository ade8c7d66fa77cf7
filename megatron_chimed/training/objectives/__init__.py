"""One objective per training stage, with `forward` and `loss`; see `base`."""
