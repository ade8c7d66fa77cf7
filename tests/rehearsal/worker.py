"""Rehearses cases in a process of its own; see `fake_cuda`.

    python -m tests.rehearsal.worker LIBRARY

reads names of cases from standard input and answers each with a line of JSON.
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from tests.rehearsal import fake_cuda

    fake_cuda.load(sys.argv[1])  # before torch

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_chimed import engine
from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.data.datasets.config import Datasets
from megatron_chimed.engine import Ranks, one_stream
from megatron_chimed.engine import ranks as engine_ranks
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.generation import session as generation_session
from megatron_chimed.generation.decoder import Decoder
from megatron_chimed.generation.requests import Request
from megatron_chimed.model import TokenLoss
from megatron_chimed.observe.timers import Stopwatch
from megatron_chimed.run import _make_objective
from megatron_chimed.training import loop, state
from megatron_chimed.training.job import Job, JobConfig, build_job
from megatron_chimed.training.selftest import check_isolation
from megatron_chimed.training.validation import validate
from tests.rehearsal.cases import CASES, Case, parse
from tests.rehearsal.watch import Watch


class Samples:
    """Samples of the stage's arrays, as its dataset gives them; values hardly matter."""

    def __init__(self, config: RunConfig, *, packed: bool) -> None:
        self.samples_per_epoch = config.training.global_batch_size
        s = config.data.seq_length
        tokens, place = np.arange(s) % config.model.known_vocab_size, np.arange(s)
        self._sample = {
            "tokens": tokens,
            "labels": tokens,
            "loss_mask": np.ones(s, np.float32),
            "position_ids": place,
        }
        if packed:
            self._sample["segment_ids"] = (place >= s // 2).astype(np.int32)
        if config.stage in ("reward", "dpo"):
            ends = place % (s // 4) == s // 4 - 1
            self._sample |= {
                "group_ids": (place >= s // 2).astype(np.int32),
                "ranks": np.where(ends, place % 2, -1).astype(np.int32),
                "margins": np.zeros(s, np.float32),
                "prompt_lengths": np.ones(s, np.int32),
            }
        if config.stage == "dpo":
            self._sample["reference_log_probs"] = np.zeros(s)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index`."""
        return self._sample

    def locate(self, index: int) -> str:
        """Names the sample."""
        return f"sample {index}"


@contextlib.contextmanager
def fake_job(config: RunConfig, case: Case) -> Iterator[Ranks]:
    """Joins as one rank of the case's world, as on a machine with GPUs."""
    asked = []

    def init_process_group(backend: str, **options: Any) -> None:
        asked.append(backend)
        real_init("fake", **options)

    def all_gather_object(objects: list[Any], mine: Any, **_: Any) -> None:
        objects[:] = [mine] * len(objects)

    real_init, real_wait = dist.init_process_group, engine_ranks._wait_for_all
    real_gather = dist.all_gather_object  # it reads its result from a tensor
    dist.init_process_group, dist.all_gather_object = init_process_group, all_gather_object
    engine_ranks._wait_for_all = lambda *_: None
    layout = config.plan_layout(case.world_size)
    try:
        ranks = engine.join(
            layout, rank=case.rank, local_rank=0, store=FakeStore(), agreement=Agreement()
        )
        assert asked == ["nccl"], f"the process groups are {asked}, not NCCL's"
        assert ranks.device == torch.device("cuda", 0), ranks.device
        with torch.random.fork_rng(devices=[]), one_stream():
            with FakeTensorMode(allow_non_fake_inputs=True):
                yield ranks
    finally:
        dist.init_process_group, dist.all_gather_object = real_init, real_gather
        engine_ranks._wait_for_all = real_wait
        engine.leave()


def make_job(config: RunConfig, case: Case, ranks: Ranks) -> Job:
    """The product's own job over `Samples`."""
    packed = case.packed or config.stage != "pretrain"
    samples = Samples(config, packed=packed)
    datasets = Datasets(train=samples, valid=samples, test=None, order={}, sources=("a", "b"))
    token_loss = TokenLoss(config.model, group=ranks.tensor_group, kernels=config.kernels.ops())
    job_config = JobConfig(
        model=config.model,
        optim=config.optim,
        training=config.training,
        checkpoint=config.checkpoint,
        logging=config.logging,
        kernels=config.kernels,
        lora=config.lora,
        seq_length=config.data.seq_length,
        prefetch=0,
        output_dir=Path("unused"),
        resolved={},
        tokenizer_identity="none",
        tokenizer_files={},
    )
    return build_job(job_config, _make_objective(config, datasets, token_loss), datasets, ranks)


def generate(job: Job) -> None:
    """Two prompts of different lengths: prefill, copies between slots, and decoding."""
    prompts = ((1, 2, 3, 4, 5), (1, 2, 3, 4, 5), (6, 7, 8))
    requests = [Request(prompt=p, prompt_id=i // 2, candidate=i) for i, p in enumerate(prompts)]
    sampling = SamplingConfig(
        max_new_tokens=3, temperature=0.8, top_k=5, top_p=0.9, repetition_penalty=1.1
    )
    with generation_session.live_session(job.chunks, job.ranks) as session:
        decoder = Decoder(session, requests, sampling, max_batch=2, with_log_probs=True)
        while decoder:
            decoder.step()


def rehearse(case: Case) -> dict[str, Any]:
    """Builds, trains a step or two, validates and generates; what was seen, by part."""
    config = parse(case)
    is_small = config.model.hidden_size < 1024
    seen: dict[str, Watch] = {}

    @contextlib.contextmanager
    def watched(part: str) -> Iterator[None]:
        seen[part] = Watch(config.data.seq_length)
        torch.cuda.synchronize = seen[part].synchronize
        with seen[part]:
            yield

    with fake_job(config, case) as ranks:
        with watched("build"):
            job = make_job(config, case, ranks)
            if is_small:
                state.draw_weights(job)
            list(job.shards())
        with watched("self-test"):
            check_isolation(job)
        _make(case.fault, job)
        batches = job.batches(job.datasets.train, consumed=0, prefetch=0)
        # As few micro-batches as the schedule takes through all its phases.
        num_microbatches = ranks.layout.pipeline_parallel_size * (2 if is_small else 1)
        for _ in range(2 if is_small else 1):
            with watched("batch"):
                batch = next(batches)
            with watched("step"):
                loop.train_step(job, batch[:num_microbatches], Stopwatch())
        if is_small:
            with watched("validation"):
                validate(job, job.datasets.train)
        if case.generates:
            with watched("generation"):
                engine.synchronize_parameters(job.wrapped)
                generate(job)
    return {
        part: {
            "waits": watch.waits,
            "uploads": watch.uploads,
            "dense": watch.dense,
            "ops": watch.ops,
        }
        for part, watch in seen.items()
    }


def _make(fault: str, job: Job) -> None:
    """Makes a mistake in the loss of this job."""
    objective: Any = job.objective
    loss = objective.loss

    def wrong(output: torch.Tensor, batch: engine.Batch) -> Any:
        total, count, metrics = loss(output, batch)
        if fault == "a sum on the host":
            total = total + torch.zeros(1).sum(dim=0, keepdim=True)
        elif fault == "a value is read":
            total = total * float(count > 0)
        else:
            s = batch["tokens"].shape[1]
            total = total * torch.ones(s, s, device=total.device).tril().amax()
        return total, count, metrics

    if fault:
        objective.loss = wrong


def main() -> None:
    """Answers until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    fake_cuda.register_kernels()
    fake_cuda.choose_attention()
    for line in sys.stdin:
        try:
            answer = {"seen": rehearse(CASES[line.strip()])}
        except Exception:  # the test reports it; the next case goes on
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
