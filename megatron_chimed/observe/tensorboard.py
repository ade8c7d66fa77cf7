"""TensorBoard through the `tensorboard` package alone: `torch.utils` would import torch."""

import importlib
import os
import time
from typing import Any

from megatron_chimed.observe.metrics import Event
from megatron_chimed.observe.sinks import SAMPLES, scalars_of


class TensorBoardWriter:
    """Writes the scalars of `sinks.scalars_of`, and sample answers as texts.

    A session-start record makes TensorBoard drop points at and after the resumed position, so a run
    that fell back to an older checkpoint shows one curve, not two.

    Args:
        folder: Folder of the event files; each start of a run adds one.
        resume_step: Steps done by the restored checkpoint; 0 for a fresh run.
    """

    def __init__(self, folder: str | os.PathLike, *, resume_step: int = 0) -> None:
        event_pb2, summary_pb2 = _protos("event_pb2", "summary_pb2")
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
        """Adds the event's scalars or texts at its step."""
        values = [
            self._summary_type.Value(tag=tag, simple_value=value)
            for tag, value in scalars_of(event).items()
        ]
        if event["kind"] == SAMPLES:
            values = [self._text(n, s) for n, s in enumerate(event["samples"], start=1)]
        if values:
            summary = self._summary_type(value=values)
            self._writer.add_event(
                self._event_type(wall_time=event["time"], step=event["step"], summary=summary)
            )

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()

    def _text(self, number: int, sample: dict[str, str]) -> Any:
        summary_pb2, tensor_pb2, tensor_shape_pb2 = _protos(
            "summary_pb2", "tensor_pb2", "tensor_shape_pb2"
        )
        # TensorBoard renders Markdown, which shows indented lines verbatim.
        parts = [f"{name}:\n\n{_as_code(sample[name])}" for name in ("prompt", "answer")]
        dim = tensor_shape_pb2.TensorShapeProto.Dim(size=1)
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        return self._summary_type.Value(
            tag=f"samples/{number}",
            metadata=summary_pb2.SummaryMetadata(plugin_data=plugin),
            tensor=tensor_pb2.TensorProto(
                dtype="DT_STRING",
                string_val=["\n\n".join(parts).encode("utf-8")],
                tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[dim]),
            ),
        )


def _protos(*names: str) -> list[Any]:
    """Modules that protobuf fills at import, so their classes are unknown to type checkers."""
    return [importlib.import_module(f"tensorboard.compat.proto.{name}") for name in names]


def _as_code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
