"""A model whose answers a test decides."""

import dataclasses
import json

from megatron_chimed.evaluation.figures import MeasuredItem
from megatron_chimed.evaluation.item_store import item_of
from megatron_chimed.evaluation.measures import measured, prompt_text
from megatron_chimed.evaluation.models.asking import ask
from megatron_chimed.evaluation.requests import Answer, Likelihoods, TextLikelihood


class FakeModel:
    """Answers with `answer(prompt)`; a `Refused` of it refuses. All letters are equally likely."""

    identity = {"model": "fake"}

    def __init__(self, answer=lambda prompt: "", gives_likelihoods=True):
        self._answer, self.gives_likelihoods = answer, gives_likelihoods
        self.requests = []

    def likelihoods(self, requests):
        count = [len(request.continuations) for request in requests]
        return [Likelihoods(log_probs=(-1.0,) * n, num_tokens=(1,) * n, num_shots=0) for n in count]

    def answers(self, requests):
        self.requests += requests
        found = []
        for request in requests:
            text = self._answer(prompt_text(request.prompt))
            answer = Answer(
                text=text if isinstance(text, str) else "",
                finish_reason="stop",
                num_tokens=1,
                num_shots=len(request.prompt.shots),
            )
            found.append(answer if isinstance(text, str) else text)
        return found

    def text_likelihoods(self, requests):
        texts = [request.prompt.question for request in requests]
        return [
            TextLikelihood(log_prob=-2.0 * len(t), num_tokens=len(t), num_bytes=len(t.encode()))
            for t in texts
        ]


def run(measure, model) -> list[MeasuredItem]:
    """The items of a measure, as a finished evaluation reads them from its files."""
    responses = ask(model, [entry.request for entry in measure.entries])
    items = [measured(measure, index, response) for index, response in enumerate(responses)]
    return [item_of(json.loads(json.dumps(dataclasses.asdict(item)))) for item in items]


def by_metric(figures):
    """Figures by metric, and by metric and group where there is one."""
    return {(f.metric, f.group) if f.group else f.metric: f for f in figures}
