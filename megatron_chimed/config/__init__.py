"""The configuration of a run: sections beside their owners, read from YAML and dotted flags.

Read `run_config` first.
"""

from megatron_chimed.config.run_config import (
    RunConfig,
    config_of,
    make_parser,
    parse_config,
    parse_run_config,
    plain,
    setting_names,
    settings_called,
)

__all__ = [
    "RunConfig",
    "config_of",
    "make_parser",
    "parse_config",
    "parse_run_config",
    "plain",
    "setting_names",
    "settings_called",
]
