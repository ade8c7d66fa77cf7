"""The rotary frequencies that a `config.json` asks for, in either generation of keys, or both.

Real files say it twice, and a model read by the wrong one answers almost as well as by the right
one. So both have to agree.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch

from megatron_chimed.config.model import ModelConfig
from megatron_chimed.model.rope import scaled_frequencies

DEFAULT_THETA = 10000.0
_OBJECTS = ("rope_parameters", "rope_scaling")
_ORIGINAL = "original_max_position_embeddings"
_FIELDS = {
    "rope_theta": "rope_theta",
    "factor": "rope_scaling_factor",
    "low_freq_factor": "rope_low_frequency_factor",
    "high_freq_factor": "rope_high_frequency_factor",
    "beta_fast": "rope_beta_fast",
    "beta_slow": "rope_beta_slow",
}
"""Numbers of a RoPE section, and our fields."""
_USED = {
    "default": ("rope_theta",),
    "linear": ("rope_theta", "factor"),
    "llama3": ("rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("rope_theta", "factor", "beta_fast", "beta_slow"),
}
"""What each method is computed from."""
_NEEDED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": ("factor", _ORIGINAL),
}
_OTHERS = ("partial_rotary_factor", "attention_factor", "mscale", "mscale_all_dim")
_KNOWN = (*_FIELDS, *_OTHERS, _ORIGINAL, "rope_type", "truncate")


def read_rope(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Our fields for the rotary embedding of a parsed `config.json`, and all problems with it."""
    problems: list[str] = []
    found = {}
    for what, said in _claims(raw, problems).items():
        found[what] = next(iter(said.values()))
        listed = " and ".join(f"{key} is {value!r}" for key, value in said.items())
        if any(value != found[what] for value in said.values()):
            problems.append(f"RoPE contradicts itself: {listed}. Remove the wrong one")
        elif what in (*_FIELDS, *_OTHERS) and not is_positive(found[what]):
            problems.append(f"{listed}, not a positive number")
        elif what == _ORIGINAL and (type(found[what]) is not int or found[what] < 1):
            problems.append(f"{listed}, not a number of positions")
    kind = found.get("rope_type", "default")
    if kind == "yarn":  # as transformers does
        found.setdefault(_ORIGINAL, raw.get("max_position_embeddings"))
    problems += [] if problems else _check_method(kind, found)
    if problems:
        return {}, problems
    fields: dict[str, Any] = {"rope_theta": DEFAULT_THETA}
    fields |= {_FIELDS[what]: float(found[what]) for what in _USED[kind] if what in found}
    if kind in ("llama3", "yarn"):
        fields |= {"rope_scaling": kind, "rope_original_max_positions": found[_ORIGINAL]}
    return fields, []


def written_rope(model: ModelConfig) -> dict[str, Any]:
    """The keys of a `config.json`, for versions 4 and 5 of transformers."""
    method, scaling = model.rope_scaling, None
    if method != "linear":
        numbers = (what for what in _USED[method] if what != "rope_theta")
        scaling = {
            "rope_type": method,
            **{what: getattr(model, _FIELDS[what]) for what in numbers},
            _ORIGINAL: model.rope_original_max_positions,
        }
    elif model.rope_scaling_factor != 1.0:
        # Exactly these two keys: the first versions with scaling refuse any other.
        scaling = {"type": "linear", "factor": model.rope_scaling_factor}
    return {"rope_theta": model.rope_theta, "rope_scaling": scaling}


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
            if what in _KNOWN and value is not None:
                claims.setdefault(what, {})[f"{name}.{key}"] = value
    for key in ("rope_theta", "partial_rotary_factor"):
        if raw.get(key) is not None:
            claims.setdefault(key, {})[key] = raw[key]
    return claims


def _check_method(kind: Any, found: Mapping[str, Any]) -> list[str]:
    factor = found.get("factor")
    problems = []
    if not isinstance(kind, str) or kind not in _USED:
        problems.append(
            f"RoPE is scaled by the method {kind!r}; only {', '.join(_NEEDED)} are supported"
        )
    elif kind == "default" and factor not in (None, 1.0):
        problems.append(f"RoPE has a factor {factor!r}, but its type says that it is not scaled")
    else:
        problems += [
            f"RoPE is scaled by the method {kind!r}, but there is no {what}"
            for what in _NEEDED.get(kind, ())
            if found.get(what) is None
        ]
    if found.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append("RoPE rotates only part of each head (partial_rotary_factor)")
    return problems or (_check_yarn(found) if kind == "yarn" else [])


def _check_yarn(found: Mapping[str, Any]) -> list[str]:
    usual = 0.1 * math.log(max(found["factor"], 1.0)) + 1.0
    problems = []
    if not math.isclose(found.get("attention_factor", usual), usual, rel_tol=1e-6):
        problems.append(
            f"attention_factor is {found['attention_factor']!r}; only YaRN's own, "
            f"0.1 ln(factor) + 1 = {usual:.6g}, is supported"
        )
    if found.get("truncate") is False:
        problems.append("truncate is false: YaRN's range is supported in whole pairs only")
    problems += [
        f"RoPE has {key}, which is not supported"
        for key in ("mscale", "mscale_all_dim")
        if key in found
    ]
    return problems


def check_frequencies(name: str, stored: torch.Tensor, model: ModelConfig) -> list[str]:
    """Problems with frequencies stored among the weights: the model computes its own.

    Args:
        name: Name of the tensor.
        stored: The stored tensor, `[d/2]` if it is right; in any float type, rounded to it.
        model: The model; older versions stored frequencies without its linear scaling.
    """
    exponents = torch.arange(0, model.head_dim, 2, dtype=torch.float64) / model.head_dim
    plain = model.rope_theta**-exponents  # [d/2]
    factor = model.rope_scaling_factor
    is_linear = model.rope_scaling == "linear"
    right = plain / factor if is_linear else scaled_frequencies(model).double()
    if stored.shape != right.shape or not stored.is_floating_point():
        return [f"{name} is {tuple(stored.shape)} of {stored.dtype}, not {tuple(right.shape)} real"]
    kind = torch.finfo(stored.dtype)
    # Those of other methods are rounded to fp32 here, too.
    rtol = 8 * kind.eps if is_linear else max(8 * kind.eps, 1e-5)
    atol = kind.smallest_normal * kind.eps
    expected = (right, plain) if is_linear else (right,)
    if any(torch.allclose(stored.double(), one, rtol=rtol, atol=atol) for one in expected):
        return []
    at = int((stored.double() - right).abs().nan_to_num(math.inf).argmax())
    return [
        f"{name} contradicts config.json: its entry {at} is {stored[at].item():.6g}, but rope_theta"
        f" {model.rope_theta:g} with factor {factor:g} gives {right[at].item():.6g}"
    ]


def is_positive(value: Any) -> bool:
    """Whether it is a finite positive number that fits a float."""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max
