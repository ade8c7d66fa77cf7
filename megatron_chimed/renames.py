"""Old spellings of flags: each is refused with the name that replaced it."""

from collections.abc import Mapping
from types import MappingProxyType

FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "--output_dir": "--output-dir",
        "--print_config": "--print-config",
        "--reward_model": "--reward-model",
        "--start_from": "--start-from",
        "--train_on": "--train-on",
        "--tensor-parallel-size": "--parallel.tensor_parallel_size",
        "--layout": "--style",
        "--pipeline-parallel-size": "--parallel.pipeline_parallel_size",
    }
)
"""A flag without a dot is spelled in kebab-case; one with a dot is a configuration key as YAML
spells it, and means the same in every tool."""
