"""Settings of rejection sampling: what is drawn, who judges it, what is kept, how it is learned."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from megatron_chimed.config.parallel import ParallelConfig
from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.config.training import MAX_EPOCHS
from megatron_chimed.data.datasets.config import BlendSource
from megatron_chimed.errors import ConfigError
from megatron_chimed.rejection.selection import SelectionConfig

MAX_PER_PROMPT = 1 << 16


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """The questions."""

    train: tuple[str, ...]
    """Files, folders or patterns with the prompts that candidates are drawn for."""
    held_out: tuple[str, ...] = ()
    """Prompts of which none is trained on, for the report; none: fresh answers to those of
    `train`, which says less."""
    id_key: str = "id"
    """Key of a row that names its prompt; rows without it are named by file and number."""
    category_key: str = "category"
    """Key of a row's category, such as its department, for quotas."""

    def __post_init__(self) -> None:
        """Checks that there are prompts.

        Raises:
            ConfigError: There are none.
        """
        if not self.train:
            raise ConfigError("prompts.train names no file. Name the files with the questions.")


@dataclass(frozen=True, kw_only=True)
class CandidateConfig:
    """The answers that compete."""

    per_prompt: int = 8
    """Answers drawn for each prompt; 0: only `external` and `references` take part."""
    temperature: float = 1.0
    """Of the draws; 0 would draw the same answer each time."""
    top_k: int = 0
    """Draw from the k most likely tokens only; 0 is off."""
    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities add up to this; 1 is off."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer become less likely; 1 is off."""
    max_new_tokens: int = 512
    """Longest drawn answer, in tokens."""
    external: tuple[str, ...] = ()
    """Files with answers by others: rows of `id`, `completion` and, optionally, `source`."""
    references: bool = False
    """Whether the answers in the files of the prompts take part."""

    def __post_init__(self) -> None:
        """Checks that there is something to choose from.

        Raises:
            ConfigError: There is not, or a value is out of range.
        """
        if not 0 <= self.per_prompt <= MAX_PER_PROMPT:
            raise ConfigError(
                f"candidates.per_prompt is {self.per_prompt}: set 0 or more, up to "
                f"{MAX_PER_PROMPT}."
            )
        if self.per_prompt == 0 and not (self.external or self.references):
            raise ConfigError(
                "candidates.per_prompt is 0, and neither candidates.external nor "
                "candidates.references brings an answer. Set one of them."
            )
        if self.per_prompt > 1 and self.temperature == 0:
            raise ConfigError(
                f"candidates.temperature is 0, so all {self.per_prompt} answers to a prompt would "
                "be the same. Set it above 0, such as 1.0, or candidates.per_prompt to 1."
            )
        self.sampling(seed=0, stop_ids=(0,))  # checks the rest

    def sampling(self, *, seed: int, stop_ids: tuple[int, ...]) -> SamplingConfig:
        """How a candidate is drawn.

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
class EvaluationConfig:
    """Fresh answers, drawn as the candidates are, before the first round and after each."""

    per_prompt: int = 1
    """Answers to each held-out prompt."""
    max_prompts: int = 0
    """Only so many of them, evenly spread; 0: all."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        for name, least in (("per_prompt", 1), ("max_prompts", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"evaluation.{name} is {getattr(self, name)}: set {least} or more."
                )


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How drawing and scoring are spread over the ranks; none of it changes more than rounding."""

    tensor_parallel_size: int = 1
    """Ranks that share each matrix."""
    pipeline_parallel_size: int = 1
    """Ranks that share the layers; ranks beyond the product of both are replicas."""
    max_batch: int = 64
    """Answers that are drawn together in each replica."""
    batch_tokens: int = 8192
    """Tokens of a forward pass that scores, in each replica."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Of weights and activations; None: that of the stored weights."""
    timeout_seconds: float = 600.0
    """How long a rank waits for its peers."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        for name in ("max_batch", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"inference.{name} is {getattr(self, name)}: set 1 or more.")

    def parallel(self) -> ParallelConfig:
        """The layout's settings."""
        return ParallelConfig(
            tensor_parallel_size=self.tensor_parallel_size,
            pipeline_parallel_size=self.pipeline_parallel_size,
            timeout_seconds=self.timeout_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class RoundTrainingConfig:
    """The fine-tuning that ends a round."""

    epochs: float = 1.0
    """How often the selected answers are read; it decides the number of steps."""
    config: tuple[str, ...] = ()
    """Configuration files as tools/train.py takes them; what a later one says wins."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The same as sections; wins over the files. Stage, model, tokenizer, training data, first
    weights, number of steps and folder are the round's to say."""
    mix: tuple[BlendSource, ...] = ()
    """SFT data read beside the selected answers, whose own weight is 1."""

    def __post_init__(self) -> None:
        """Checks the range.

        Raises:
            ConfigError: Nothing would be read.
        """
        if not 0.0 < self.epochs <= MAX_EPOCHS:
            raise ConfigError(
                f"training.epochs is {self.epochs}: set it above 0, such as 1.0, and to at most "
                f"{MAX_EPOCHS}."
            )


@dataclass(frozen=True, kw_only=True)
class RejectionConfig:
    """Rounds of rejection sampling: draw, score, select, fine-tune, look."""

    output_dir: str
    """Everything goes there; afterwards it is a run's folder, of the last policy."""
    policy: str
    """The model before the first round: a checkpoint, or a run's folder, of which the newest."""
    reward_model: str
    """The judge; likewise."""
    rounds: int = 1
    """How often; a finished job goes on when it is raised."""
    seed: int = 1234
    """Of all draws."""
    start_from: Literal["current", "first"] = "current"
    """The weights that a round's training starts from: `current`, the policy that drew; `first`,
    the model before the first round, so that errors of training do not pile up."""
    train_on: Literal["round", "all"] = "round"
    """Answers selected in this round, or in all rounds up to it."""
    template: str | None = None
    """The policy's chat template, only where its checkpoint does not say."""
    prompts: PromptConfig
    """The questions."""
    candidates: CandidateConfig = CandidateConfig()
    """The answers that compete."""
    selection: SelectionConfig = SelectionConfig()
    """Which of them are learned."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How a round is judged."""
    inference: InferenceConfig = InferenceConfig()
    """How drawing and scoring run."""
    training: RoundTrainingConfig = RoundTrainingConfig()
    """How the selected answers are learned."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        if self.rounds < 1:
            raise ConfigError(f"rounds is {self.rounds}: set 1 or more.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: set 0 or more.")
