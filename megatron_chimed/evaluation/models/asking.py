"""Asks a model whatever the items of a measure ask; dialogues are asked turn by turn."""

from collections.abc import Sequence

from megatron_chimed.evaluation.measures import Request, Response
from megatron_chimed.evaluation.requests import (
    Answer,
    AnswerRequest,
    Dialogue,
    DialogueRequest,
    EvaluatedModel,
    LikelihoodRequest,
    Refused,
    TextRequest,
)

NO_LIKELIHOODS = "log-probabilities, which an endpoint does not give"


def ask(model: EvaluatedModel, requests: Sequence[Request | None]) -> list[Response | None]:
    """The model's responses in order, None where nothing is asked; every rank calls it."""
    responses: list[Response | None] = [None] * len(requests)
    choices = {i: r for i, r in enumerate(requests) if isinstance(r, LikelihoodRequest)}
    texts = {i: r for i, r in enumerate(requests) if isinstance(r, TextRequest)}
    questions = {i: r for i, r in enumerate(requests) if isinstance(r, AnswerRequest)}
    dialogues = {i: r for i, r in enumerate(requests) if isinstance(r, DialogueRequest)}
    found: dict[int, Response] = {}
    if not model.gives_likelihoods:
        found |= {index: Refused(reason=NO_LIKELIHOODS) for index in (*choices, *texts)}
    else:
        if choices:
            found |= zip(choices, model.likelihoods(list(choices.values())), strict=True)
        if texts:
            found |= zip(texts, model.text_likelihoods(list(texts.values())), strict=True)
    if questions:
        found |= zip(questions, model.answers(list(questions.values())), strict=True)
    if dialogues:
        found |= zip(dialogues, _talk(model, list(dialogues.values())), strict=True)
    for index, response in found.items():
        responses[index] = response
    return responses


def _talk(model: EvaluatedModel, dialogues: Sequence[DialogueRequest]) -> list[Dialogue | Refused]:
    """Answers all dialogues, one turn of each at a time; a refused turn refuses its dialogue."""
    answers: list[list[Answer]] = [[] for _ in dialogues]
    refused: dict[int, Refused] = {}
    for turn in range(max(len(dialogue.questions) for dialogue in dialogues)):
        asked = {
            index: dialogue.next_request([answer.text for answer in answers[index]])
            for index, dialogue in enumerate(dialogues)
            if turn < len(dialogue.questions) and index not in refused
        }
        if not asked:
            break
        for index, answer in zip(asked, model.answers(list(asked.values())), strict=True):
            if isinstance(answer, Refused):
                refused[index] = answer
            else:
                answers[index].append(answer)
    return [
        refused[index] if index in refused else Dialogue(answers=tuple(own))
        for index, own in enumerate(answers)
    ]
