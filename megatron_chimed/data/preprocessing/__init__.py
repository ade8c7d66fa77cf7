"""Turns text files into `.bin/.idx` token files, in parallel and resumable after a kill.

One row of a JSON lines file passes through these files, in this order:

1.  `preprocess.py`: `preprocess` opens the work folder and drives the run.
2.  `plan.py`: `make_plan` loads the tokenizer and detects the format of each input.
3.  `reading/blocks.py`: `iter_blocks` cuts the file into blocks of whole rows.
4.  `worker_pool.py`: `encode_blocks` hands blocks to workers and returns results in order.
5.  `block_encoder.py`: `BlockEncoder.encode` is what a worker does with a block.
6.  `reading/rows.py`: `rows_of` parses each row; a malformed one becomes a `RowError`.
7.  `formats/*.py`: the file's `Format` turns the row into examples.
8.  `cleaning/cleaner.py`: `Cleaner.clean` normalises, de-identifies, or drops an example.
9.  `stage_encoder.py`: `StageEncoder.encode` turns examples into `documents.Documents`, chats by
    way of `templates/encoding.py`.
10. `writer.py`: `IndexedWriter.add` appends the arrays to spools (`journal.py`); `seal` writes
    the index (`output_files.py`) and the sidecar, and `publish_sealed` renames all files.

Between steps 9 and 10, `quarantine.py` collects malformed rows and `deduplication.py` drops
repeated documents. `merging.py` joins finished prefixes.
"""
