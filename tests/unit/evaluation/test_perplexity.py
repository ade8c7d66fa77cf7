"""Perplexity and bits per byte of texts and indexed data, by windows."""

import math

import pytest

from megatron_chimed.errors import ConfigError
from megatron_chimed.evaluation.models.encoding import (
    RequestEncoder,
    text_likelihoods,
    text_windows,
)
from megatron_chimed.evaluation.requests import Refused, TaskPrompt, TextRequest
from megatron_chimed.evaluation.tasks.perplexity import PerplexityTask
from tests.unit.evaluation.fake_model import FakeModel, by_metric, run


def encoder(max_positions=8):
    return RequestEncoder(
        encode_texts=lambda texts: [[ord(c) for c in text] for text in texts],
        encode_conversations=None,
        prefix=(),
        max_positions=max_positions,
        boundary=0,
        decode=lambda ids: "".join(map(chr, ids)),
        tokenizer="t",
    )


def request(text="", **changes):
    return TextRequest(prompt=TaskPrompt(question=text), **changes)


@pytest.mark.parametrize("length", [1, 6, 7, 8, 9, 20, 21])
@pytest.mark.parametrize(("window", "stride"), [(0, 0), (8, 3), (4, 1), (100, 50), (2, 1)])
def test_windows_score_every_token_once_and_fit(length, window, stride):
    ids = list(range(1, length + 1))
    windows = text_windows(encoder(), ids, request(window=window, stride=stride))
    assert [i for w in windows for i in w.continuations[0]] == ids
    for each in windows:
        (scored,) = each.continuations
        assert len(each.ids) >= 1 and len(each.ids) + len(scored) <= min(window or 8, 8)
        joined = [*each.ids, *scored]
        assert joined == list(range(joined[0], joined[-1] + 1))  # nothing is missing between
    assert windows[0].ids[0] == 0


def test_later_windows_have_the_context_that_the_stride_leaves():
    windows = text_windows(encoder(), range(1, 15), request(window=8, stride=3))
    assert [len(w.ids) for w in windows] == [1, 5, 5, 7]


def test_sums_go_back_to_their_texts():
    def score(items):
        return [(-float(sum(item.continuations[0])),) for item in items]

    texts = ["ab" * 10, "", "c"]
    found = text_likelihoods(encoder(), [request(text) for text in texts], score)
    assert found[0].log_prob == -10.0 * (97 + 98) and found[0].num_tokens == 20
    assert found[1] == Refused(reason="an empty text")
    assert (found[2].log_prob, found[2].num_bytes) == (-99.0, 1)
    ids = request("document", ids=(97, 30140), tokenizer="t")
    (indexed,) = text_likelihoods(encoder(), [ids], score)
    assert indexed.num_bytes == 1 + 3


def test_perplexity_and_bits_per_byte_are_ratios_of_sums(tmp_path):
    (tmp_path / "a.txt").write_text("发热\n咳嗽三天\n")
    (tmp_path / "b.txt").write_text("abcdef\n")
    task = PerplexityTask(name="ppl", data=(str(tmp_path / "*.txt"),))
    (measure,) = task.measures()
    items = run(measure, FakeModel())  # 2 nats for each character
    figures = by_metric(measure.figures(items, 0))
    assert figures["perplexity"].value == pytest.approx(math.e**2)
    assert figures["bits per byte"].value == pytest.approx(24 / math.log(2) / (18 + 6))
    assert figures["bits per byte", "b.txt"].value == pytest.approx(2 / math.log(2))
    assert figures["perplexity"].num_used == 3 and figures["perplexity"].interval is not None
    empty = measure.figures([], 0)
    assert all(figure.value is None for figure in empty)


def test_an_endpoint_gives_no_perplexity(tmp_path):
    (tmp_path / "a.txt").write_text("发热\n")
    (measure,) = PerplexityTask(name="ppl", data=(str(tmp_path / "a.txt"),)).measures()
    (item,) = run(measure, FakeModel(gives_likelihoods=False))
    assert item.dropped == "log-probabilities, which an endpoint does not give"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "list texts under data"),
        ({"window": 1}, "a window of 1 tokens cannot move"),
        ({"window": 8, "stride": 8}, "a window of 8 tokens cannot move by 8"),
        ({"stride": -1}, "stride is -1"),
    ],
)
def test_a_wrong_task_is_explained(changes, message):
    with pytest.raises(ConfigError, match=message):
        PerplexityTask(**{"name": "ppl", "data": ("x",), **changes})
