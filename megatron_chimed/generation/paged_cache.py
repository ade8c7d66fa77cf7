"""The KV cache of a session: rows of tokens in pages, and the forward passes that fill and read it.

Memory grows with the tokens that are held, a page at a time. Rows that begin alike share pages
until one of them writes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from megatron_chimed.engine import relay_forward
from megatron_chimed.generation.cache_memory import CachePlan, allocate_cache
from megatron_chimed.generation.page_tables import PageCopy, PageTables
from megatron_chimed.generation.session import Session
from megatron_chimed.model import Decode, DecodeGroup, Prefill

GROWTH = 16
"""The cache grows by at least a 16th, since each time it is copied."""
GROWTH_ON_GPU = 4
"""And there by a fourth, since recorded decode steps are lost with the memory they refer to."""
LONGEST_OVER = 3 / 4
"""Rows with less than this share of a group's pages get a group of their own: a group's pages are
put together as if all its rows were as long as its longest."""


class Run(NamedTuple):
    """New tokens of a row."""

    row: int
    start: int
    """Tokens that the row holds already."""
    tokens: Sequence[int]


class PagedCache:
    """Rows of cached tokens, and the model that computes them.

    Args:
        session: The model.
        plan: Number of rows, length of a page, most pages.

    Raises:
        ConfigError: What the plan may need is larger than the memory that is left.
    """

    def __init__(self, session: Session, plan: CachePlan) -> None:
        self._session, self._plan = session, plan
        self.tables = PageTables(plan.num_rows, plan.page_tokens)
        self._cache = allocate_cache(session, plan)

    @property
    def num_pages(self) -> int:
        """Pages in memory."""
        return self._cache.num_pages

    def extend(self, runs: Sequence[tuple[int, int, int]]) -> bool:
        """Makes room for tokens [start, end) of rows, which the next pass writes.

        Args:
            runs: (row, start, end) each.

        Returns:
            Whether the cache moved to other memory.
        """
        copies: list[PageCopy] = []
        for row, start, end in runs:
            copies += self.tables.extend(row, start, end)
        needed, present = self.tables.num_pages, self._cache.num_pages
        if needed > present:
            growth = GROWTH if self._session.ranks.device.type == "cpu" else GROWTH_ON_GPU
            ample = min(present + present // growth, self._plan.num_pages)
            self._cache.grow(max(needed, ample))
        for copy in copies:
            self._cache.copy(*copy)
        return needed > present

    def prefill(
        self, runs: Sequence[Run], wanted: Sequence[int] | None = None
    ) -> torch.Tensor | None:
        """Adds runs of tokens to rows in one pass; room was made by `extend`.

        Args:
            runs: Of different rows.
            wanted: Indices of tokens in the concatenated runs whose logits are needed.

        Returns:
            Logits [wanted, v/t] on the last pipeline stage; None elsewhere or without `wanted`.
        """
        device = self._session.ranks.device
        lengths = [len(run.tokens) for run in runs]
        cache = Prefill(
            cache=self._cache,
            tables=[torch.tensor(self.tables.pages(run.row), device=device) for run in runs],
            starts=[run.start for run in runs],
            lengths=lengths,
            wanted=None if wanted is None else torch.tensor(wanted, device=device),
        )
        output = self._forward(
            torch.tensor([[token for run in runs for token in run.tokens]]),
            torch.tensor([[run.start + i for run in runs for i in range(len(run.tokens))]]),
            cache=cache,
            segment_ids=torch.tensor(
                [[i for i, length in enumerate(lengths) for _ in range(length)]], device=device
            ),
        )
        return None if output is None or wanted is None else output[:, 0]

    def inputs(self, newest: Sequence[tuple[int, int, int]], longest: int) -> torch.Tensor:
        """The inputs of a decode step, int64 [2 + n, b] on the device, in one copy.

        Args:
            newest: (token, position, row) each.
            longest: The most positions that `decode` will be asked to look at.

        Returns:
            Tokens, positions, then the n pages of each row, 0 where it has fewer.
        """
        tables = [self.tables.pages(row) for _, _, row in newest]
        most = self._pages_of(longest)
        columns = [
            (token, position, *table, *[0] * (most - len(table)))
            for (token, position, _), table in zip(newest, tables, strict=True)
        ]
        return torch.tensor(columns).t().contiguous().to(self._session.ranks.device)

    def decode(self, inputs: torch.Tensor, longest: int) -> torch.Tensor | None:
        """Runs one token of each row; logits [b, v/t] on the last stage, None elsewhere.

        Args:
            inputs: As of `inputs`.
            longest: Positions to look at, at least those of the longest row.
        """
        tokens, positions = inputs[0], inputs[1]
        pages = inputs[2 : 2 + self._pages_of(longest)].t()
        groups = self._groups(pages, positions, longest)
        logits = self._forward(
            tokens.unsqueeze(1),
            positions.unsqueeze(1),
            cache=Decode(cache=self._cache, groups=groups),
        )
        return None if logits is None else logits[0]

    def _pages_of(self, length: int) -> int:
        return -(-length // self._cache.page_tokens)

    def _groups(
        self, pages: torch.Tensor, positions: torch.Tensor, longest: int
    ) -> list[DecodeGroup]:
        """Rows of similar length together on CPU; elsewhere one group: it keeps shapes few."""
        count, is_on_cpu = len(pages), pages.device.type == "cpu"
        if pages.shape[1] == 1 or not is_on_cpu:
            in_order = is_on_cpu and pages[:, 0].tolist() == list(range(self._cache.num_pages))
            return [
                DecodeGroup(
                    members=None,
                    pages=pages,
                    positions=positions,
                    longest=longest,
                    is_whole_cache=in_order,
                )
            ]
        numbers = positions // self._cache.page_tokens + 1  # pages that each row looks at
        order = torch.argsort(numbers, descending=True, stable=True)
        sizes = numbers[order].tolist()
        starts = [0]
        for index, size in enumerate(sizes):
            if size < sizes[starts[-1]] * LONGEST_OVER:
                starts.append(index)
        groups = []
        for start, stop in zip(starts, [*starts[1:], count], strict=True):
            members = order[start:stop].sort().values
            own = positions[members]
            groups.append(
                DecodeGroup(
                    members=members if len(starts) > 1 else None,
                    pages=pages[members, : sizes[start]].contiguous(),
                    positions=own,
                    longest=int(own.max()) + 1,
                )
            )
        return groups

    def _forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        *,
        cache: Prefill | Decode,
        segment_ids: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Forward pass of tokens [b, s]; the output on the last pipeline stage, None elsewhere."""
        session = self._session
        tokens, positions = (x.to(session.ranks.device) for x in (tokens, positions))
        batch_size, num_tokens = tokens.shape
        return relay_forward(
            session.chunks,
            lambda chunk: chunk(tokens, positions, segment_ids=segment_ids, cache=cache),
            shape=(num_tokens, batch_size, session.config.hidden_size),
            dtype=session.settings.params_dtype,
            ranks=session.ranks,
        )
