"""The inputs of a job: models, prompts and external answers, checked before anything is drawn."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.checkpoint.load import stored_model_config
from megatron_chimed.checkpoint.manifest import read_manifest
from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint
from megatron_chimed.conversion.hf_generation import stop_ids
from megatron_chimed.data.templates import (
    STORED_KEY,
    Template,
    agreed_template,
    encode_prompts,
    load_template,
    require_fit,
    stored_template,
)
from megatron_chimed.errors import CheckpointError, ConfigError, DataError
from megatron_chimed.generation.prompts import Prompt, read_prompts
from megatron_chimed.model import ModelConfig
from megatron_chimed.rejection.config import RejectionConfig
from megatron_chimed.rejection.external import ExternalAnswer, read_external
from megatron_chimed.rejection.selection_rules import require_categories
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer

TOO_LONG = "prompt_too_long"
NAMED_PROMPTS = 5


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts, and their token ids for the policy."""

    prompts: tuple[Prompt, ...]
    ids: tuple[tuple[int, ...], ...]
    """Token ids of each prompt, up to where its answer starts."""
    skipped: tuple[str, ...] = ()
    """Ids of the prompts that leave no room for an answer; they are in neither list."""

    @property
    def identity(self) -> str:
        """SHA-256 of everything that answers depend on."""
        labels = json.dumps([[p.id, p.category, p.reference] for p in self.prompts])
        return hashlib.sha256(labels.encode() + json.dumps(self.ids).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class RejectionInputs:
    """Everything that a job reads, except the weights."""

    policy: Path
    """The checkpoint before the first round."""
    reward_model: Path
    """The reward model's checkpoint."""
    model: ModelConfig
    """The policy's architecture."""
    tokenizer: Tokenizer
    """The policy's; the reward model's has the same ids."""
    stop_ids: tuple[int, ...]
    """Tokens that end the policy's answers."""
    template: Template
    """The policy's chat template."""
    prompts: PromptSet
    """The prompts that candidates are drawn for."""
    held_out: PromptSet
    """The prompts that the report is about."""
    is_held_out: bool
    """Whether no round trains on `held_out`."""
    external: tuple[ExternalAnswer, ...]
    """Candidates that others wrote."""
    left_out: tuple[str, ...] = ()
    """Ids of skipped prompts, one for each external answer to them."""

    def skipped(self) -> dict[str, tuple[str, ...]]:
        """Prompt ids of the prompts and external answers that are left out, by reason."""
        sets = {"prompts.train": self.prompts, "prompts.held_out": self.held_out}
        found = {f"{TOO_LONG} ({name})": prompts.skipped for name, prompts in sets.items()}
        found["answer by others to a skipped prompt"] = self.left_out
        return {reason: ids for reason, ids in found.items() if ids}

    def identities(self) -> dict[str, str]:
        """Hashes by name: a job resumes only if all of them are the same."""
        external = json.dumps([[item.prompt, item.source, item.text] for item in self.external])
        return {
            "policy": weights_identity(self.policy),
            "reward_model": weights_identity(self.reward_model),
            "template": self.template.identity,
            "prompts.train": self.prompts.identity,
            "prompts.held_out": self.held_out.identity,
            "candidates.external": hashlib.sha256(external.encode()).hexdigest(),
        }


def weights_identity(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's tensors; unlike its manifest's it is the same for equal runs."""
    files = read_manifest(checkpoint).files
    hashes = {name: file.sha256 for name, file in files.items() if name.endswith(".safetensors")}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def open_rejection_inputs(config: RejectionConfig) -> RejectionInputs:
    """Reads everything but the weights.

    Raises:
        CheckpointError: A checkpoint is missing, has no tokenizer, or holds another kind of model.
        ConfigError: The models do not share a tokenizer, or the template is not known.
        DataError: A prompt or an answer is malformed, or no prompt can be used.
    """
    policy, reward_model = _open_models(config)
    model = stored_model_config(policy)
    tokenizer = _shared_tokenizer(policy, reward_model)
    template = agreed_template(
        stored_template(policy.config.get(STORED_KEY), str(policy.directory)),
        load_template(config.template) if config.template else None,
        f"the policy {policy.directory}",
    )
    require_fit(template, tokenizer)
    prompts = read_prompts(
        config.prompts.train,
        id_key=config.prompts.id_key,
        category_key=config.prompts.category_key,
    )
    require_categories(config.selection, (prompt.category for prompt in prompts))
    external = read_external(config.candidates.external, prompts)
    _require_answers(config, prompts)
    limit = model.max_position_embeddings - config.candidates.max_new_tokens
    usable = _prompt_set(prompts, tokenizer, template, limit, name="train")
    indices = {prompt.id: index for index, prompt in enumerate(usable.prompts)}
    held_out = read_prompts(
        config.prompts.held_out or config.prompts.train,
        id_key=config.prompts.id_key,
        category_key=config.prompts.category_key,
    )
    _check_apart(prompts, held_out if config.prompts.held_out else ())
    answers = [(prompts[item.prompt].id, item) for item in external]
    return RejectionInputs(
        policy=policy.directory,
        reward_model=reward_model.directory,
        model=model,
        tokenizer=tokenizer,
        stop_ids=_stop_ids(policy, template, tokenizer),
        template=template,
        prompts=usable,
        held_out=_prompt_set(
            _thinned(held_out, config.evaluation.max_prompts),
            tokenizer,
            template,
            limit,
            name="held_out",
        ),
        is_held_out=bool(config.prompts.held_out),
        external=tuple(
            ExternalAnswer(prompt=indices[name], source=item.source, text=item.text)
            for name, item in answers
            if name in indices
        ),
        left_out=tuple(name for name, _ in answers if name not in indices),
    )


def _stop_ids(
    policy: CheckpointReader, template: Template, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """As in tools/generate.py: where the template ends an answer, and all that the model names."""
    named = stop_ids(policy.config, tokenizer.stop_ids)
    return tuple(dict.fromkeys((*template.stop_ids(tokenizer), *named)))


def _open_models(config: RejectionConfig) -> tuple[CheckpointReader, CheckpointReader]:
    """The policy's checkpoint and the reward model's.

    Raises:
        CheckpointError: One is missing or of the wrong kind.
    """
    policy, reward_model = (
        CheckpointReader(newest_checkpoint(path)) for path in (config.policy, config.reward_model)
    )
    if stored_model_config(policy).head != "lm":
        raise CheckpointError(
            f"policy: {policy.directory} holds a reward model, which writes no text. Give the "
            "fine-tuned language model."
        )
    if stored_model_config(reward_model).head != "score":
        raise CheckpointError(
            f"reward_model: {reward_model.directory} has no reward head, so it scores "
            "nothing. Give a checkpoint of `stage: reward`."
        )
    return policy, reward_model


def _shared_tokenizer(policy: CheckpointReader, reward_model: CheckpointReader) -> Tokenizer:
    tokenizers = []
    for reader in (policy, reward_model):
        if reader.tokenizer_folder is None:
            raise CheckpointError(
                f"{reader.directory} was saved without its tokenizer, so its model cannot read "
                "text. Convert or save it again with its tokenizer."
            )
        tokenizers.append(load_tokenizer(reader.tokenizer_folder))
    # A reward model may have another padding token, which is no part of the identity.
    ours, theirs = (tokenizer.identity for tokenizer in tokenizers)
    if ours != theirs:
        raise ConfigError(
            f"the reward model {reward_model.directory} has another tokenizer "
            f"(identity {theirs[:12]}, {tokenizers[1].vocab_size} ids) than the policy "
            f"{policy.directory} ({ours[:12]}, {tokenizers[0].vocab_size} ids): it was not "
            "trained from this model, and would score tokens that the policy does not write. Train "
            "a reward model from the policy with tools/train.py and `stage: reward`."
        )
    return tokenizers[0]


def _require_answers(config: RejectionConfig, prompts: Sequence[Prompt]) -> None:
    """Refuses `candidates.references` for prompts without reference answers.

    Raises:
        ConfigError: No prompt has one.
    """
    if config.candidates.references and all(prompt.reference is None for prompt in prompts):
        raise ConfigError(
            f"candidates.references is set, but none of the {len(prompts)} prompts comes with an "
            "answer. Remove it, or use prompt files with answers."
        )


def _prompt_set(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, template: Template, limit: int, *, name: str
) -> PromptSet:
    """The prompts of at most `limit` tokens.

    Raises:
        DataError: Every prompt is longer.
    """
    encoded = encode_prompts(tokenizer, template, [prompt.conversation for prompt in prompts])
    fits = [len(ids) <= limit for ids in encoded]
    if not any(fits):
        raise DataError(
            f"none of {len(prompts)} prompts of prompts.{name} leaves room for an answer: the "
            f"shortest has {min(map(len, encoded))} tokens, and with candidates.max_new_tokens at "
            f"most {max(limit, 0)} fit the policy's positions. Lower that, or shorten the prompts."
        )
    return PromptSet(
        prompts=tuple(prompt for prompt, fit in zip(prompts, fits, strict=True) if fit),
        ids=tuple(tuple(ids) for ids, fit in zip(encoded, fits, strict=True) if fit),
        skipped=tuple(prompt.id for prompt, fit in zip(prompts, fits, strict=True) if not fit),
    )


def _thinned(prompts: Sequence[Prompt], most: int) -> Sequence[Prompt]:
    if not most or most >= len(prompts):
        return prompts
    return [prompts[index * len(prompts) // most] for index in range(most)]


def _check_apart(prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    """Refuses held-out prompts that are trained on: the report would be too favourable.

    Raises:
        ConfigError: A prompt is in both sets.
    """
    trained = {prompt.conversation for prompt in prompts}
    shared = [prompt.id for prompt in held_out if prompt.conversation in trained]
    if shared:
        more = ", ..." if len(shared) > NAMED_PROMPTS else ""
        raise ConfigError(
            f"{len(shared)} prompts of prompts.held_out are in prompts.train too: "
            f"{', '.join(shared[:NAMED_PROMPTS])}{more}. Remove them from one of the two, or "
            "unset prompts.held_out: the report is then about fresh answers to the training "
            "prompts."
        )
