"""Reads corpora in any container, compressed or not, as a stream of rows in bounded memory.

inputs = expand_inputs(["corpus/", "more/*.jsonl.gz"])
for block in iter_blocks(inputs):              # in one process, in order, cheap
    entry = inputs[block.file]
    for line, byte, row in rows_of(block, entry):   # in any process
        ...
"""

from megatron_chimed.data.reading.blocks import iter_blocks
from megatron_chimed.data.reading.examples import examples_of, format_of, iter_texts
from megatron_chimed.data.reading.input_files import InputFile, expand_inputs
from megatron_chimed.data.reading.row_block import MAX_ROW_BYTES, BadRow, RowBlock
from megatron_chimed.data.reading.rows import rows_of

__all__ = [
    "MAX_ROW_BYTES",
    "BadRow",
    "RowBlock",
    "InputFile",
    "examples_of",
    "expand_inputs",
    "format_of",
    "iter_blocks",
    "iter_texts",
    "rows_of",
]
