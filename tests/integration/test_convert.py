"""Hugging Face folders in and out, against transformers; bad folders; memory."""

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_chimed.checkpoint.reader import CheckpointReader, open_checkpoint
from megatron_chimed.checkpoint.save import Snapshot, save_checkpoint
from megatron_chimed.conversion import hf, hf_config
from megatron_chimed.conversion.hf_verify import checkpoint_logits, verify_logits
from megatron_chimed.engine import TensorShard
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import CheckpointError, DataError, OutputError
from tests.integration.hf_folders import (
    SIZES,
    assert_same_bits,
    edit_json,
    edit_weights,
    file_tensors,
    make_hf,
)
from tests.unit.checkpoint.toy import whole

ROOT = Path(__file__).resolve().parents[2]


def logit_check(reader, folder):
    verify_logits(lambda tokens: checkpoint_logits(reader, tokens), folder)


@pytest.mark.parametrize(
    ("shard", "dtype", "changes"),
    [
        ("30KB", torch.float32, {}),
        ("5GB", torch.bfloat16, {"num_key_value_heads": 4}),
        ("30KB", torch.float16, {"num_key_value_heads": 1, "vocab_size": 131}),
        ("5GB", torch.float32, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("5GB", torch.float32, {"rope_theta": 500.0, "rms_norm_eps": 1e-3}),
    ],
)
def test_round_trip_is_bit_equal_and_computes_the_same(tmp_path, shard, dtype, changes):
    model = make_hf(tmp_path / "hf", shard=shard, dtype=dtype, **changes)
    done = hf.import_hf(tmp_path / "hf", tmp_path / "ckpt", check=logit_check)
    assert done.output == tmp_path / "ckpt" / "iter_0000000"
    assert done.num_parameters == model.num_parameters()
    reader = open_checkpoint(tmp_path / "ckpt")
    assert (reader.iteration, reader.has_optimizer) == (0, False)
    hf.export_hf(tmp_path / "ckpt", tmp_path / "out", max_shard_bytes=40_000, check=logit_check)
    assert_same_bits(file_tensors(tmp_path / "hf"), file_tensors(tmp_path / "out"))
    loaded, problems = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(problems.values()), problems
    assert loaded.dtype is dtype
    ours, theirs = loaded.config.to_dict(), model.config.to_dict()
    for name in ("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", *SIZES):
        assert ours[name] == theirs[name], name
    assert loaded.config.rope_parameters["rope_theta"] == theirs["rope_parameters"]["rope_theta"]
    assert loaded.config.rope_parameters.get("factor") == theirs["rope_parameters"].get("factor")


def test_both_generations_of_config_keys_are_read_and_written(tmp_path):
    old = SIZES | {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = SIZES | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}
    configs = [hf_config.model_config_of(raw) for raw in (old, new)]
    assert configs[0] == configs[1]
    model, problems = configs[0]
    assert problems == []
    assert (model.rope_theta, model.rope_scaling_factor) == (500.0, 2.0)
    written = hf_config.to_hf_config(model, dtype=torch.bfloat16, token_ids={"eos_token_id": 2})
    # transformers 4 reads these three; its first versions refuse a third key in rope_scaling.
    assert written["rope_theta"] == 500.0
    assert written["rope_scaling"] == {"type": "linear", "factor": 2.0}
    assert written["torch_dtype"] == "bfloat16"
    assert hf_config.model_config_of(written) == (model, [])
    modern = LlamaConfig(**written)
    assert modern.rope_parameters["rope_theta"] == 500.0
    assert modern.dtype is torch.bfloat16


def test_epsilon_is_never_read_from_the_stray_key():
    model, _ = hf_config.model_config_of(SIZES | {"rms_norm_eps": 1e-6, "layer_norm_eps": 1e-5})
    assert model.rms_norm_eps == 1e-6


def test_export_of_a_training_checkpoint(tmp_path):
    """Parts from several ranks, moments and master weights beside them, a wanted dtype."""
    weights = make_hf(tmp_path / "hf").state_dict()
    model, _ = hf_config.model_config_of(SIZES)
    shards = []
    for key, tensor in weights.items():
        half = tensor.bfloat16()
        cut = tensor.shape[-1] // 3
        for start, part in ((0, half[..., :cut]), (cut, half[..., cut:])):
            offset = (0,) * (tensor.ndim - 1) + (start,)
            shards.append(
                TensorShard(key=key, global_shape=tuple(tensor.shape), offset=offset, tensor=part)
            )
        shards += [whole(f"{kind}.{key}", tensor) for kind in ("master", "exp_avg", "exp_avg_sq")]
    import dataclasses

    config = {"model": dataclasses.asdict(model)}
    snapshot = Snapshot(iteration=7, shards=shards, state={}, config=config)
    save_checkpoint(tmp_path / "ckpt", snapshot, agreement=Agreement(), run_id="x")
    hf.export_hf(tmp_path / "ckpt", tmp_path / "out")
    stored = {key: tensor.bfloat16() for key, tensor in weights.items()}
    assert_same_bits(stored, file_tensors(tmp_path / "out"))
    hf.export_hf(tmp_path / "ckpt", tmp_path / "fp32", dtype=torch.float32, check=logit_check)
    assert_same_bits(
        {key: tensor.float() for key, tensor in stored.items()}, file_tensors(tmp_path / "fp32")
    )


def permute_rope(tensors):
    """The interleaved order of rotary pairs that other formats use."""
    for key, tensor in tensors.items():
        if key.endswith(("q_proj.weight", "k_proj.weight")):
            pairs = tensor.view(-1, 2, 4, 32).transpose(1, 2)  # head width 8: 2 halves of 4
            tensors[key] = pairs.reshape(tensor.shape).contiguous()


def swap_gate_and_up(tensors):
    for key in [key for key in tensors if key.endswith("gate_proj.weight")]:
        other = key.replace("gate", "up")
        tensors[key], tensors[other] = tensors[other], tensors[key]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: edit_weights(folder, permute_rope),
        lambda folder: edit_weights(folder, swap_gate_and_up),
        lambda folder: edit_json(
            folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5e4}
        ),
        lambda folder: edit_json(folder / "config.json", rms_norm_eps=1e-3),
    ],
    ids=["interleaved RoPE", "gate and up swapped", "RoPE base", "epsilon"],
)
def test_a_model_that_computes_something_else_is_caught(tmp_path, spoil):
    make_hf(tmp_path / "hf", shard="5GB")
    hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")

    def check(reader, folder):
        spoil(folder)
        logit_check(reader, folder)

    with pytest.raises(CheckpointError, match="logits .* differ from ours by"):
        hf.export_hf(tmp_path / "ckpt", tmp_path / "out", check=check)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="padding has leaked"):
        verify_logits(lambda tokens: torch.zeros(*tokens.shape, 384), tmp_path / "hf")
    with pytest.raises(CheckpointError, match="differ from ours by nan"):
        verify_logits(lambda tokens: torch.full((*tokens.shape, 300), torch.nan), tmp_path / "hf")


