"""Every refusal of a layout names the flag and a value that works: the proposals are tried."""

import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.engine import ModelSizes, ParallelConfig, check_batch, plan_layout
from megatron_chimed.errors import ConfigError

SIZES = ModelSizes(
    num_layers=12,
    num_attention_heads=24,
    num_key_value_heads=8,
    ffn_hidden_size=96,
    seq_length=64,
)
PROPOSAL = re.compile(r"--(\w+)\.(\w+) (\[[\d,]+\]|\d+|true|false|null)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """All that a layout is checked against."""

    world_size: int = 1
    parallel: ParallelConfig = ParallelConfig()
    sizes: ModelSizes = SIZES
    micro_batch_size: int = 1
    global_batch_size: int = 720

    def plan(self):
        layout = plan_layout(self.parallel, world_size=self.world_size, sizes=self.sizes)
        return layout, check_batch(
            layout,
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
        )

    def with_proposals(self, message):
        """The same after taking every `--section.field value` of a message."""
        asked = self
        proposals = PROPOSAL.findall(message)
        assert proposals, f"no value is proposed: {message}"
        for section, name, text in proposals:
            value = tuple(json.loads(text)) if "[" in text else json.loads(text)
            if section == "parallel":
                parallel = dataclasses.replace(asked.parallel, **{name: value})
                asked = dataclasses.replace(asked, parallel=parallel)
            elif section == "data":
                sizes = dataclasses.replace(asked.sizes, **{name: value})
                asked = dataclasses.replace(asked, sizes=sizes)
            else:
                asked = dataclasses.replace(asked, **{name: value})
        return asked


def asked(world_size=1, batch=(1, 720), sizes=None, **parallel):
    return Asked(
        world_size=world_size,
        parallel=ParallelConfig(**parallel),
        sizes=dataclasses.replace(SIZES, **(sizes or {})),
        micro_batch_size=batch[0],
        global_batch_size=batch[1],
    )


CASES = {
    "ranks": (asked(6, tensor_parallel_size=4), "6 ranks cannot be split", "tensor_parallel_size"),
    "ranks of a pipeline": (
        asked(9, tensor_parallel_size=2, pipeline_parallel_size=2),
        "2 x 2 = 4. Start a multiple of 4 ranks",
        "pipeline_parallel_size",
    ),
    "heads": (
        asked(16, tensor_parallel_size=16),
        "num_attention_heads (24) is not divisible by tensor_parallel_size (16)",
        "tensor_parallel_size",
    ),
    "key-value heads": (
        asked(12, tensor_parallel_size=12),
        "num_key_value_heads (8) is not divisible by tensor_parallel_size (12)",
        "tensor_parallel_size",
    ),
    "ffn width": (
        asked(8, sizes={"ffn_hidden_size": 100}, tensor_parallel_size=8),
        "ffn_hidden_size (100) is not divisible by tensor_parallel_size (8)",
        "tensor_parallel_size",
    ),
    "sequence": (
        asked(8, sizes={"seq_length": 65}, tensor_parallel_size=8, sequence_parallel=True),
        "seq_length (65) is not divisible by tensor_parallel_size (8)",
        "seq_length",
    ),
    "sequence of one rank": (
        asked(2, sequence_parallel=True),
        "splits the sequence over tensor-parallel ranks, and there is one",
        "sequence_parallel",
    ),
    "chunks of one stage": (
        asked(2, virtual_pipeline_parallel_size=3),
        "is 3, but there is one pipeline stage to interleave",
        "virtual_pipeline_parallel_size",
    ),
    "gather without shards": (
        asked(2, overlap_param_gather=True, overlap_grad_reduce=True),
        "gathers the shards of the distributed optimizer, which is off",
        "distributed_optimizer",
    ),
    "gather without buckets": (
        asked(2, overlap_param_gather=True, distributed_optimizer=True),
        "works on the buckets of overlap_grad_reduce, which is off",
        "overlap_grad_reduce",
    ),
    "layers": (
        asked(8, pipeline_parallel_size=8),
        "12 layers do not split evenly",
        "pipeline_parallel_size",
    ),
    "layers over chunks": (
        asked(4, pipeline_parallel_size=4, virtual_pipeline_parallel_size=2),
        "virtual_pipeline_parallel_size = 8 chunks",
        "virtual_pipeline_parallel_size",
    ),
    "split of another length": (
        asked(4, pipeline_parallel_size=4, pipeline_split=(4, 4, 4)),
        "[4, 4, 4] has 3 entries that add up to 12; it needs 4 entries",
        "pipeline_split",
    ),
    "split of another sum": (
        asked(2, pipeline_parallel_size=2, pipeline_split=(6, 7)),
        "[6, 7] has 2 entries that add up to 13",
        "pipeline_split",
    ),
    "split with an empty chunk": (
        asked(2, pipeline_parallel_size=2, pipeline_split=(0, 12)),
        "of at least 1",
        "pipeline_split",
    ),
    "batch": (
        asked(2, batch=(3, 10)),
        "global_batch_size (10) is not a multiple of micro_batch_size x data_parallel_size = 3 x 2",
        "global_batch_size",
    ),
    "batch below one": (asked(4, batch=(2, 1)), "global_batch_size (1)", "global_batch_size"),
    "interleaved batch": (
        asked(4, batch=(2, 20), pipeline_parallel_size=4, virtual_pipeline_parallel_size=3),
        "x pipeline_parallel_size = 2 x 1 x 4 = 8, which interleaved stages need",
        "global_batch_size",
    ),
    "interleaved batch that divides nothing": (
        asked(4, batch=(2, 21), pipeline_parallel_size=4, virtual_pipeline_parallel_size=3),
        "global_batch_size (21)",
        "global_batch_size",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_names_the_flag_and_a_value_that_works(name):
    wrong, what, flag = CASES[name]
    with pytest.raises(ConfigError) as caught:
        wrong.plan()
    message = str(caught.value)
    assert what in message
    assert flag in [found for _, found, _ in PROPOSAL.findall(message)]
    wrong.with_proposals(message).plan()


def test_more_chunks_than_layers_cannot_be_split():
    wrong = asked(16, pipeline_parallel_size=16, pipeline_split=(1,) * 12)
    with pytest.raises(ConfigError, match="12 layers") as caught:
        wrong.plan()
    wrong.with_proposals(str(caught.value)).plan()


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("tensor_parallel_size", 0, "Set it to 1 or more"),
        ("pipeline_parallel_size", -2, "Set it to 1 or more"),
        ("virtual_pipeline_parallel_size", 0, "Set it to 1 or more"),
        ("timeout_seconds", 0.0, "can hang for ever. Set it above 0"),
    ],
)
def test_sizes_below_one_are_refused(field, value, what):
    with pytest.raises(ConfigError, match=what) as caught:
        ParallelConfig(**{field: value})
    assert f"--parallel.{field} is {value}" in str(caught.value)


@st.composite
def valid_layouts(draw):
    """Layouts that work, of uneven numbers too."""
    tensor, data = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    pipeline = draw(st.integers(1, 5))
    chunks = draw(st.integers(1, 3)) if pipeline > 1 else 1
    kv_heads = tensor * draw(st.integers(1, 3))
    micro_batch_size = draw(st.integers(1, 3))
    sizes = ModelSizes(
        num_layers=pipeline * chunks * draw(st.integers(1, 3)),
        num_attention_heads=kv_heads * draw(st.integers(1, 3)),
        num_key_value_heads=kv_heads,
        ffn_hidden_size=tensor * draw(st.integers(1, 9)),
        seq_length=tensor * draw(st.integers(1, 20)),
    )
    return Asked(
        world_size=tensor * pipeline * data,
        parallel=ParallelConfig(
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            virtual_pipeline_parallel_size=chunks,
            sequence_parallel=tensor > 1 and draw(st.booleans()),
            distributed_optimizer=draw(st.booleans()),
        ),
        sizes=sizes,
        micro_batch_size=micro_batch_size,
        global_batch_size=micro_batch_size * data * pipeline * draw(st.integers(1, 4)),
    )


@settings(max_examples=300, deadline=None)
@given(valid_layouts())
def test_a_layout_that_divides_is_taken(right):
    layout, num_microbatches = right.plan()
    config = right.parallel
    assert layout.world_size == (
        layout.data_parallel_size * config.tensor_parallel_size * config.pipeline_parallel_size
    )
    assert (
        num_microbatches * right.micro_batch_size * layout.data_parallel_size
        == right.global_batch_size
    )
    chunks = range(len(layout.layers_per_chunk))
    assert [i for c in chunks for i in layout.chunk_layers(c)] == [*range(right.sizes.num_layers)]


@settings(max_examples=500, deadline=None)
@given(valid_layouts(), st.sampled_from(["tensor", "sequence", "batch", "split"]), st.data())
def test_one_wrong_number_is_mended_by_its_message(right, what, data):
    """Sizes that a layout divides stay as they are, so a fault has one cause and one mending."""
    number = data.draw(st.integers(1, 40))
    if what == "tensor":
        parallel = dataclasses.replace(right.parallel, tensor_parallel_size=number)
        wrong = dataclasses.replace(right, parallel=parallel)
    elif what == "sequence":
        sizes = dataclasses.replace(right.sizes, seq_length=number)
        wrong = dataclasses.replace(right, sizes=sizes)
    elif what == "batch":
        wrong = dataclasses.replace(right, global_batch_size=number)
    else:
        split = tuple(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=8)))
        parallel = dataclasses.replace(right.parallel, pipeline_split=split)
        wrong = dataclasses.replace(right, parallel=parallel)
    if what in ("tensor", "split"):  # a batch that every layout of up to 120 ranks divides
        batch_size = wrong.micro_batch_size * 64 * 27 * 25
        wrong = dataclasses.replace(wrong, global_batch_size=batch_size)
    try:
        wrong.plan()
    except ConfigError as error:
        mended = wrong.with_proposals(str(error))
        assert mended != wrong
        mended.plan()


@settings(max_examples=500, deadline=None)
@given(
    world_size=st.integers(1, 48),
    tensor=st.integers(1, 12),
    pipeline=st.integers(1, 8),
    chunks=st.integers(1, 4),
    flags=st.tuples(*[st.booleans()] * 4),
    layers=st.integers(1, 40),
    heads=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    widths=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    batch=st.tuples(st.integers(1, 4), st.integers(1, 100)),
)
def test_following_the_messages_ends_at_a_layout_that_works(
    world_size, tensor, pipeline, chunks, flags, layers, heads, widths, batch
):
    """Whatever was asked; there are at most as many messages as there are kinds of fault."""
    wanted = Asked(
        world_size=world_size,
        parallel=ParallelConfig(
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            virtual_pipeline_parallel_size=chunks,
            sequence_parallel=flags[0],
            distributed_optimizer=flags[1],
            overlap_grad_reduce=flags[2],
            overlap_param_gather=flags[3],
        ),
        sizes=ModelSizes(
            num_layers=layers,
            num_attention_heads=heads[0] * heads[1],
            num_key_value_heads=heads[0],
            ffn_hidden_size=widths[0],
            seq_length=widths[1],
        ),
        micro_batch_size=batch[0],
        global_batch_size=batch[1],
    )
    messages = []
    for _ in range(8):
        try:
            wanted.plan()
            return
        except ConfigError as error:
            messages.append(str(error))
            wanted = wanted.with_proposals(messages[-1])
    raise AssertionError("\n".join(messages))


def test_describe():
    plain = plan_layout(ParallelConfig(), world_size=3, sizes=SIZES)
    assert plain.describe() == "TP1 x PP1 x DP3"
    config = ParallelConfig(
        tensor_parallel_size=2,
        pipeline_parallel_size=3,
        virtual_pipeline_parallel_size=2,
        sequence_parallel=True,
        distributed_optimizer=True,
    )
    layout = plan_layout(config, world_size=12, sizes=SIZES)
    assert layout.describe() == ("TP2 x PP3 x VPP2 x DP2 +sequence parallel +distributed optimizer")


def test_uneven_chunks_hold_consecutive_layers():
    config = ParallelConfig(pipeline_parallel_size=3, pipeline_split=(5, 4, 3))
    layout = plan_layout(config, world_size=3, sizes=SIZES)
    assert [layout.chunk_layers(c) for c in range(3)] == [range(5), range(5, 9), range(9, 12)]


def test_interleaved_chunks_are_in_pipeline_order():
    config = ParallelConfig(
        pipeline_parallel_size=2,
        virtual_pipeline_parallel_size=2,
        pipeline_split=(4, 2, 5, 1),
    )
    layout = plan_layout(config, world_size=2, sizes=SIZES)
    assert [[*layout.chunk_layers(c)] for c in (0, 2)] == [[0, 1, 2, 3], [6, 7, 8, 9, 10]]


@pytest.mark.parametrize(
    ("batch", "parallel", "world_size", "num_microbatches"),
    [
        ((1, 1), {}, 1, 1),
        ((2, 24), {}, 3, 4),
        ((3, 24), {"tensor_parallel_size": 4}, 8, 4),
        ((1, 8), {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2}, 4, 4),
    ],
)
def test_micro_batches_of_a_step(batch, parallel, world_size, num_microbatches):
    assert asked(world_size, batch=batch, **parallel).plan()[1] == num_microbatches
