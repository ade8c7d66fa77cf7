"""What torch compiles: megatron-core's fused ops, and torch.compile of the plain formulas."""

from device_items.context import Context
from device_items.kernel_times import run_compiled


def run(context: Context) -> None:
    """Compiling takes seconds for each op, so this comes late."""
    run_compiled(context)
