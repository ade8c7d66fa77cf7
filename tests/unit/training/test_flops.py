"""The FLOPs that a run reports are those of the weights that its model has."""

import pytest

from megatron_chimed.model import weight_shards
from megatron_chimed.training import loop
from tests.distributed import jobs
from tests.unit.training import run


@pytest.mark.parametrize("head", ["lm", "score"])
@pytest.mark.parametrize(
    "lora", [{}, {"rank": 4}, {"rank": 2, "targets": ("k_proj", "o_proj", "down_proj")}]
)
def test_flops_are_of_the_weights_that_the_model_has(tmp_path, lora, head):
    with run.job(tmp_path, model={"head": head}, lora=lora) as job:
        (chunk,) = job.chunks
        trained = frozen = 0
        for shard in weight_shards(job.chunks):
            if shard.tensor.dim() > 1 and shard.key != "model.embed_tokens.weight":
                if owner_of(chunk, shard.tensor).requires_grad:
                    trained += shard.tensor.numel()
                else:
                    frozen += shard.tensor.numel()
        norms = (2 * jobs.MODEL.num_layers + 1) * jobs.MODEL.hidden_size
        attention = 6 * jobs.MODEL.num_layers * jobs.MODEL.hidden_size * jobs.SEQ_LENGTH
        expected = 6 * trained + 4 * frozen + attention
        excess = loop._flops_per_token(job.config) - expected
        assert excess == norms * (4 if lora else 6), "norms are counted as if they multiplied"


def test_flops_follow_wide_heads_and_a_tied_head(tmp_path):
    """Attention costs heads x head width, which is twice the hidden size here."""
    model = {"kv_channels": 16, "tie_word_embeddings": True}
    with run.job(tmp_path, model=model) as job:
        weights = [shard.tensor for shard in weight_shards(job.chunks)]
        multiplied = sum(tensor.numel() for tensor in weights)  # the embedding is the head
        width = 16 * jobs.MODEL.num_attention_heads
        attention = jobs.MODEL.num_layers * width * jobs.SEQ_LENGTH
        assert width == 2 * jobs.MODEL.hidden_size
        assert loop._flops_per_token(job.config) == 6 * (multiplied + attention)


def owner_of(chunk, shard):
    """The parameter that a shard is a view of."""
    at = shard.untyped_storage().data_ptr()
    return next(p for p in chunk.parameters() if p.untyped_storage().data_ptr() == at)
