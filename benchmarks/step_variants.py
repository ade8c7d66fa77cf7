"""The two sides of benchmarks/train_step.py: one job of ours, and transformers.Trainer.

Both start from the same weights, read the same tokens in the same order, clip to the same norm and
use AdamW with the same settings. The last label of a sample is not counted: transformers shifts
labels by itself and so has none.
"""

import contextlib
import dataclasses
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler

from megatron_chimed import engine
from megatron_chimed.config.checkpoint import CheckpointConfig
from megatron_chimed.config.kernels import KernelConfig
from megatron_chimed.config.optim import OptimConfig
from megatron_chimed.config.training import TrainConfig
from megatron_chimed.conversion.hf_config import to_hf_config
from megatron_chimed.data.datasets.config import Datasets
from megatron_chimed.engine import Ranks
from megatron_chimed.kernels import Kernels
from megatron_chimed.model import ModelConfig, TokenLoss, weight_shards
from megatron_chimed.observe.logger import LogConfig
from megatron_chimed.observe.timers import Stopwatch
from megatron_chimed.training import state
from megatron_chimed.training.job import Job, JobConfig, build_job
from megatron_chimed.training.loop import train_step
from megatron_chimed.training.objectives.next_token import NextTokenObjective

OPTIM = OptimConfig(lr=1e-3, min_lr=1e-3, lr_schedule="constant", warmup_steps=0)
_MANY_STEPS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Model and batch that both sides train."""

    model: ModelConfig
    seq_length: int
    batch_size: int
    """Samples in a micro-batch."""
    precision: str
    micro_batches: int = 1
    """Micro-batches in a step."""

    @property
    def samples_per_step(self) -> int:
        """Samples in a step."""
        return self.batch_size * self.micro_batches

    @property
    def tokens_per_step(self) -> int:
        """Tokens per step, without padding."""
        return self.samples_per_step * self.seq_length


class Samples:
    """Random tokens in memory; indices wrap around."""

    def __init__(self, workload: Workload, *, seed: int, count: int = 512) -> None:
        generator = np.random.default_rng(seed)
        shape = (count, workload.seq_length + 1)
        # Squares make low ids frequent: something to learn.
        vocab_size = workload.model.vocab_size
        self.tokens = generator.integers(0, vocab_size, shape) ** 2 // vocab_size
        self.samples_per_epoch = count
        self.loss_mask = np.ones(workload.seq_length, np.float32)
        self.loss_mask[-1] = 0.0
        self.position_ids = np.arange(workload.seq_length)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The sample's arrays."""
        tokens = self.tokens[index % len(self.tokens)]
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": self.loss_mask,
            "position_ids": self.position_ids,
        }

    def locate(self, index: int) -> str:
        """Names the sample."""
        return f"random sample {index}"


@dataclass(frozen=True, kw_only=True)
class Ablation(KernelConfig):
    """The kernels of a back end, with some ops replaced by their reference."""

    off: tuple[str, ...] = ()
    """Fields of `Kernels`, or `weight_gradients`: on CPU linear layers altogether."""

    @property
    def fuses_weight_gradients(self) -> bool:
        """Off where `weight_gradients` is."""
        return super().fuses_weight_gradients and "weight_gradients" not in self.off

    def ops(self) -> Kernels:
        """The ops."""
        reference = KernelConfig(backend="reference").ops()
        off = [field.name for field in dataclasses.fields(Kernels) if field.name in self.off]
        return dataclasses.replace(super().ops(), **{op: getattr(reference, op) for op in off})


