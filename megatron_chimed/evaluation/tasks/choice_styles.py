"""How a multiple choice question is put: the prompts of the harnesses that people compare with.

`lm_eval` is that of lm-evaluation-harness (tasks `ceval`, version 2.0, and `cmmlu`, 1.0),
`opencompass` that of OpenCompass for C-Eval (`ceval_ppl`; the most likely letter wins, as by its
lowest mean where all letters have equally many tokens), `papers` that of ChiMed-GPT's own
evaluation script; `chat` is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from megatron_chimed.data.formats.exam import ExamQuestion
from megatron_chimed.evaluation.requests import TaskPrompt


@dataclass(frozen=True, kw_only=True)
class ChoiceStyle:
    """A layout of questions, choices and answers."""

    option: str
    """One choice, with {letter} and {text}."""
    cue: str
    """Text between the choices and the answer."""
    opening: str = ""
    """Text before each question."""
    closing: str = ""
    """Text after each question."""
    space: str = ""
    """Text between the cue and the answer."""
    shot_end: str = "\n\n"
    """Text after the answer of a shot."""
    describes_each: bool = False
    """Whether the description precedes every question, not only the first."""
    description_end: str = "\n\n"
    """Text after the description."""
    default_description: str = ""
    """If the task has none for this style; with {subject}."""
    is_chat: bool = False
    """Whether questions are turns of a conversation."""
    shots_in_question: bool = False
    """Whether the shots are a part of the only turn."""
    answer: str = "{letter}"
    """An answer in a shot, with {letter} and {text}."""

    def question(self, item: ExamQuestion) -> str:
        """The question with its choices, without the cue."""
        listed = "".join(
            f"\n{self.option.format(letter=letter, text=text)}"
            for letter, text in item.choices.items()
        )
        return f"{self.opening}{item.question.strip()}{self.closing}{listed}"

    def prompt(
        self,
        item: ExamQuestion,
        shots: Sequence[ExamQuestion],
        description: str,
        *,
        answers_text: bool = False,
    ) -> TaskPrompt:
        """The prompt of a question after solved ones.

        Args:
            item: The question.
            shots: Questions that are shown with their answers.
            description: Of the task; "": none.
            answers_text: Whether answers are the choices' texts, not their letters.
        """
        described = f"{description}{self.description_end}" if description else ""
        each = described if self.describes_each else ""
        pairs = [
            (
                f"{each}{self.question(shot)}{self.cue}",
                self.space + self._solution(shot, answers_text),
            )
            for shot in shots
        ]
        asked = f"{each}{self.question(item)}{self.cue}"
        head = "" if self.describes_each else described
        if self.shots_in_question:
            examples = "".join(f"{q}{a}{self.shot_end}" for q, a in pairs)
            return TaskPrompt(question=head + examples + asked, is_chat=True)
        ending = "" if self.is_chat else self.shot_end
        return TaskPrompt(
            head=head,
            shots=tuple((q, a + ending) for q, a in pairs),
            question=asked,
            is_chat=self.is_chat,
        )

    def continuations(self, item: ExamQuestion, *, answers_text: bool) -> tuple[str, ...]:
        """What may follow the prompt, one for each choice."""
        answers = item.choices.values() if answers_text else item.choices
        return tuple(f"{self.space}{answer}" for answer in answers)

    def _solution(self, shot: ExamQuestion, answers_text: bool) -> str:
        if answers_text:
            return "\n".join(shot.choices[letter] for letter in shot.letters)
        return "".join(
            self.answer.format(letter=letter, text=shot.choices[letter]) for letter in shot.letters
        )


STYLES: Mapping[str, ChoiceStyle] = MappingProxyType(
    {
        "lm_eval": ChoiceStyle(option="{letter}. {text}", cue="\n答案：", space=" "),
        "opencompass": ChoiceStyle(
            option="{letter}. {text}",
            cue="\n答案: ",
            shot_end="\n",
            describes_each=True,
            description_end="\n",
        ),
        "papers": ChoiceStyle(
            opening="问题：",
            closing="？",
            option="{letter}.{text}",
            cue="\n答案：",
            answer="{letter}.{text}",
            shot_end="\n",
            description_end="\n",
            default_description="以下是关于{subject}的选择题，请选择正确的答案",
            is_chat=True,
            shots_in_question=True,
        ),
        "chat": ChoiceStyle(
            option="{letter}. {text}",
            cue="\n请直接给出正确选项的字母。",
            default_description="以下是关于{subject}的选择题。",
            description_end="\n",
            is_chat=True,
        ),
    }
)
