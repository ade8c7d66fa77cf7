"""Rejection sampling: many answers to each prompt, scored, and the best of them learned.

Read `candidate` first: a round is a list of candidates that fills up. `prompts` says what is asked,
`selection` which answers are kept and why the others are not.
"""
