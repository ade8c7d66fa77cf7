"""What people ask of token files: are they sound, what is in them, what will a model see.

`checking` verifies, `views` and `painting` show tokens, `statistics` and `plots` count and measure,
`difference` compares, `reports` prints: the body of tools/inspect_dataset.py.
"""
