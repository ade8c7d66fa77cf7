"""Text generation and scoring: sampling, continuous batching, models loaded from checkpoints."""

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.generation.cache_memory import cache_bytes
from megatron_chimed.generation.chat import run_chat, stream_answer
from megatron_chimed.generation.completion import gather_replicas, generate, stream_completions
from megatron_chimed.generation.decoder import TokenCallback
from megatron_chimed.generation.detokenize import TextStream
from megatron_chimed.generation.display import describe_job, show_progress, summary
from megatron_chimed.generation.file_job import FileJob, complete_file
from megatron_chimed.generation.likelihood import answer_log_probs
from megatron_chimed.generation.loglikelihood import (
    Continuations,
    LogLikelihood,
    log_likelihoods,
)
from megatron_chimed.generation.prompt_encoder import (
    PromptEncoder,
    choose_template,
    make_prompt_encoder,
)
from megatron_chimed.generation.prompt_fitting import TOO_LONG
from megatron_chimed.generation.prompt_rows import PromptRow, read_rows, write_rows
from megatron_chimed.generation.requests import (
    Completion,
    Request,
    longest_prompt,
    make_requests,
)
from megatron_chimed.generation.resumable import (
    complete_resumably,
    is_unfinished,
    remove_partial,
)
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
    require_tokenizer,
)

__all__ = [
    "TOO_LONG",
    "Completion",
    "Continuations",
    "FileJob",
    "LogLikelihood",
    "PromptEncoder",
    "TokenCallback",
    "PromptRow",
    "Request",
    "SamplingConfig",
    "Session",
    "TextStream",
    "answer_log_probs",
    "cache_bytes",
    "choose_template",
    "complete_file",
    "complete_resumably",
    "describe_job",
    "encode_answers",
    "gather_replicas",
    "generate",
    "is_unfinished",
    "live_session",
    "log_likelihoods",
    "longest_prompt",
    "make_prompt_encoder",
    "make_requests",
    "open_session",
    "plan_session",
    "prompt_seed",
    "read_answers",
    "read_rows",
    "remove_partial",
    "require_template",
    "require_tokenizer",
    "stream_answer",
    "score_conversations",
    "score_sequences",
    "show_progress",
    "stream_completions",
    "summary",
    "run_chat",
    "write_rows",
    "write_scores",
]
