"""The rotary frequencies that a `config.json` asks for, in either generation of keys, or both.

Real files say it twice, and a model read by the wrong one answers almost as well as by the right
one. So both have to agree.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

DEFAULT_THETA = 10000.0
_OBJECTS = ("rope_parameters", "rope_scaling")
_NUMBERS = ("rope_theta", "factor", "partial_rotary_factor")


@dataclass(frozen=True)
class Rope:
    """What the rotary embedding is computed from."""

    theta: float = DEFAULT_THETA
    """Base of the frequencies."""
    factor: float = 1.0
    """Linear scaling, which divides them."""


def read_rope(raw: Mapping[str, Any]) -> tuple[Rope, list[str]]:
    """The rotary embedding of a parsed `config.json`, and all problems with it."""
    problems: list[str] = []
    found = {}
    for what, said in _claims(raw, problems).items():
        found[what] = next(iter(said.values()))
        listed = " and ".join(f"{key} is {value!r}" for key, value in said.items())
        if any(value != found[what] for value in said.values()):
            problems.append(f"RoPE contradicts itself: {listed}. Remove the wrong one")
        elif what in _NUMBERS and not is_positive(found[what]):
            problems.append(f"{listed}, not a positive number")
    problems += [] if problems else _check_method(found)
    if problems:
        return Rope(), problems
    return Rope(float(found.get("rope_theta", DEFAULT_THETA)), float(found.get("factor", 1.0))), []


def _claims(raw: Mapping[str, Any], problems: list[str]) -> dict[str, dict[str, Any]]:
    """For each setting, the keys that give it and their values."""
    claims: dict[str, dict[str, Any]] = {}
    for name in _OBJECTS:
        section = raw.get(name) or {}
        if not isinstance(section, dict):
            problems.append(f"{name} is {section!r}, not an object")
            continue
        if section and "type" not in section and "rope_type" not in section:
            claims.setdefault("rope_type", {})[f"{name} without a type"] = "default"
        for key, value in section.items():
            what = "rope_type" if key == "type" else key
            if what in (*_NUMBERS, "rope_type") and value is not None:
                claims.setdefault(what, {})[f"{name}.{key}"] = value
    for key in ("rope_theta", "partial_rotary_factor"):
        if raw.get(key) is not None:
            claims.setdefault(key, {})[key] = raw[key]
    return claims


def _check_method(found: Mapping[str, Any]) -> list[str]:
    kind, factor = found.get("rope_type", "default"), found.get("factor")
    problems = []
    if kind not in ("default", "linear"):
        problems.append(f"RoPE is scaled by the method {kind!r}; only linear scaling is supported")
    elif kind == "linear" and factor is None:
        problems.append("RoPE is scaled linearly, but there is no factor")
    elif kind == "default" and factor not in (None, 1.0):
        problems.append(f"RoPE has a factor {factor!r}, but its type says that it is not scaled")
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append("RoPE rotates only part of each head (partial_rotary_factor)")
    return problems


def check_frequencies(
    name: str, stored: torch.Tensor, *, head_dim: int, theta: float, factor: float
) -> list[str]:
    """Problems with frequencies stored among the weights: the model computes its own.

    Args:
        name: Name of the tensor.
        stored: The stored tensor, `[d/2]` if it is right; in any float type, rounded to it.
        head_dim: Width d of a head.
        theta: As in `Rope`.
        factor: As in `Rope`; older versions stored frequencies that are not divided by it.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    right = theta**-exponents  # [d/2]
    if stored.shape != right.shape or not stored.is_floating_point():
        return [f"{name} is {tuple(stored.shape)} of {stored.dtype}, not {tuple(right.shape)} real"]
    kind = torch.finfo(stored.dtype)
    rtol, atol = 8 * kind.eps, kind.smallest_normal * kind.eps
    if any(
        torch.allclose(stored.double(), right / by, rtol=rtol, atol=atol) for by in (factor, 1.0)
    ):
        return []
    at = int((stored.double() - right / factor).abs().nan_to_num(math.inf).argmax())
    return [
        f"{name} contradicts config.json: its entry {at} is {stored[at].item():.6g}, but rope_theta"
        f" {theta:g} with factor {factor:g} gives {right[at].item() / factor:.6g}"
    ]


def is_positive(value: Any) -> bool:
    """Whether it is a finite positive number that fits a float."""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max
