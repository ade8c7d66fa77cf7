"""What rejection sampling starts from, opened and checked before anything is drawn."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.checkpoint.load import stored_model_config
from megatron_chimed.checkpoint.manifest import read_manifest
from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint
from megatron_chimed.conversion.hf_tokenizer import with_padding
from megatron_chimed.data.templates import (
    STORED_KEY,
    Template,
    agreed_template,
    encode_prompts,
    load_template,
    stored_template,
)
from megatron_chimed.errors import CheckpointError, ConfigError, DataError
from megatron_chimed.generation.prompts import Prompt, read_prompts
from megatron_chimed.model import ModelConfig
from megatron_chimed.rejection.config import RejectionConfig
from megatron_chimed.rejection.external import External, read_external
from megatron_chimed.rejection.selection import require_categories
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer

TOO_LONG = "prompt_too_long"
NAMED_PROMPTS = 5


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts and what the policy sees of them."""

    prompts: tuple[Prompt, ...]
    ids: tuple[tuple[int, ...], ...]
    """Token ids of each, up to where its answer begins."""
    skipped: tuple[str, ...] = ()
    """Ids of the prompts that left no room for an answer; they are in neither list."""

    @property
    def identity(self) -> str:
        """SHA-256 of all that answers depend on."""
        told = json.dumps([[p.id, p.category, p.reference] for p in self.prompts])
        return hashlib.sha256(told.encode() + json.dumps(self.ids).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Materials:
    """The models, and what they are asked."""

    policy: Path
    """The checkpoint before the first round."""
    reward_model: Path
    """The judge's checkpoint."""
    model: ModelConfig
    """The policy's architecture."""
    tokenizer: Tokenizer
    """The policy's, and so the judge's."""
    stop_ids: tuple[int, ...]
    """Where the policy's answers end."""
    template: Template
    """The policy's."""
    prompts: PromptSet
    """Those that candidates are drawn for."""
    held_out: PromptSet
    """Those of the report."""
    is_held_out: bool
    """Whether these are not trained on."""
    external: tuple[External, ...]
    """Answers by others."""
    left_out: tuple[str, ...] = ()
    """Ids of skipped prompts, one for each answer by others to them."""

    def skipped(self) -> dict[str, tuple[str, ...]]:
        """Ids of the prompts of what takes no part, by reason."""
        parts = {"prompts.train": self.prompts, "prompts.held_out": self.held_out}
        found = {f"{TOO_LONG} ({name})": prompts.skipped for name, prompts in parts.items()}
        found["answer by others to a skipped prompt"] = self.left_out
        return {reason: ids for reason, ids in found.items() if ids}

    def identities(self) -> dict[str, str]:
        """Hashes by what they are of: a job goes on only where all are the same."""
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
    """SHA-256 of a checkpoint's tensors: the same for equal runs, unlike that of its manifest."""
    files = read_manifest(checkpoint).files
    told = {name: file.sha256 for name, file in files.items() if name.endswith(".safetensors")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def open_materials(config: RejectionConfig) -> Materials:
    """Reads everything but the weights.

    Raises:
        CheckpointError: A checkpoint is missing, has no tokenizer, or is of the wrong kind.
        ConfigError: The models do not share a tokenizer, or the template is not known.
        DataError: A malformed prompt or answer, or no prompt that can be used.
    """
    policy, judge = _open_models(config)
    model = stored_model_config(policy)
    tokenizer = _shared_tokenizer(policy, judge)
    template = agreed_template(
        stored_template(policy.config.get(STORED_KEY), str(policy.directory)),
        load_template(config.template) if config.template else None,
        f"the policy {policy.directory}",
    )
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
    places = {prompt.id: place for place, prompt in enumerate(usable.prompts)}
    held_out = read_prompts(
        config.prompts.held_out or config.prompts.train,
        id_key=config.prompts.id_key,
        category_key=config.prompts.category_key,
    )
    _check_apart(prompts, held_out if config.prompts.held_out else ())
    answers = [(prompts[item.prompt].id, item) for item in external]
    return Materials(
        policy=policy.directory,
        reward_model=judge.directory,
        model=model,
        tokenizer=tokenizer,
        # What fine-tuning on the chosen ends answers with, and what their likelihoods count.
        stop_ids=(tokenizer.eos_id,),
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
            External(prompt=places[name], source=item.source, text=item.text)
            for name, item in answers
            if name in places
        ),
        left_out=tuple(name for name, _ in answers if name not in places),
    )


def _open_models(config: RejectionConfig) -> tuple[CheckpointReader, CheckpointReader]:
    """The policy's checkpoint and the reward model's.

    Raises:
        CheckpointError: One is missing or of the wrong kind.
    """
    policy, judge = (
        CheckpointReader(newest_checkpoint(path)) for path in (config.policy, config.reward_model)
    )
    if stored_model_config(policy).head != "lm":
        raise CheckpointError(
            f"policy: {policy.directory} holds a reward model, which writes no text. Give the "
            "fine-tuned language model."
        )
    if stored_model_config(judge).head != "score":
        raise CheckpointError(
            f"reward_model: {judge.directory} has no reward head, so it scores nothing. Give a "
            "checkpoint of `stage: reward`."
        )
    return policy, judge


def _shared_tokenizer(policy: CheckpointReader, judge: CheckpointReader) -> Tokenizer:
    tokenizers = []
    for reader in (policy, judge):
        if reader.tokenizer_folder is None:
            raise CheckpointError(
                f"{reader.directory} was saved without its tokenizer, so no text can be given to "
                "it. Convert or save it again with its tokenizer."
            )
        tokenizers.append(load_tokenizer(reader.tokenizer_folder))
    # A reward model's tokenizer may have been given a token to pad with; its ids are the same.
    ours, theirs = (with_padding(tokenizer).identity for tokenizer in tokenizers)
    if ours != theirs:
        raise ConfigError(
            f"the reward model {judge.directory} has another tokenizer (identity {theirs[:12]}, "
            f"{tokenizers[1].vocab_size} ids) than the policy {policy.directory} ({ours[:12]}, "
            f"{tokenizers[0].vocab_size} ids): it was not trained from this model, and would judge "
            "pieces that the policy does not write. Train a reward model from the policy with "
            "tools/train.py and `stage: reward`."
        )
    return tokenizers[0]


def _require_answers(config: RejectionConfig, prompts: Sequence[Prompt]) -> None:
    """Refuses to choose among the prompts' own answers where they have none.

    Raises:
        ConfigError: They have none.
    """
    if config.candidates.references and all(prompt.reference is None for prompt in prompts):
        raise ConfigError(
            f"candidates.references is set, but none of the {len(prompts)} prompts comes with an "
            "answer. Leave it out, or give files that hold answers."
        )


def _prompt_set(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, template: Template, limit: int, *, name: str
) -> PromptSet:
    """The prompts with at most `limit` tokens.

    Raises:
        DataError: None of them.
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
    return [prompts[place * len(prompts) // most] for place in range(most)]


def _check_apart(prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    """Refuses prompts that are trained on and held out: their report would flatter.

    Raises:
        ConfigError: There are some.
    """
    trained = {prompt.conversation for prompt in prompts}
    shared = [prompt.id for prompt in held_out if prompt.conversation in trained]
    if shared:
        more = ", ..." if len(shared) > NAMED_PROMPTS else ""
        raise ConfigError(
            f"{len(shared)} prompts of prompts.held_out are in prompts.train too: "
            f"{', '.join(shared[:NAMED_PROMPTS])}{more}. Take them out of one of them, or leave "
            "prompts.held_out out: the report is then about fresh answers to the prompts of "
            "training."
        )
