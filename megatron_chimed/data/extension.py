"""Loads the C++ extension on first use, so that tools that do not need it start fast."""

import functools
from types import ModuleType

from megatron_chimed.errors import ConfigError


@functools.cache
def extension() -> ModuleType:
    """The module built from csrc/data, with the types of `_data_helpers.pyi`.

    Raises:
        ConfigError: The extension is not built.
    """
    try:
        from megatron_chimed import _data_helpers
    except ImportError as error:
        raise ConfigError(
            f"the C++ extension megatron_chimed._data_helpers is not built ({error}). "
            "Run `make install` in the project's root."
        ) from None
    return _data_helpers
