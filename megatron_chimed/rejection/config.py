"""Settings of rejection sampling: prompts, candidates, selection, evaluation, training."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from megatron_chimed.config.inference import InferenceConfig
from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.config.training import MAX_EPOCHS
from megatron_chimed.data.datasets.config import BlendSource
from megatron_chimed.errors import ConfigError
from megatron_chimed.rejection.selection_rules import SelectionConfig

MAX_PER_PROMPT = 1 << 16


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """The prompts."""

    train: tuple[str, ...]
    """Files, folders or glob patterns of the prompts that candidates are drawn for."""
    held_out: tuple[str, ...] = ()
    """Prompts for the report, none of which is trained on; if empty, the report is about fresh
    answers to the prompts of `train`, which says less."""
    id_key: str = "id"
    """Key of the prompt id in a row; rows without one are named by file and row number."""
    category_key: str = "category"
    """Key of the category in a row, such as its department, for quotas."""

    def __post_init__(self) -> None:
        """Checks that there are prompts."""
        if not self.train:
            raise ConfigError("prompts.train is empty. List the files with the prompts.")


@dataclass(frozen=True, kw_only=True)
class CandidateConfig:
    """The answers to choose from."""

    per_prompt: int = 8
    """Answers drawn for each prompt; 0: only `external` answers and `references` compete."""
    temperature: float = 1.0
    """Sampling temperature; 0 would draw the same answer each time."""
    top_k: int = 0
    """Draw from the k most likely tokens only; 0 is off."""
    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities add up to this; 1 is off."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer become less likely; 1 is off."""
    max_new_tokens: int = 512
    """Longest drawn answer, in tokens."""
    external: tuple[str, ...] = ()
    """Files of external answers: rows of `id`, `completion` and, optionally, `source`."""
    references: bool = False
    """Whether the answers in the prompt files compete too."""

    def __post_init__(self) -> None:
        """Checks the ranges, and that there is something to choose from."""
        if not 0 <= self.per_prompt <= MAX_PER_PROMPT:
            raise ConfigError(
                f"candidates.per_prompt is {self.per_prompt}: set 0 or more, up to "
                f"{MAX_PER_PROMPT}."
            )
        if self.per_prompt == 0 and not (self.external or self.references):
            raise ConfigError(
                "candidates.per_prompt is 0, and neither candidates.external nor "
                "candidates.references provides answers. Set one of them."
            )
        if self.per_prompt > 1 and self.temperature == 0:
            raise ConfigError(
                f"candidates.temperature is 0, so all {self.per_prompt} answers to a prompt would "
                "be the same. Set it above 0, such as 1.0, or candidates.per_prompt to 1."
            )
        self.sampling(seed=0, stop_ids=(0,))  # checks the rest

    def sampling(self, *, seed: int, stop_ids: tuple[int, ...]) -> SamplingConfig:
        """How candidates are drawn.

        Raises:
            ConfigError: A value is out of range.
        """
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=seed,
            stop_token_ids=stop_ids,
        )


@dataclass(frozen=True, kw_only=True)
class FreshAnswersConfig:
    """Fresh answers for the report, drawn like candidates before the first round and after each."""

    per_prompt: int = 1
    """Answers drawn for each held-out prompt."""
    max_prompts: int = 0
    """Largest number of held-out prompts, evenly spread over the files; 0: all."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, least in (("per_prompt", 1), ("max_prompts", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"evaluation.{name} is {getattr(self, name)}: set {least} or more."
                )


@dataclass(frozen=True, kw_only=True)
class RoundTrainingConfig:
    """The fine-tuning that ends a round."""

    epochs: float = 1.0
    """Number of passes over the selected answers; determines the number of steps."""
    config: tuple[str, ...] = ()
    """Configuration files for tools/train.py; later ones take precedence."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of tools/train.py by section; take precedence over the files. Stage, device,
    model, tokenizer, training data, initial weights, number of steps and output folder are set by
    the round."""
    mix: tuple[BlendSource, ...] = ()
    """SFT data mixed with the selected answers, whose own weight is 1."""

    def __post_init__(self) -> None:
        """Checks the range."""
        if not 0.0 < self.epochs <= MAX_EPOCHS:
            raise ConfigError(
                f"training.epochs is {self.epochs}: set it above 0, such as 1.0, and to at most "
                f"{MAX_EPOCHS}."
            )


@dataclass(frozen=True, kw_only=True)
class RejectionConfig:
    """Rounds of rejection sampling: draw, score, select, train, report."""

    output_dir: str
    """Folder of all output; it is also a run folder of the newest policy."""
    policy: str
    """The initial policy: a checkpoint, or a run folder, of which the newest checkpoint is used."""
    reward_model: str
    """The reward model, given likewise."""
    device: Literal["auto", "cuda", "rocm", "cpu"] = "auto"
    """Where everything runs, as in tools/train.py: `cuda`, or an error that says why not."""
    rounds: int = 1
    """Number of rounds; raise it to continue a finished job."""
    seed: int = 1234
    """Seed of all draws."""
    start_from: Literal["current", "first"] = "current"
    """Initial weights of each round's training: `current`, the policy that drew the candidates;
    `first`, the initial policy, so that training errors do not accumulate."""
    train_on: Literal["round", "all"] = "round"
    """The answers selected in this round (`round`), or in all rounds so far (`all`)."""
    template: str | None = None
    """The policy's chat template, needed only if its checkpoint names none."""
    prompts: PromptConfig
    """The prompts."""
    candidates: CandidateConfig = CandidateConfig()
    """The answers to choose from."""
    selection: SelectionConfig = SelectionConfig()
    """Which candidates are trained on."""
    evaluation: FreshAnswersConfig = FreshAnswersConfig()
    """How the policies before and after a round are compared."""
    inference: InferenceConfig = InferenceConfig()
    """Parallel layout of drawing and scoring."""
    training: RoundTrainingConfig = RoundTrainingConfig()
    """Fine-tuning on the selected answers."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.rounds < 1:
            raise ConfigError(f"rounds is {self.rounds}: set 1 or more.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: set 0 or more.")