def test_what_the_model_computes_itself_is_left_out_with_a_note(tmp_path):
    make_hf(tmp_path / "hf", shard="5GB")
    stray = "model.layers.1.self_attn.rotary_emb.inv_freq"
    right = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    edit_weights(tmp_path / "hf", lambda tensors: tensors.update({stray: right}))
    done = hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    assert f"{stray} is computed by the model and was left out" in done.notes
    assert stray not in CheckpointReader(done.output).tensors


def test_export_refuses_what_is_no_language_model_or_overflows(tmp_path):
    make_hf(tmp_path / "hf", shard="5GB")
    hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    reader = open_checkpoint(tmp_path / "ckpt")
    tensors = {key: reader.read(key) for key in reader.tensors}
    tensors["model.norm.weight"][0] = 1e6
    extra = tensors | {"score.weight": torch.ones(1, 32)}
    del extra["lm_head.weight"]
    for iteration, content in ((1, tensors), (2, extra)):
        shards = [whole(key, tensor) for key, tensor in content.items()]
        snapshot = Snapshot(iteration=iteration, shards=shards, state={}, config=reader.config)
        save_checkpoint(tmp_path / "ckpt", snapshot, agreement=Agreement(), run_id="x")
    with pytest.raises(DataError, match=r"not finite in the requested dtype: model\.norm\.weight"):
        hf.export_hf(tmp_path / "ckpt/iter_0000001", tmp_path / "out", dtype=torch.float16)
    with pytest.raises(CheckpointError, match="lm_head.weight is missing; score.weight does not"):
        hf.export_hf(tmp_path / "ckpt/iter_0000002", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="exists already"):
        hf.export_hf(tmp_path / "ckpt/iter_0000000", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


@pytest.fixture(scope="module")
def tokenizer_model() -> bytes:
    """A small BPE model with byte fallback, 290 pieces."""
    words = ["发热", "咳嗽", "患者", "入院", "血压", "头痛", "fever", "cough", "mmHg", "120/80"]
    lines = (" ".join(words[(i * k) % 10] for k in range(1, 6)) for i in range(200))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def add_tokenizer(folder, model: bytes):
    (folder / "tokenizer.model").write_bytes(model)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    added = {"<human>": size, "<bot>": size + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return size + 2


def test_the_tokenizer_travels_with_the_weights(tmp_path, tokenizer_model, monkeypatch):
    make_hf(tmp_path / "hf", shard="5GB")
    size = add_tokenizer(tmp_path / "hf", tokenizer_model)
    done = hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    assert done.notes == ()
    reader = CheckpointReader(done.output)
    assert (reader.tokenizer_folder / "tokenizer.model").read_bytes() == tokenizer_model
    assert len(reader.state["tokenizer_identity"]) == 64
    hf.export_hf(tmp_path / "ckpt", tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("<bot>", add_special_tokens=False)["input_ids"] == [size - 1]
    config = LlamaConfig.from_pretrained(tmp_path / "out")
    assert (config.bos_token_id, config.eos_token_id, config.vocab_size) == (1, 2, 300)

    from megatron_chimed.tokenizer import transformers_check

    def disagree(folder):
        raise DataError(f"{folder}: transformers disagrees")

    monkeypatch.setattr(transformers_check, "check_transformers_agreement", disagree)
    with pytest.raises(DataError, match="transformers disagrees"):
        hf.export_hf(tmp_path / "ckpt", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path, tokenizer_model):
    make_hf(tmp_path / "hf", vocab_size=291)
    size = add_tokenizer(tmp_path / "hf", tokenizer_model)
    assert size == 292
    with pytest.raises(DataError, match="has 292 ids, the model embeds only 291"):
        hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")


def test_a_real_tokenizer_survives_the_round_trip(tmp_path, real_data):
    make_hf(tmp_path / "hf", shard="5GB", vocab_size=32002)
    add_tokenizer(tmp_path / "hf", (real_data / "llama2_tokenizer.model").read_bytes())
    hf.import_hf(tmp_path / "hf", tmp_path / "ckpt")
    hf.export_hf(tmp_path / "ckpt", tmp_path / "out")
    assert_same_bits(file_tensors(tmp_path / "hf"), file_tensors(tmp_path / "out"))


MEMORY_SCRIPT = """
    import sys, threading, time
    from pathlib import Path
    import torch
    from megatron_chimed.conversion import hf

    peak, running = 0, True

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def watch():
        global peak
        while running:
            peak = max(peak, resident())
            time.sleep(0.001)

    folder = sys.argv[1]
    start = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    hf.import_hf(f"{folder}/hf", f"{folder}/ckpt")
    hf.export_hf(f"{folder}/ckpt", f"{folder}/out", max_shard_bytes=1 << 30)
    running = False
    watcher.join()
    print(peak - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    """The model is 28 times its largest tensor and lies in one file each way.

    Allowed are two such tensors (a copy, its mapped source) and 64 MiB: hash buffers of 8 MiB and
    what malloc keeps of freed blocks below 32 MiB. A kept mapping or dict would show the model.
    """
    make_hf(
        tmp_path / "hf", shard="5GB", vocab_size=4096, hidden_size=512, intermediate_size=4096,
        num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
    )  # fmt: skip
    total = (tmp_path / "hf" / "model.safetensors").stat().st_size
    largest = 4096 * 512 * 4
    assert total > 28 * largest
    script = textwrap.dedent(MEMORY_SCRIPT)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    growth = int(done.stdout)
    print(
        f"resident memory grew by {growth / 2**20:.0f} MiB for {total / 2**20:.0f} MiB of weights"
    )
    assert growth < 2 * largest + (64 << 20)