class OurVariant:
    """A training job, stepped one at a time through the product's own loop body."""

    def __init__(
        self,
        workload: Workload,
        samples: Samples,
        *,
        ranks: Ranks,
        kernels: KernelConfig,
        draw: Callable[[Job], None] = state.draw_weights,
    ) -> None:
        self.job = build_step_job(workload, samples, ranks, kernels)
        draw(self.job)
        self.batches: Iterator = self.job.batches(samples, consumed=0, prefetch=0)
        self.watch = Stopwatch()
        self.losses: list[float] = []

    def step(self, _: int) -> None:
        """One optimizer step, loading included."""
        self.losses.append(train_step(self.job, next(self.batches), self.watch).loss)

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of all weights under their Hugging Face names; one rank holds them whole."""
        return {
            shard.key: shard.tensor.detach().clone() for shard in weight_shards(self.job.chunks)
        }

    def close(self) -> None:
        """Stops the data loader."""
        self.batches.close()


def build_step_job(
    workload: Workload,
    samples: Samples,
    ranks: Ranks,
    kernels: KernelConfig,
    *,
    output_dir: Path = Path("unused"),
    deterministic: bool = False,
) -> Job:
    """A job whose weights are still zero; it saves only if it is told to, into `output_dir`."""
    training = TrainConfig(
        train_steps=_MANY_STEPS,
        micro_batch_size=workload.batch_size,
        global_batch_size=workload.samples_per_step,
        precision=workload.precision,
        deterministic=deterministic,
    )
    config = JobConfig(
        model=workload.model,
        optim=OPTIM,
        training=training,
        checkpoint=CheckpointConfig(),
        logging=LogConfig(progress="off", tensorboard=False),
        kernels=kernels,
        seq_length=workload.seq_length,
        prefetch=0,
        output_dir=output_dir,
        resolved={},
        tokenizer_identity="none",
        tokenizer_files={},
    )
    token_loss = TokenLoss(workload.model, group=ranks.tensor_group, kernels=kernels.ops())
    datasets = Datasets(train=samples, valid=None, test=None, order={})
    return build_job(config, NextTokenObjective(token_loss), datasets, ranks)


@contextlib.contextmanager
def one_rank(workload: Workload) -> Iterator[Ranks]:
    """Joins a job of this process alone."""
    layout = engine.plan_layout(
        engine.ParallelConfig(),
        world_size=1,
        sizes=workload.model.sizes(workload.seq_length),
    )
    ranks = engine.join(layout, rank=0, local_rank=0)
    try:
        yield ranks
    finally:
        engine.leave()


class TrainerVariant:
    """transformers.Trainer, paused after every step until the next one is requested.

    It runs in a thread of its own, so that its loop stays whole: what it does between two steps
    (loading, callbacks) is part of its time. Only one thread runs at any moment.
    """

    def __init__(
        self,
        workload: Workload,
        samples: Samples,
        weights: Mapping[str, torch.Tensor],
        *,
        compiled: bool,
    ) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._over = False
        self._folder = tempfile.TemporaryDirectory()
        self.losses: list[torch.Tensor] = []
        trainer = self._build(workload, samples, weights, compiled)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._run: Future = self._thread.submit(self._train, trainer)

    def step(self, _: int) -> None:
        """Lets the trainer do one step."""
        self._go.release()
        while not self._done.acquire(timeout=1.0):
            if self._run.done():
                self._run.result()  # raises what ended it
                raise AssertionError("the trainer ended by itself")

    def close(self) -> None:
        """Ends the trainer."""
        self._over = True
        self._go.release()
        self._run.result()
        self._thread.shutdown()
        self._folder.cleanup()

    def _train(self, trainer: Any) -> None:
        self._go.acquire()
        if not self._over:
            trainer.train()

    def _pause(self, control: Any) -> None:
        self._done.release()
        self._go.acquire()
        control.should_training_stop = self._over

    def _build(
        self,
        workload: Workload,
        samples: Samples,
        weights: Mapping[str, torch.Tensor],
        compiled: bool,
    ) -> Any:
        import transformers

        transformers.logging.set_verbosity_error()
        side = self

        class Pause(transformers.TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                side._pause(control)

        class InOrder(transformers.Trainer):
            def _get_train_sampler(self, *_: Any) -> SequentialSampler:
                return SequentialSampler(self.train_dataset)

            def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
                loss = super().training_step(*arguments, **named)
                side.losses.append(loss)
                return loss

        token_ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        raw = to_hf_config(workload.model, dtype=torch.float32, token_ids=token_ids)
        config = transformers.LlamaConfig(**raw, attn_implementation="sdpa")
        model = transformers.LlamaForCausalLM(config)
        model.load_state_dict(dict(weights))
        trainer = InOrder(
            model=model,
            args=transformers.TrainingArguments(
                **_trainer_settings(workload, compiled), output_dir=self._folder.name
            ),
            train_dataset=_HfSamples(samples),
            callbacks=[Pause()],
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        return trainer


def _trainer_settings(workload: Workload, compiled: bool) -> dict[str, Any]:
    """The same training with the trainer's fastest settings for a CPU; nothing is logged."""
    return {
        "per_device_train_batch_size": workload.batch_size,
        "max_steps": _MANY_STEPS,
        "learning_rate": OPTIM.lr,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta1": OPTIM.adam_beta1,
        "adam_beta2": OPTIM.adam_beta2,
        "adam_epsilon": OPTIM.adam_eps,
        "weight_decay": OPTIM.weight_decay,
        "max_grad_norm": OPTIM.clip_grad,
        "torch_compile": compiled,
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class _HfSamples(Dataset):
    """The same samples in the format of transformers."""

    def __init__(self, samples: Samples) -> None:
        self.tokens = torch.from_numpy(samples.tokens[:, :-1]).contiguous()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}
