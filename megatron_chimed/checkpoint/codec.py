"""Python state as JSON, over a closed set of types: any other type is refused, not guessed.

Plain: None, bool, int, finite float, str, list, dict with text keys. Tagged, as an object with
one key that starts with `$`: tuple, other dicts (pairs), inf and nan, torch.dtype, numpy scalars.
Tensors and arrays are not part of the JSON: `store` keeps each and returns a reference to it.
Values come back equal and of equal type (betas stay a tuple, floats keep every bit).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from megatron_chimed.checkpoint.safetensors_io import DTYPE_NAMES, DTYPES
from megatron_chimed.errors import CheckpointError


def encode(value: Any, store: Callable[[torch.Tensor], str], path: str = "state") -> Any:
    """A value that `json.dumps` accepts and `decode` turns back into `value`.

    Args:
        value: Of the types above, nested to any depth.
        store: Keeps a tensor and returns the reference under which `decode` will ask for it.
        path: Where `value` is, for error messages.

    Raises:
        CheckpointError: A type that is not in the set; the message names it and its place.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind in (list, tuple):
        items = [encode(item, store, f"{path}[{at}]") for at, item in enumerate(value)]
        return items if kind is list else {"$tuple": items}
    if kind is dict:
        return _encode_dict(value, store, path)
    if kind is torch.dtype and value in DTYPE_NAMES:
        return {"$dtype": DTYPE_NAMES[value]}
    if isinstance(value, torch.Tensor) and value.dtype in DTYPE_NAMES:
        return {"$tensor": store(value.detach())}
    if isinstance(value, np.ndarray) and kind is np.ndarray and value.dtype.kind in "biuf":
        return {"$array": store(torch.from_numpy(np.array(value, order="C")))}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"$numpy": [value.dtype.name, encode(value.item(), store, path)]}
    raise CheckpointError(
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold. "
        "Give numbers, text, lists, tuples, dicts, dtypes, tensors or arrays."
    )


def decode(value: Any, fetch: Callable[[str], torch.Tensor]) -> Any:
    """The inverse of `encode`; `fetch` gives the tensor of a reference."""
    if isinstance(value, list):
        return [decode(item, fetch) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if len(value) != 1 or not tag.startswith("$"):
        return {key: decode(item, fetch) for key, item in value.items()}
    return _decode_tagged(tag, value[tag], fetch)


def _decode_tagged(tag: str, content: Any, fetch: Callable[[str], torch.Tensor]) -> Any:
    decoders: dict[str, Callable[[], Any]] = {
        "$tuple": lambda: tuple(decode(item, fetch) for item in content),
        "$dict": lambda: {decode(key, fetch): decode(item, fetch) for key, item in content},
        "$float": lambda: float(content),
        "$dtype": lambda: DTYPES[content],
        "$tensor": lambda: fetch(content),
        "$array": lambda: fetch(content).numpy(),
        "$numpy": lambda: np.dtype(content[0]).type(decode(content[1], fetch)),
    }
    if tag not in decoders:
        raise CheckpointError(f"state.json holds the unknown tag {tag!r}.")
    return decoders[tag]()


def _encode_dict(value: dict, store: Callable[[torch.Tensor], str], path: str) -> dict:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(item, store, f"{path}.{key}") for key, item in value.items()}
    return {
        "$dict": [
            [encode(key, store, path), encode(item, store, f"{path}[{key!r}]")]
            for key, item in value.items()
        ]
    }
