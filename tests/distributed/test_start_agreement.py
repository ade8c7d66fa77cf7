"""Ranks start together only if all were given the same; they share the hashing of their data."""

import os
from pathlib import Path

import pytest
import yaml

from megatron_chimed.errors import ChimedError
from tests.integration.commands import make_project, read_run_config

WIDE = {"training.global_batch_size": 8}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A tokenizer, data and a configuration; and others to mix up."""
    folder = tmp_path_factory.mktemp("together") / "project"
    make_project(folder, lines=[f"{n} mg twice a day, with water." for n in range(60)])
    for suffix in (".bin", ".idx", ".meta.json"):
        content = (folder / f"data{suffix}").read_bytes()
        (folder / f"same{suffix}").write_bytes(content)
        (folder / f"damaged{suffix}").write_bytes(content)
        if suffix != ".meta.json":
            (folder / f"stock{suffix}").write_bytes(content)
            (folder / f"other_stock{suffix}").write_bytes(content)
    for name in ("damaged", "other_stock"):
        path = folder / f"{name}.bin"
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    return folder


def started(rank, world_size, store_path, folder, of_rank):
    """Starts a run of one step with settings of each rank; the error, or the verified files."""
    import torch.distributed as dist

    from megatron_chimed import engine
    from megatron_chimed.run import train_stage
    from megatron_chimed.training import data_verification
    from megatron_chimed.training.start_agreement import open_together

    hashed, original = [], data_verification.verify_unit

    def remembering(unit):
        hashed.append(unit.file.path.name)
        return original(unit)

    data_verification.verify_unit = remembering
    words = [f"--{key}={value}" for key, value in of_rank[rank].items()]
    config = read_run_config(
        "--config", Path(folder, "run.yaml"), "--training.train_steps", 1, *words
    )
    store = dist.FileStore(store_path, world_size)
    try:
        agreement = engine.connect(
            rank=rank,
            world_size=world_size,
            timeout_seconds=60,
            store=dist.PrefixStore("connect", store),
        )
        inputs = open_together(config, agreement)
        ranks = engine.join(
            inputs.layout, rank=rank, local_rank=rank, store=store, agreement=agreement
        )
        train_stage(inputs.config, inputs, ranks)
        return hashed
    except ChimedError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        data_verification.verify_unit = original
        engine.leave()


def start(gloo_pool, tmp_path, project, *of_rank):
    """What every rank says, after a check that it is the same where one says that it failed."""
    common = {"output-dir": tmp_path / "run"}
    settings = [{**common, **each} for each in of_rank]
    answers = gloo_pool.run(started, len(settings), str(project), settings, init=False)
    failed = [answer for answer in answers if isinstance(answer, str)]
    assert not failed or failed == [answers[0]] * len(settings), answers
    return answers


FIELDS = {
    "learning rate": ({"optim.lr": 0.5}, "optim.lr is 0.001 on rank 0 (HOST) and 0.5 on rank 1"),
    "seed": ({"training.seed": 7}, "training.seed is 1234 on rank 0 (HOST) and 7 on rank 1"),
    "layout": (
        {"parallel.tensor_parallel_size": 2},
        "parallel.tensor_parallel_size is 1 on rank 0 (HOST) and 2 on rank 1",
    ),
    "folder": ({"output-dir": "elsewhere"}, "output_dir is "),
    "kernels": ({"kernels.backend": "reference"}, 'kernels.backend is "auto" on rank 0'),
    "data": ({"data.train": "PROJECT/stock"}, 'data.train[0] is "sha256 '),
    "missing data": ({"data.train": "PROJECT/gone"}, "rank 1: data 'PROJECT/gone': "),
    "damaged data": ({"data.train": "PROJECT/damaged"}, "PROJECT/damaged.bin: sha256 is "),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_difference_is_one_error_on_all_ranks(gloo_pool, tmp_path, project, name):
    changes, message = FIELDS[name]
    changes = {key: str(v).replace("PROJECT", str(project)) for key, v in changes.items()}
    said, *_ = start(gloo_pool, tmp_path, project, {}, changes)
    message = message.replace("PROJECT", str(project)).replace("HOST", os.uname().nodename)
    assert message in said, said
    kind = "DataError" if name == "damaged data" else "ConfigError"
    assert said.startswith(f"{kind}: ") and not (tmp_path / "run").exists()


def test_stock_files_with_other_bytes_are_found_by_their_hashes(gloo_pool, tmp_path, project):
    paths = [{"data.train": project / name} for name in ("stock", "other_stock")]
    said, *_ = start(gloo_pool, tmp_path, project, *paths)
    assert said.startswith("ConfigError: the ranks do not agree: data.train[0].bin is "), said


def test_ranks_share_the_files_that_they_see_and_no_others(gloo_pool, tmp_path, project):
    """Two ranks see one copy, two another, as on two hosts with disks of their own."""
    paths = [{"data.train": project / name} for name in ("data", "data", "same", "same")]
    answers = start(gloo_pool, tmp_path, project, *[path | WIDE for path in paths])
    assert sorted(answers[0] + answers[1]) == ["data.bin", "data.idx"]
    assert sorted(answers[2] + answers[3]) == ["same.bin", "same.idx"]
    assert [len(answer) for answer in answers] == [1] * 4
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["data"]["train"] == str(project / "data")


def joined(rank, world_size, store_path, changed_rank):
    """What `join` says where one rank runs other code."""
    import torch.distributed as dist

    from megatron_chimed import engine
    from megatron_chimed.engine import versions
    from tests.distributed import jobs

    original = versions.source_digest
    if rank == changed_rank:
        versions.source_digest = lambda: "f" * 64
    layout, store = jobs.make_layout(jobs.MODEL, {}, world_size), dist.FileStore(store_path)
    try:
        engine.join(layout, rank=rank, local_rank=rank, store=store)
    except ChimedError as error:
        return str(error)
    finally:
        versions.source_digest = original
        engine.leave()
    return None


def test_other_code_on_one_rank_is_named(gloo_pool):
    [said] = set(gloo_pool.run(joined, 4, 2, init=False))
    assert "the ranks do not agree: version of megatron_chimed is " in said
    assert f"on ranks 0, 1, 3 ({os.uname().nodename}) and " in said
    assert f"sources {'f' * 64}" in said and "on rank 2 (" in said
