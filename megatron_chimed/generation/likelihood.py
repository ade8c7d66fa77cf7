"""Log-probabilities of existing answers under a model."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from megatron_chimed.errors import DataError, NumericError
from megatron_chimed.generation.packed import Pack, measure_packed
from megatron_chimed.generation.session import Session, vocab_size_of
from megatron_chimed.kernels import IGNORED
from megatron_chimed.model import TokenLoss


def answer_log_probs(
    session: Session,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 8192,
) -> list[float]:
    """Log-probabilities of answers to their prompts; every rank calls it with the same arguments.

    The probability is the model's own: temperature 1, no token cut off.

    Args:
        session: Of a language model.
        prompts: Token ids, as given to the model for drawing an answer.
        answers: Token ids, with the stop token if there was one.
        batch_tokens: Tokens in a forward pass, unless a sequence is longer; changes speed and
            memory only. Logits have up to batch_tokens * vocabulary / tensor-parallel size
            elements, fewer if the model's `loss_chunk_tokens` is set.

    Returns:
        Natural logarithms in order, on every rank, summed over the answer's tokens in fp64.

    Raises:
        DataError: A prompt or an answer is empty, together they exceed the model's positions, or
            they hold ids outside its vocabulary.
        NumericError: A value is not finite.
    """
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        _check(session, index, prompt, answer)
    chunk = session.chunks[-1]
    token_loss = TokenLoss(session.config, group=session.ranks.tensor_group, kernels=chunk.kernels)

    def sums(output: torch.Tensor, pack: Pack) -> torch.Tensor:
        assert pack.labels is not None, "labels were given to measure_packed"
        losses = output if token_loss.is_chunked else token_loss(output, pack.labels)  # [1, s]
        values = torch.zeros(len(pack.ends), dtype=torch.float64, device=losses.device)
        return values.index_add(0, pack.segment_ids[0], -losses[0].double())

    found = measure_packed(
        session,
        [np.array([*p, *a]) for p, a in zip(prompts, answers, strict=True)],
        sums,
        batch_tokens=batch_tokens,
        labels=[_labels(len(p), a) for p, a in zip(prompts, answers, strict=True)],
    )
    if not all(map(math.isfinite, found)):
        raise NumericError(
            "the log-probability of an answer is not finite: the weights are damaged or overflow "
            "in this precision. Try precision fp32, or an older checkpoint."
        )
    return found


def _labels(prompt_length: int, answer: Sequence[int]) -> np.ndarray:
    """Label of each token: the next token of the answer, from the prompt's last token on."""
    labels = np.full(prompt_length + len(answer), IGNORED)
    labels[prompt_length - 1 : -1] = answer
    return labels


def _check(session: Session, index: int, prompt: Sequence[int], answer: Sequence[int]) -> None:
    positions = session.config.max_position_embeddings
    vocab_size = vocab_size_of(session.config)
    if not len(prompt) or not len(answer):
        raise DataError(
            f"pair {index} has a prompt of {len(prompt)} and an answer of {len(answer)} tokens: "
            "both need at least one. Remove the pair."
        )
    if len(prompt) + len(answer) > positions:
        raise DataError(
            f"pair {index} has a prompt of {len(prompt)} and an answer of {len(answer)} tokens, "
            f"more than the model's {positions} positions. Shorten or remove it."
        )
    low, high = min(*prompt, *answer), max(*prompt, *answer)
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"pair {index} holds ids from {low} to {high}, but the vocabulary has {vocab_size}. "
            "Was it encoded with another tokenizer?"
        )
