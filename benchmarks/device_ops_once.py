"""Runs every op once, forward and backward, at small odd sizes: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck python benchmarks/device_ops_once.py --device cuda

Without a tool it shows only that nothing raises. `device_check.py` runs it.
"""

import argparse
import sys
from collections.abc import Sequence

import kernel_baselines
import torch
from kernel_accuracy import NUM_SETS, forward_backward
from kernel_cases import Sizes, all_cases

# Rows longer than a block's registers hold, widths with and without 16-byte accesses.
SIZES = Sizes(
    norm=(5, (1024, 257)),
    swiglu=(5, 136),
    rope=(5, 3, 64),
    cross_entropy=(5, (1000, 1001)),
    softmax=(2, 65),
    adamw=(3, 1001),
    l2_norm=(3, 20001),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, unless an op raises."""
    parser = argparse.ArgumentParser(prog="device_ops_once.py")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="(cuda)")
    device = parser.parse_args(argv).device
    try:
        for dtype in (torch.bfloat16, torch.float32):
            for case in all_cases(device, dtype, SIZES):
                sets = [case.make() for _ in range(NUM_SETS)]
                if case.exact is None:
                    case.variants["ours"](*sets[0])
                else:
                    forward_backward(case.variants["ours"], sets, 0)
        if device == "cuda":
            torch.cuda.synchronize()
    finally:
        kernel_baselines.close()
    print("every op ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
