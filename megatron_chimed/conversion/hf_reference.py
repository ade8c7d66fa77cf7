"""What transformers' model computes in float64, and its rounding error in fp32."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

EPSILON = 2.0**-23
"""Of fp32: the rounding of one number, relative to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Tokens, and the right outputs for them."""

    kind: Literal["logits", "scores"]
    tokens: torch.Tensor
    """[b, s] int64."""
    ends: torch.Tensor
    """[b]: index of the last token of each row that is not padding, whose score counts."""
    exact: torch.Tensor
    """[b, s, v] logits or [b, 1] scores, float64."""
    rounding: float
    """Largest error of transformers' own in fp32, at any position; at least that of one number."""


def reference_logits(hf_dir: str | os.PathLike) -> Reference:
    """Runs the model of a Hugging Face folder on random tokens, in fp32 and in float64."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(os.fspath(hf_dir))
    is_scorer = _is_scorer(config)
    kind = AutoModelForSequenceClassification if is_scorer else AutoModelForCausalLM
    model = kind.from_pretrained(os.fspath(hf_dir), dtype=torch.float32).eval()
    tokens, ends = _probe(model.config)
    # A single score may be right by chance: rounding is measured at all positions.
    outputs: list[torch.Tensor] = []  # [b, s, v] or [b, s, 1]
    _head(model).register_forward_hook(lambda _m, _a, out: outputs.append(out.double()))
    with torch.no_grad():
        model(tokens)
        with in_float64(model):
            exact = model(tokens).logits
    rounding = (outputs[0] - outputs[1]).abs().max().item()
    return Reference(
        kind="scores" if is_scorer else "logits",
        tokens=tokens,
        ends=ends,
        exact=exact,
        rounding=max(rounding, EPSILON * exact.abs().max().item()),
    )


@contextlib.contextmanager
def in_float64(model: PreTrainedModel) -> Iterator[None]:
    """Makes the model compute in float64 throughout, with its own weights and layers.

    `model.double()` is not enough: norms and angles are fp32 whatever the dtype of the weights.
    Memory: one layer at a time is in float64; converting back restores its fp32 weights exactly.

    Args:
        model: Of one of the `families`, in fp32: their classes differ in the first word alone.
    """
    hooks = [model.get_input_embeddings().register_forward_hook(lambda _m, _a, out: out.double())]
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            hooks.append(module.register_forward_hook(_norm))
        elif name.endswith("RotaryEmbedding"):
            hooks.append(module.register_forward_hook(_angles, with_kwargs=True))
        elif name.endswith("DecoderLayer") or module is _head(model):
            hooks.append(module.register_forward_pre_hook(lambda m, _args: m.double() and None))
            hooks.append(module.register_forward_hook(lambda m, _args, _out: m.float() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _probe(config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows [b, s], and the last token [b] of each that is not padding.

    A few hundred positions: a wrong RoPE base is invisible at the first ones. Padding, where there
    is any, fills up to half a row, so that reading the score at the wrong token is noticed.
    """
    rows, length, pad = 2, min(config.max_position_embeddings, 256), config.pad_token_id
    if pad is None and _is_scorer(config):
        rows = 1  # without padding, transformers accepts only one
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (rows, length), generator=generator)
    ends = torch.full((rows,), length - 1)
    if pad is not None and _is_scorer(config):
        ends[1:] = length // 2
        tokens[torch.arange(rows), ends] = (pad + 1) % config.vocab_size
        for row, end in enumerate(ends.tolist()):
            tokens[row, end + 1 :] = pad
    return tokens, ends


def _is_scorer(config: Any) -> bool:
    return all(name.endswith("ForSequenceClassification") for name in config.architectures or [""])


def _head(model: PreTrainedModel) -> torch.nn.Module:
    return model.get_output_embeddings() or cast(torch.nn.Module, model.score)


def _norm(module: Any, args: tuple[torch.Tensor], _out: Any) -> torch.Tensor:
    (x,) = args  # [b, s, h], or heads [b, s, n, d]
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)
    return x * scale * module.weight.double()


def _angles(
    module: Any, args: tuple, kwargs: dict[str, torch.Tensor], _out: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    positions = kwargs["position_ids"] if "position_ids" in kwargs else args[1]  # [b, s]
    angles = positions[..., None].double() * module.inv_freq.double()  # [b, s, d/2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * module.attention_scaling, angles.sin() * module.attention_scaling
