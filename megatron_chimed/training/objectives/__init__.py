"""One objective for each stage of training: `forward` and `loss`; the loop knows no more of it."""
