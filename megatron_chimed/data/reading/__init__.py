"""Reading of corpora: any container, compressed or not, as one stream of rows in bounded memory.

inputs = expand_inputs(["corpus/", "more/*.jsonl.gz"])
for block in iter_blocks(inputs):              # one process, in order, cheap
    entry = inputs[block.file]
    for line, byte, row in rows_of(block, entry):   # in any process
        ...
"""

from megatron_chimed.data.reading.blocks import iter_blocks
from megatron_chimed.data.reading.inputs import Input, expand_inputs
from megatron_chimed.data.reading.raw_block import MAX_ROW_BYTES, BadRow, Block
from megatron_chimed.data.reading.rows import rows_of
from megatron_chimed.data.reading.texts import examples_of, format_of, iter_texts

__all__ = [
    "MAX_ROW_BYTES",
    "BadRow",
    "Block",
    "Input",
    "examples_of",
    "expand_inputs",
    "format_of",
    "iter_blocks",
    "iter_texts",
    "rows_of",
]
