"""Which pages of a KV cache hold which tokens of which row; rows share the pages that are equal.

Nothing here computes. Every rank of a replica makes the same calls and gets the same numbers.
"""

from typing import NamedTuple


class PageCopy(NamedTuple):
    """A page whose beginning a row needs for itself, since it is about to write behind it."""

    source: int
    target: int
    length: int
    """Tokens to copy."""


class PageTables:
    """The pages of rows, with a count of the rows that hold each.

    Pages are numbered from 0 without gaps; a page that no row holds is used before a new one.

    Args:
        num_rows: Rows, numbered from 0; each begins empty.
        page_tokens: Tokens of a page.
    """

    def __init__(self, num_rows: int, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self._tables: list[list[int]] = [[] for _ in range(num_rows)]
        self._num_holders: list[int] = []
        self._free: set[int] = set()

    @property
    def num_pages(self) -> int:
        """Pages that were ever used at the same time: what the cache must have room for."""
        return len(self._num_holders)

    @property
    def num_held(self) -> int:
        """Pages that some row holds."""
        return len(self._num_holders) - len(self._free)

    def pages(self, row: int) -> list[int]:
        """The pages of a row, in order."""
        return self._tables[row]

    def extend(self, row: int, start: int, end: int) -> list[PageCopy]:
        """Gives a row pages of its own for the tokens [start, end), which it will write.

        Args:
            row: The row, which holds the tokens before `start`.
            start: First position to be written.
            end: Position after the last.

        Returns:
            The copies to make before anything is written: at most one, of a shared page that the
            row has filled in part.
        """
        table, copies = self._tables[row], []
        first = start // self.page_tokens
        if first < len(table) and self._num_holders[table[first]] > 1:
            shared, table[first] = table[first], self._take(row)
            self._num_holders[shared] -= 1
            if kept := start % self.page_tokens:
                copies.append(PageCopy(shared, table[first], kept))
        while len(table) * self.page_tokens < end:
            table.append(self._take(row))
        return copies

    def fork(self, source: int, target: int, length: int) -> None:
        """Lets a row begin with the first tokens of another, in the same pages."""
        self.release(target)
        shared = self._tables[source][: -(-length // self.page_tokens)]
        for page in shared:
            self._num_holders[page] += 1
        self._tables[target] = list(shared)

    def truncate(self, row: int, length: int) -> None:
        """Forgets the tokens of a row from a position on."""
        table = self._tables[row]
        kept = -(-length // self.page_tokens)
        for page in table[kept:]:
            self._num_holders[page] -= 1
            if not self._num_holders[page]:
                self._free.add(page)
        del table[kept:]

    def release(self, row: int) -> None:
        """Empties a row."""
        self.truncate(row, 0)

    def _take(self, row: int) -> int:
        """A free page, that of the row's own number if possible: then slots need no picking."""
        if self._free:
            page = row if row in self._free else min(self._free)
            self._free.remove(page)
        else:
            page = len(self._num_holders)
            self._num_holders.append(0)
        self._num_holders[page] = 1
        return page
