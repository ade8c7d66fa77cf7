"""The chat format of Llama 3.1 and later: a header with the role, the trimmed text, `<|eot_id|>`.

The published template writes the day on which it is rendered into the system text. Here it is the
day that the template itself falls back to, so that data and prompts are the same on every day.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from megatron_chimed.data.formats.example import Conversation, ToolStep, Turn, has_reasoning
from megatron_chimed.data.templates.family_template import (
    FamilyTemplate,
    json_text,
    parse_tools,
    tools_misfit,
)
from megatron_chimed.data.templates.template import Segment

TOOLS_START = (
    "Given the following functions, please respond with a JSON for a function call with its proper "
    "arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and '
    "its value}.Do not use variables.\n\n"
)


@dataclass(frozen=True, kw_only=True)
class Llama3Template(FamilyTemplate):
    """Llama 3.1 and later."""

    FORMAT: ClassVar = "llama3"
    REQUIRED: ClassVar = (
        *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    )
    STOPS: ClassVar = ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")

    date: str = "26 Jul 2024"
    """What the system text calls today."""

    @property
    def needs_last_turn(self) -> bool:
        """Never."""
        return False

    def misfit(self, conversation: Conversation) -> str | None:
        """It has no part for reasoning, and for one call at a time without a text."""
        if has_reasoning(conversation):
            return (
                f"there is reasoning before an answer, for which template {self.name!r} has no "
                "part: leave it out with --drop-reasoning"
            )
        steps = [step for turn in conversation.turns for step in turn.steps]
        if any(len(step.calls) != 1 or step.text.strip() for step in steps):
            return (
                f"template {self.name!r} writes one call of a tool in a message, and no text "
                "beside it; the row has more"
            )
        return tools_misfit(conversation)

    def _turns(self, conversation: Conversation, *, is_prompt: bool) -> Iterator[list[Segment]]:
        last = len(conversation.turns) - 1
        tools = parse_tools(conversation.tools)
        segments = self._system(conversation.system, has_tools=bool(tools))
        for number, turn in enumerate(conversation.turns):
            is_open = is_prompt and number == last
            question = [Segment(turn.question.strip())]
            if tools and number == 0:
                listed = "".join(f"{json_text(tool, indent=4)}\n\n" for tool in tools)
                question = [*self._marked(TOOLS_START), Segment(listed), *question]
            segments += self._message("user", question)
            segments += self._steps(turn, is_open=is_open)
            if is_open:
                segments += self._header("assistant")
            elif turn.answer or not turn.steps:
                segments += self._answer(turn.answer.strip(), turn, is_answer=True)
            yield segments
            segments = []

    def _system(self, system: str, *, has_tools: bool) -> list[Segment]:
        environment = "Environment: ipython\n" if has_tools else ""
        dates = f"Cutting Knowledge Date: December 2023\nToday Date: {self.date}\n\n"
        content = [*self._marked(environment + dates), Segment(system.strip())]
        return [*self._marked("<|begin_of_text|>"), *self._message("system", content)]

    def _steps(self, turn: Turn, *, is_open: bool) -> list[Segment]:
        """The calls of a turn and their results; the last call is its answer if it has none."""
        segments = []
        for number, step in enumerate(turn.steps, start=1):
            is_answer = number == len(turn.steps) and not turn.answer and not is_open
            [call] = step.calls
            text = f'{{"name": "{call.name}", "parameters": {call.arguments}}}'
            segments += self._answer(text, step, is_answer=is_answer)
            for result in step.results:
                segments += self._message("ipython", [Segment(json_text(result))])
        return segments

    def _answer(self, text: str, said: Turn | ToolStep, *, is_answer: bool) -> list[Segment]:
        part, end = ("answer", "end") if is_answer else ("prompt", "prompt")
        return [
            *self._header("assistant"),
            Segment(text, "", said.is_learned, part),
            *self._marked("<|eot_id|>", said.is_learned, end),
        ]

    def _message(self, role: str, content: list[Segment]) -> list[Segment]:
        return [*self._header(role), *content, *self._marked("<|eot_id|>")]

    def _header(self, role: str) -> list[Segment]:
        return self._marked(f"<|start_header_id|>{role}<|end_header_id|>\n\n")
