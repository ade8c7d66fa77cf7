"""What one worker does: the rows of a block to the arrays of its documents."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_chimed.data.cleaning.cleaner import EMPTY as EMPTY_RULE
from megatron_chimed.data.cleaning.cleaner import Cleaner
from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.report import CleaningReport
from megatron_chimed.data.datasets.indexed import dtype_for_vocab
from megatron_chimed.data.formats.example import Example, example_text
from megatron_chimed.data.formats.registry import FORMATS
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.preprocessing.documents import Documents
from megatron_chimed.data.preprocessing.stages import EMPTY, StageConfig, encoder_of, misfit
from megatron_chimed.data.preprocessing.tally import Tally
from megatron_chimed.data.reading import BadRow, Block, Input, examples_of
from megatron_chimed.tokenizer import load_tokenizer

SPOT_CHECK_BLOCKS = 16  # one in so many blocks has some texts compared with sentencepiece
SPOT_CHECK_TEXTS = 8
SPOT_CHECK_CHARACTERS = 1 << 14
REMOVED = "removed."  # starts the names of cleaning's rules that drop an example


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How rows become ids; the same in every worker."""

    tokenizer: str
    """Path for `load_tokenizer`."""

    inputs: tuple[Input, ...]
    """The input files."""

    formats: tuple[str, ...]
    """Format of each input file."""

    text_key: str
    """Key of the text in rows of the format `text`."""

    stage: StageConfig
    """How examples become sequences."""

    cleaning: CleaningConfig
    """What is altered and removed before."""


@dataclass(frozen=True, kw_only=True)
class EncodedBlock:
    """The documents of one block."""

    file: int
    """Place of the file in the list of inputs."""

    number: int
    """Of the block in its file."""

    position: int
    """Bytes of the file on disk that were read, for progress."""

    tally: Tally
    """Counts of all but the documents: some may yet turn out to be duplicates."""

    bad: tuple[BadRow, ...]
    """Malformed rows, in order."""

    documents: Documents
    """The documents."""

    signatures: tuple[bytes | None, ...]
    """Of each document, for deduplication."""

    report: CleaningReport
    """What cleaning did."""


class BlockEncoder:
    """Encodes blocks; holds the tokenizer.

    Args:
        recipe: What to do.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tokenizer = load_tokenizer(recipe.tokenizer)
        self._dtype = dtype_for_vocab(self.tokenizer.vocab_size)
        self._cleaner = Cleaner(recipe.cleaning)
        self._encode_examples = encoder_of(self.tokenizer, recipe.stage, self._dtype)

    def encode(self, block: Block) -> EncodedBlock:
        """The block's documents; malformed rows are listed, never raised.

        Raises:
            DataError: The fast tokenizer and sentencepiece disagree.
        """
        tally = Tally()
        examples, bad = self._read(block, tally)
        if block.number % SPOT_CHECK_BLOCKS == 0 and examples:
            step = -(-len(examples) // SPOT_CHECK_TEXTS)
            texts = [example_text(example) for example in examples[::step]]
            self.tokenizer.spot_check([text[:SPOT_CHECK_CHARACTERS] for text in texts])
        documents, reasons = self._encode_examples(examples)
        for reason in filter(None, reasons):
            _count_removed(tally, reason)
        kept = [item for item, reason in zip(examples, reasons, strict=True) if reason is None]
        assert len(kept) == len(documents), "every example is a document or has a reason"
        return EncodedBlock(
            file=block.file,
            number=block.number,
            position=block.position,
            tally=tally,
            bad=bad,
            documents=documents,
            signatures=tuple(map(self._cleaner.signature, kept)),
            report=self._cleaner.drain(),
        )

    def _read(self, block: Block, tally: Tally) -> tuple[list[Example], tuple[BadRow, ...]]:
        """The cleaned examples, and the malformed rows by line."""
        examples: list[Example] = []
        bad = list(block.oversized)
        tally.rows += len(bad)
        found = examples_of(
            block,
            self.recipe.inputs[block.file],
            FORMATS[self.recipe.formats[block.file]],
            text_key=self.recipe.text_key,
        )
        for line, offset, row in found:
            tally.rows += 1
            reason = row if isinstance(row, RowError) else self._misfit(row)
            if reason is None:
                self._clean(row, tally, examples)
            else:
                bad.append(BadRow(line=line, offset=offset, reason=str(reason)))
        tally.quarantined += len(bad)
        return examples, tuple(sorted(bad, key=lambda row: (row.line, row.offset)))

    def _misfit(self, row: Sequence[Example]) -> str | None:
        """Why the stage cannot use a row, None if it can."""
        for example in row:
            if reason := misfit(example, self.recipe.stage.stage):
                return reason
        return None

    def _clean(self, found: Sequence[Example], tally: Tally, examples: list[Example]) -> None:
        tally.examples += len(found) or 1
        if not found:  # a row of nothing counts as one example of nothing
            tally.empty += 1
        if self.recipe.cleaning.is_off:
            examples += found
            return
        for example in found:
            cleaned, counts = self._cleaner.clean(example)
            for rule, count in counts.items():
                if rule.startswith(REMOVED):
                    _count_removed(tally, EMPTY if rule == EMPTY_RULE else rule[len(REMOVED) :])
                else:
                    tally.changed[rule] += count
            if cleaned is not None:
                examples.append(cleaned)


def _count_removed(tally: Tally, reason: str) -> None:
    if reason == EMPTY:
        tally.empty += 1
    else:
        tally.removed[reason] += 1
