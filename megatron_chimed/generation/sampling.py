"""From logits to the next token: the usual transformations, then a reproducible draw.

Every function takes fp32 logits [b, v] of the true vocabulary, without padding. The order is that
of transformers: repetition penalty, temperature, top-k, top-p.

The token drawn for a row depends only on its seed, the step and its logits, not on the rest of the
batch or on the parallel layout. Logits of other layouts and devices differ in the last bits, so a
draw within about 1e-6 of a boundary between two tokens can differ there.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from megatron_chimed.config.sampling import SamplingConfig

# A draw must stay below the sum of all probabilities after rounding: 52 bits do, 53 do not.
DRAW_BITS = 52


def prompt_seed(seed: int, *numbers: int) -> int:
    """The seed of one draw among many, for example of (prompt, candidate).

    Args:
        seed: The job's seed.
        numbers: Identify the draw.
    """
    digest = hashlib.sha256(",".join(map(str, (seed, *numbers))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def penalize_repetition(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divides positive logits of seen tokens by the penalty, and multiplies negative ones by it.

    Args:
        logits: [b, v].
        seen: True for tokens in a row's prompt or completion, [b, v].
        penalty: 1 changes nothing.

    Source: Keskar et al., CTRL (arXiv 1909.05858), section 4.1; the sign is transformers' addition.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Sets every token less likely than the k-th to -inf; ties with the k-th are kept.

    Source: Fan et al., Hierarchical Neural Story Generation (arXiv 1805.04833), section 5.
    """
    threshold = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Sets all but the fewest most likely tokens that reach probability p to -inf.

    Ties are kept, so that the result does not depend on how a sort orders equal values.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration (arXiv 1904.09751), eq. 3.
    """
    probabilities = logits.softmax(dim=-1)
    ordered = _descending(probabilities)
    likelier = ordered.cumsum(dim=-1) - ordered  # total of all tokens before this one
    num_kept = (likelier < p).sum(dim=-1, keepdim=True).clamp(min=1)
    return logits.masked_fill(probabilities < ordered.gather(-1, num_kept - 1), float("-inf"))


def _descending(values: torch.Tensor) -> torch.Tensor:
    """The values [b, v] in descending order."""
    if values.is_cuda:
        return values.sort(dim=-1, descending=True).values
    # numpy's vectorised sort takes a tenth of the time of torch's, which also tracks indices.
    return -torch.from_numpy(np.sort(values.neg().numpy(), axis=-1))


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token [b] at which the cumulative probability exceeds `uniform` [b], fp64 in [0, 1)."""
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def uniform_draws(seeds: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """One fp64 number in [0, 1) for each seed (uint64) and step: stateless, in any order.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (OOPSLA 2014):
    output `step` of the SplitMix64 generator with this seed.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        x = seeds + (np.asarray(steps, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(64 - DRAW_BITS)) / np.float64(1 << DRAW_BITS)


class Sampler:
    """Draws the next tokens of the running rows, each identified by its slot.

    Args:
        config: How to draw.
        num_slots: Number of rows that can run together.
        vocab_size: True vocabulary size v.
        device: Device of the logits.
    """

    def __init__(
        self, config: SamplingConfig, num_slots: int, *, vocab_size: int, device: torch.device
    ) -> None:
        self._config = config
        self._seeds = np.zeros(num_slots, np.uint64)
        self._seen: torch.Tensor | None = None
        if config.repetition_penalty != 1.0:
            self._seen = torch.zeros(num_slots, vocab_size, dtype=torch.bool, device=device)

    def start(self, slot: int, prompt: Sequence[int], seed: int) -> None:
        """Assigns a slot to a new row."""
        self._seeds[slot] = seed
        if self._seen is not None:
            self._seen[slot] = False
            self._seen[slot, torch.tensor(prompt, device=self._seen.device)] = True

    def pick(
        self, logits: torch.Tensor, slots: Sequence[int], num_drawn: Sequence[int]
    ) -> torch.Tensor:
        """The next tokens [b], int64.

        Args:
            logits: [b, v] in fp32.
            slots: Slot of each row.
            num_drawn: Number of tokens that each row has drawn so far.
        """
        config = self._config
        if self._seen is not None:
            seen = self._seen[slots]
            logits = penalize_repetition(logits, seen, config.repetition_penalty)
        if config.temperature == 0:
            tokens = logits.argmax(dim=-1)
        else:
            uniform = torch.from_numpy(uniform_draws(self._seeds[slots], num_drawn))
            tokens = self._draw(logits, uniform.to(logits.device))
        if self._seen is not None:
            self._seen[slots, tokens] = True
        return tokens

    def _draw(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        logits = logits / self._config.temperature
        if self._config.top_k > 0:
            logits = keep_top_k(logits, self._config.top_k)
        if self._config.top_p < 1:
            logits = keep_top_p(logits, self._config.top_p)
        return draw(logits, uniform)
