"""TensorBoard scalars through the `tensorboard` package alone: `torch.utils` would import torch."""

import os
import time

from megatron_chimed.observe.metrics import Event

SCALAR_KINDS = ("train", "valid")


class TensorBoardWriter:
    """Writes every number of train and valid events as the scalar `<kind>/<name>`.

    A session-start record tells TensorBoard to forget points at and after the resumed position, so
    a run that fell back to an older checkpoint shows one curve, not two.

    Args:
        folder: Where event files go; each start of a run adds one.
        resume_step: Steps that the restored checkpoint has done; 0 for a fresh run.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int = 0) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event_type = event_pb2.Event
        self._summary_type = summary_pb2.Summary
        self._writer = EventFileWriter(os.fspath(folder), flush_secs=10)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        forget_from = resume_step + 1 if resume_step > 0 else 0
        self._writer.add_event(
            event_pb2.Event(wall_time=time.time(), step=forget_from, session_log=start)
        )

    def write(self, event: Event) -> None:
        """Adds one event's numbers at its step; events of other kinds are not for curves."""
        if event["kind"] not in SCALAR_KINDS:
            return
        scalars = [
            self._summary_type.Value(tag=f"{event['kind']}/{name}", simple_value=value)
            for name, value in event.items()
            if isinstance(value, int | float) and name not in ("step", "time")
        ]
        summary = self._summary_type(value=scalars)
        self._writer.add_event(
            self._event_type(wall_time=event["time"], step=event["step"], summary=summary)
        )

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()
