"""A world of one rank in the test's own process, and tiny models in it."""

import contextlib
import dataclasses

import torch

from megatron_chimed import engine
from megatron_chimed.model import ModelConfig, TokenLoss, build_chunks, initialize_weights

# Grouped-query heads and a vocabulary that needs padding.
MODEL = ModelConfig(
    vocab_size=300,
    hidden_size=64,
    num_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    ffn_hidden_size=96,
    max_position_embeddings=64,
)


def layout_of(model=MODEL, world_size=1, seq_length=64, **parallel):
    """A checked layout for a model."""
    return engine.plan_layout(
        engine.ParallelConfig(**parallel),
        world_size=world_size,
        sizes=engine.ModelSizes(
            num_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.num_key_value_heads,
            ffn_hidden_size=model.ffn_hidden_size,
            seq_length=seq_length,
        ),
    )


@contextlib.contextmanager
def one_rank(**parallel):
    """Joins a job of this process alone."""
    ranks = engine.join(layout_of(**parallel), rank=0, local_rank=0)
    try:
        engine.seed_ranks(1234, ranks)
        yield ranks
    finally:
        engine.leave()


def settings_of(ranks, *, hidden_size=MODEL.hidden_size, precision="fp32"):
    """Engine settings of a job."""
    return engine.engine_settings(ranks.layout, hidden_size=hidden_size, precision=precision)


def whole_model(ranks, *, seed=5, precision="fp32", **changes):
    """`MODEL`, with changes, on one rank and with weights."""
    config = dataclasses.replace(MODEL, **changes)
    settings = settings_of(ranks, hidden_size=config.hidden_size, precision=precision)
    (model,) = build_chunks(config, settings=settings, ranks=ranks)
    initialize_weights(model, seed)
    return model


def token_losses(ranks, logits, labels):
    """The loss of each token [b, s] under `MODEL`'s vocabulary."""
    return TokenLoss(MODEL, group=ranks.tensor_group)(logits, labels)


def token_batch(shape=(2, 24), seed=0, vocab_size=MODEL.vocab_size):
    """Tokens, positions and labels [b, s]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size, (shape[0], shape[1] + 1), generator=generator)
    positions = torch.arange(shape[1]).expand(shape[0], -1)
    return tokens[:, :-1].contiguous(), positions, tokens[:, 1:].contiguous()
