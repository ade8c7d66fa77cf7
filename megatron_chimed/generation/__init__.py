"""Generating text, and scoring it: sampling, continuous batching, models from checkpoints."""

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.generation.chat import say, talk
from megatron_chimed.generation.complete import gather_replicas, generate, stream_completions
from megatron_chimed.generation.decode import Listener, cache_bytes
from megatron_chimed.generation.detokenize import TextStream
from megatron_chimed.generation.display import describe_job, show_progress, summary
from megatron_chimed.generation.file_job import FileJob, complete_file
from megatron_chimed.generation.fitting import TOO_LONG
from megatron_chimed.generation.framing import Framing, choose_manner, make_framing
from megatron_chimed.generation.likelihood import answer_log_probs
from megatron_chimed.generation.partial import (
    complete_resumably,
    is_unfinished,
    remove_partial,
)
from megatron_chimed.generation.requests import (
    Completion,
    Request,
    longest_prompt,
    make_requests,
)
from megatron_chimed.generation.rows import PromptRow, read_rows, write_rows
from megatron_chimed.generation.sampling import prompt_seed
from megatron_chimed.generation.scoring import (
    encode_answers,
    read_answers,
    require_template,
    score_conversations,
    score_sequences,
    write_scores,
)
from megatron_chimed.generation.session import (
    Session,
    live_session,
    open_session,
    plan_session,
)

__all__ = [
    "TOO_LONG",
    "Completion",
    "FileJob",
    "Framing",
    "Listener",
    "PromptRow",
    "Request",
    "SamplingConfig",
    "Session",
    "TextStream",
    "answer_log_probs",
    "cache_bytes",
    "choose_manner",
    "complete_file",
    "complete_resumably",
    "describe_job",
    "encode_answers",
    "gather_replicas",
    "generate",
    "is_unfinished",
    "live_session",
    "longest_prompt",
    "make_framing",
    "make_requests",
    "open_session",
    "plan_session",
    "prompt_seed",
    "read_answers",
    "read_rows",
    "remove_partial",
    "require_template",
    "say",
    "score_conversations",
    "score_sequences",
    "show_progress",
    "stream_completions",
    "summary",
    "talk",
    "write_rows",
    "write_scores",
]
