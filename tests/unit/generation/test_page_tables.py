"""Whatever rows do, each token lies in one place that only its own rows hold."""

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.generation.page_tables import PageCopy, PageTables

NUM_ROWS = 4
row = st.integers(0, NUM_ROWS - 1)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("write"), row, st.integers(1, 9)),
        st.tuples(st.just("fork"), row, row),
        st.tuples(st.just("truncate"), row, st.integers(0, 12)),
    ),
    max_size=40,
)


class Cache:
    """What pages and rows hold: a number for each token that was ever written."""

    def __init__(self, page_tokens):
        self.tables, self.size = PageTables(NUM_ROWS, page_tokens), page_tokens
        self.pages, self.rows, self.written = {}, [[] for _ in range(NUM_ROWS)], 0

    def write(self, row, count):
        start, end = len(self.rows[row]), len(self.rows[row]) + count
        for source, target, length in self.tables.extend(row, start, end):
            for place in range(length):
                self.pages[target, place] = self.pages[source, place]
        for position in range(start, end):
            self.written += 1
            page = self.tables.pages(row)[position // self.size]
            self.pages[page, position % self.size] = self.written
            self.rows[row].append(self.written)

    def fork(self, source, target):
        if source != target:
            length = len(self.rows[source]) * 2 // 3
            self.tables.fork(source, target, length)
            self.rows[target] = self.rows[source][:length]

    def truncate(self, row, length):
        length = min(length, len(self.rows[row]))
        self.tables.truncate(row, length)
        del self.rows[row][length:]

    def check(self):
        held = set()
        for number, tokens in enumerate(self.rows):
            pages = self.tables.pages(number)
            assert len(pages) == -(-len(tokens) // self.size), "a page without a token"
            held.update(pages)
            for position, token in enumerate(tokens):
                place = pages[position // self.size], position % self.size
                assert self.pages[place] == token, "another row wrote over it"
        assert self.tables.num_held == len(held) <= self.tables.num_pages


@settings(max_examples=200, deadline=None)
@given(actions, st.sampled_from([1, 3, 16]))
def test_rows_keep_their_tokens_and_hold_no_more_pages_than_they_need(actions, page_tokens):
    cache = Cache(page_tokens)
    for name, *arguments in actions:
        getattr(cache, name)(*arguments)
        cache.check()


def test_rows_that_begin_alike_share_whole_pages():
    tables = PageTables(3, 16)
    tables.extend(0, 0, 40)
    tables.fork(0, 1, 40)
    tables.fork(0, 2, 32)
    assert tables.num_held == 3
    assert tables.extend(1, 40, 41) == [PageCopy(2, 3, 8)]
    assert tables.extend(2, 32, 33) == []
    assert tables.extend(0, 40, 41) == [], "it holds its last page alone now"
    assert [tables.pages(row) for row in range(3)] == [[0, 1, 2], [0, 1, 3], [0, 1, 4]]
    for row in range(3):
        tables.release(row)
    assert tables.num_held == 0 and tables.num_pages == 5
