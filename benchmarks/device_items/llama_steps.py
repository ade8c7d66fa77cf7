"""Training steps of a LLaMA-style 8B geometry."""

from device_items.context import Context
from device_items.steps import run_llama


def run(context: Context) -> None:
    """Grouped-query attention and a large vocabulary."""
    run_llama(context)
