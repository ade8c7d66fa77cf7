"""Candidates with little said about them."""

from typing import Any

from megatron_chimed.rejection.candidate import POLICY, Candidate


def answer(prompt: int = 0, number: int = 0, score: float | None = 0.0, **others: Any) -> Candidate:
    """A candidate; its text differs from those of others unless it is given."""
    source = others.pop("source", POLICY)
    text = others.pop("text", f"{source}的第{number}个答案，问题{prompt}")
    token_ids = tuple(others.pop("token_ids", range(len(text))))
    return Candidate(
        **{
            "prompt": prompt,
            "prompt_id": f"q{prompt}",
            "category": "",
            "source": source,
            "number": number,
            "seed": 1000 + number if source == POLICY else None,
            "text": text,
            "token_ids": token_ids,
            "num_tokens": len(token_ids),
            "finish_reason": "stop" if source == POLICY else None,
            "score": score,
            **others,
        }
    )
