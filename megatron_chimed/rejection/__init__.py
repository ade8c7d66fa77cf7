"""Rejection sampling: many answers to each prompt, scored, and the best of them learned.

Read `rounds` first: draw, score, select, train, report. A round is a list of candidates
(`candidate`) that fills up; `selection` says which are kept and why the others are not.
"""
