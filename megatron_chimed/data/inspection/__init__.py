"""Inspection of token files: the body of tools/inspect_dataset.py.

`verification` verifies a prefix (with `ranking_verification`, and counts from `token_counts`);
`token_views` shows documents and samples; `statistics` and `plots` measure lengths and sources;
`comparison` compares two prefixes. `print_views` and `print_tables` print the results.
"""
