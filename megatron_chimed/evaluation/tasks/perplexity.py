"""How well a model predicts texts: perplexity, and bits per byte, which tokenizers can share.

Perplexity counts the model's own tokens: models with different tokenizers are compared by bits per
byte only. Overlapping windows give every token but the first ones context.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.reading import expand_inputs, iter_texts
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.aggregates import groups_of, ratio_interval, used
from megatron_chimed.evaluation.figures import Figure, Interval, MeasuredItem
from megatron_chimed.evaluation.measures import Given, MeasureEntry
from megatron_chimed.evaluation.requests import TaskPrompt, TextLikelihood, TextRequest


@dataclass(frozen=True, kw_only=True)
class PerplexityTask:
    """Texts, or documents of indexed data."""

    name: str
    """Its name in the report."""
    kind: Literal["perplexity"] = "perplexity"
    """What sort of task it is."""
    title: str = ""
    """For the report; empty: the name."""
    source: str = ""
    """Where the texts come from, for the report."""
    data: tuple[str, ...] = ()
    """Files, folders or patterns of texts; a conversation is one text."""
    indexed: tuple[str, ...] = ()
    """Prefixes of indexed data (PREFIX.bin, PREFIX.idx), read with the tokenizer that made them."""
    window: int = 0
    """Tokens that the model sees at once; 0: all its positions."""
    stride: int = 0
    """Tokens by which a window moves, the rest being context; 0: a whole window."""
    limit: int = 0
    """Largest number of documents of each file, the first ones; 0: all."""

    def __post_init__(self) -> None:
        """Checks that there is something to read, and the ranges."""
        if not self.data and not self.indexed:
            raise ConfigError(f"task {self.name}: list texts under data or prefixes under indexed.")
        for key in ("window", "stride", "limit"):
            if getattr(self, key) < 0:
                raise ConfigError(
                    f"task {self.name}: {key} is {getattr(self, key)}: set 0 or more."
                )
        if self.window == 1 or (self.window and self.stride >= self.window):
            raise ConfigError(
                f"task {self.name}: a window of {self.window} tokens cannot move by {self.stride}: "
                "each needs a token of context. Lower stride, or raise window."
            )

    def measures(self) -> list["PerplexityMeasure"]:
        """One measure.

        Raises:
            ConfigError: A file does not exist, or two have one name.
            DataError: Files are damaged or empty, or indexed data do not name their tokenizer.
        """
        entries = [*self._texts(), *self._documents()]
        ids = [entry.id for entry in entries]
        if len(set(ids)) != len(ids):
            raise ConfigError(f"task {self.name}: two files have one name. Rename one of them.")
        if not entries:
            raise DataError(f"task {self.name}: there is no text in its files.")
        return [PerplexityMeasure(task=self, entries=tuple(entries))]

    def _texts(self) -> list[MeasureEntry]:
        entries = []
        for file in expand_inputs(self.data, text_key="text") if self.data else ():
            for number, text in enumerate(iter_texts([file.path]), start=1):
                if self.limit and number > self.limit:
                    break
                request = self._request(TaskPrompt(question=text))
                entries.append(
                    MeasureEntry(
                        id=f"{file.path.name}:{number}", group=file.path.name, request=request
                    )
                )
        return entries

    def _documents(self) -> list[MeasureEntry]:
        entries = []
        for prefix in self.indexed:
            dataset = IndexedDataset(prefix)
            if dataset.sidecar is None:
                raise DataError(
                    f"{prefix} has no {Path(prefix).name}.meta.json, so its tokenizer is unknown. "
                    "Give the texts under data instead."
                )
            name = Path(prefix).name
            count = min(dataset.num_documents, self.limit or dataset.num_documents)
            for document in range(count):
                ids = _document_ids(dataset, document)
                place = f"{name}.bin:{document}"
                request = self._request(
                    TaskPrompt(question=f"document {document} of {name}"),
                    ids=ids,
                    tokenizer=dataset.sidecar.tokenizer_sha256,
                )
                problem = None if ids else "an empty document"
                entries.append(
                    MeasureEntry(
                        id=place, group=name, request=request if ids else None, problem=problem
                    )
                )
        return entries

    def _request(
        self, prompt: TaskPrompt, *, ids: tuple[int, ...] = (), tokenizer: str = ""
    ) -> TextRequest:
        return TextRequest(
            prompt=prompt, ids=ids, tokenizer=tokenizer, window=self.window, stride=self.stride
        )


@dataclass(frozen=True, kw_only=True)
class PerplexityMeasure:
    """A task's texts."""

    task: PerplexityTask
    entries: Sequence[MeasureEntry]

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @property
    def title(self) -> str:
        """With the windows."""
        task = self.task
        window = f"windows of {task.window:,}" if task.window else "windows of all positions"
        stride = f", stride {task.stride:,}" if task.stride else ""
        return f"{task.title or task.name}, perplexity, {window}{stride}"

    @property
    def main_score(self) -> str:
        """Lower is better."""
        return "bits_per_byte"

    def judge(self, index: int, response: Given) -> tuple[dict[str, float], dict[str, object]]:
        """The sums that the figures are made of."""
        assert isinstance(response, TextLikelihood), "what the entries ask"
        scores = {
            "log_prob": response.log_prob,
            "num_tokens": float(response.num_tokens),
            "num_bytes": float(response.num_bytes),
            "bits_per_byte": -response.log_prob / math.log(2) / max(response.num_bytes, 1),
        }
        return scores, {}

    def figures(self, items: Sequence[MeasuredItem], seed: int) -> list[Figure]:
        """Perplexity and bits per byte over all texts, and of each file."""
        figures = _figures(used(items), "", seed)
        for group, of_group in groups_of(items).items():
            figures += _figures(of_group, group, seed)
        return figures

    def baselines(self) -> list[Figure]:
        """None: what a model without knowledge reaches depends on its vocabulary."""
        return []


def _figures(items: Sequence[MeasuredItem], group: str, seed: int) -> list[Figure]:
    loss = [-item.scores["log_prob"] for item in items]
    tokens = [item.scores["num_tokens"] for item in items]
    num_bytes = [item.scores["num_bytes"] for item in items]
    figures = []
    for metric, per in (("perplexity", tokens), ("bits per byte", num_bytes)):
        if not sum(per):
            figures.append(Figure(metric=metric, value=None, num_used=0, group=group))
            continue
        ratio, interval = sum(loss) / sum(per), ratio_interval(loss, per, seed=seed)
        assert interval is not None, "resamples of a positive sum have one"
        value, low, high = (
            math.exp(min(x, 700.0)) if metric == "perplexity" else x / math.log(2)
            for x in (ratio, interval.low, interval.high)
        )
        figures.append(
            Figure(
                metric=metric,
                value=value,
                num_used=len(items),
                group=group,
                interval=Interval(low=low, high=high, method=interval.method),
                higher_is_better=False,
            )
        )
    return figures


def _document_ids(dataset: IndexedDataset, document: int) -> tuple[int, ...]:
    first, last = (int(i) for i in dataset.document_indices[document : document + 2])
    return tuple(int(token) for index in range(first, last) for token in dataset[index])
