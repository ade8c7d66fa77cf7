"""Weights & Biases and SwanLab: optional, disabled unless configured.

Their packages are imported only by a run that uses them. Offline, both write into the run's folder,
and their own commands (`wandb sync`, `swanlab sync`) upload it later.
"""

import contextlib
import importlib
import importlib.util
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_chimed.errors import ConfigError
from megatron_chimed.files import write_text
from megatron_chimed.observe.metrics import Event
from megatron_chimed.observe.sinks import SAMPLES, scalars_of

TrackerMode = Literal["disabled", "offline", "online"]
ID_NAME = "wandb_id.txt"
LOGIN_SECONDS = 60.0  # for a person at a terminal, before the run starts without the tracker
# pip alone would install an older protobuf for swanlab, which breaks sentencepiece.
INSTALL = {
    "wandb": "pip install wandb",
    "swanlab": "make trackers; or pip install swanlab, then pip install 'protobuf>=7.36'",
}


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """An experiment tracker in addition to `metrics.jsonl` and TensorBoard."""

    mode: TrackerMode = "disabled"
    """`offline` writes to the run's folder; `online` uploads metrics, sample answers and the
    configuration to the service you are logged in to; the other modes upload nothing."""
    project: str = "megatron_chimed"
    """Project of the run."""
    name: str | None = None
    """Name of the run; None: the name of its folder."""

    def __post_init__(self) -> None:
        """Checks the names.

        Raises:
            ConfigError: A name is empty.
        """
        for field in ("project", "name"):
            if getattr(self, field) == "":
                raise ConfigError(f"{field} of an experiment tracker is empty. Give it a name.")


def require_package(tracker: str, config: TrackerConfig) -> None:
    """Checks before a run starts that its tracker is installed.

    Raises:
        ConfigError: The package is not installed.
    """
    if config.mode != "disabled" and importlib.util.find_spec(tracker) is None:
        raise ConfigError(
            f"logging.{tracker}.mode is {config.mode}, but the package {tracker} is not installed. "
            f"Install it ({INSTALL[tracker]}), or set --logging.{tracker}.mode disabled."
        )


@contextlib.contextmanager
def own_handlers() -> Iterator[None]:
    """Restores signal handlers and excepthook that a tracker replaces: the run handles Ctrl-C."""
    hook, handlers = sys.excepthook, {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        sys.excepthook = hook
        for number, handler in handlers.items():
            signal.signal(number, handler)


class WandbWriter:
    """A run of Weights & Biases; a resumed run continues it by the id in the run's folder.

    Args:
        config: Settings, not disabled.
        folder: The run's folder.
        settings: The run's configuration, shown with its curves.
        resume_step: Steps done by the restored checkpoint; 0 starts a new W&B run.
    """

    @own_handlers()
    def __init__(
        self, config: TrackerConfig, folder: Path, settings: Mapping[str, Any], *, resume_step: int
    ) -> None:
        # Read at import; unless set, the package reports its errors even when offline.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=config.project,
            name=config.name or folder.name,
            id=_run_id(folder / ID_NAME, is_new=resume_step == 0),
            resume="allow",
            mode=config.mode,
            dir=os.fspath(folder),
            config=dict(settings),
            settings=wandb.Settings(
                console="off",
                login_timeout=LOGIN_SECONDS,
                quiet=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )
        # W&B's own steps must increase, but a run that fell back to a checkpoint repeats some.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, event: Event) -> None:
        """Logs the event's scalars; sample answers become a table."""
        logged: dict[str, Any] = scalars_of(event)
        if event["kind"] == SAMPLES:
            rows = [[event["step"], s["prompt"], s["answer"]] for s in event["samples"]]
            logged = {"samples": self._wandb.Table(["step", "prompt", "answer"], rows)}
        if logged:
            self._run.log({"step": event["step"], **logged})

    @own_handlers()
    def close(self) -> None:
        """Finishes the run; online, waits for the upload."""
        self._run.finish()
        # A process of its own writes in the background: wait until it has ended.
        self._wandb.teardown()


class SwanlabWriter:
    """An experiment of SwanLab; each start of a run adds one.

    Args:
        config: Settings, not disabled.
        folder: The run's folder.
        settings: The run's configuration, shown with its curves.
    """

    @own_handlers()
    def __init__(self, config: TrackerConfig, folder: Path, settings: Mapping[str, Any]) -> None:
        # By name: types are checked where it is not installed.
        self._swanlab = swanlab = importlib.import_module("swanlab")
        (folder / "swanlab").mkdir(parents=True, exist_ok=True)
        self._run = swanlab.init(
            project=config.project,
            name=config.name or folder.name,
            mode=config.mode,
            log_dir=os.fspath(folder / "swanlab"),
            config=dict(settings),
            settings=_quiet_swanlab(swanlab),
        )

    def write(self, event: Event) -> None:
        """Logs the event's scalars; sample answers become texts."""
        logged: dict[str, Any] = scalars_of(event)
        if event["kind"] == SAMPLES:
            logged = {
                f"samples/{number}": self._swanlab.Text(f"{s['prompt']}\n---\n{s['answer']}")
                for number, s in enumerate(event["samples"], start=1)
            }
        if logged:
            self._run.log(logged, step=event["step"])

    @own_handlers()
    def close(self) -> None:
        """Finishes the experiment; online, waits for the upload."""
        self._run.finish()


def _run_id(path: Path, *, is_new: bool) -> str:
    if not is_new and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    name = uuid.uuid4().hex[:8]
    write_text(path, name + "\n")
    return name


def _quiet_swanlab(swanlab: Any) -> Any:
    """Settings without prompts, without monitoring of terminal or machine, without webhooks."""
    settings = swanlab.Settings
    return settings(
        interactive=False,
        terminal=settings.Terminal(proxy_type="none"),
        probe=settings.Probe(
            hardware=False, runtime=False, requirements=False, git=False, monitor=False
        ),
        # A webhook URL from the environment is called at the start, even when offline.
        integration=settings.Integration(webhook=settings.Integration.Webhook(url="")),
    )
