"""Token files of conversations and of ranked answers for the tests."""

import numpy as np

from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.data.preprocessing.documents import Documents, RankingGroups
from megatron_chimed.data.preprocessing.writer import IndexedWriter
from tests.unit.data.prefixes import describe


def write_conversations(prefix, conversations, **facts):
    """Writes (ids, mask) of each; `facts` replace fields of the sidecar."""
    with IndexedWriter(prefix, np.uint16, stage="sft") as writer:
        for ids, mask in conversations:
            writer.add_document(ids, mask)
        writer.finalize(lambda *sha256: describe(writer, *sha256, **facts))
    return str(prefix)


def open_conversations(prefix, conversations):
    return open_prefix(write_conversations(prefix, conversations))


def answered(lengths):
    """Conversations of these lengths, ids numbered over all; the second half is the answer."""
    ends = np.cumsum(lengths)
    return [
        (range(end - n, end), [int(i >= n // 2) for i in range(n)])
        for n, end in zip(lengths, ends, strict=True)
    ]


def write_groups(prefix, groups, margins=None, **facts):
    """Writes groups: (prompt ids, [(answer ids, rank), ...]) each."""
    candidates = [(prompt, ids) for prompt, answers in groups for ids, _ in answers]
    sizes = [len(answers) for _, answers in groups]
    documents = Documents(
        tokens=np.concatenate([[*prompt, *ids] for prompt, ids in candidates]),
        lengths=np.array([len(prompt) + len(ids) for prompt, ids in candidates], np.int32),
        mask=np.concatenate([[0] * len(p) + [1] * len(ids) for p, ids in candidates]).astype("u1"),
        groups=RankingGroups(
            candidates=np.array(sizes, np.int32),
            prompt_lengths=np.array([len(prompt) for prompt, _ in groups], np.int32),
            ranks=np.array([rank for _, answers in groups for _, rank in answers], np.int32),
            margins=np.array(margins if margins else [np.nan] * sum(sizes)),
        ),
    )
    with IndexedWriter(prefix, np.uint16, stage="preference") as writer:
        writer.add(documents)
        writer.finalize(lambda *sha256: describe(writer, *sha256, **facts))
    return str(prefix)
