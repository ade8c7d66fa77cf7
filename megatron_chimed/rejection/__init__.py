"""Rejection sampling: draw many answers to each prompt, score them, train on the best.

Read `rounds` first: it is the algorithm, draw -> score -> select -> train -> report. Each step is
one module: `candidate_sampling`, `candidate_scoring`, `candidate_selection`, `round_training`,
`policy_evaluation`, `report`. They pass on lists of `candidate.Candidate`. `job`, `job_folder` and
`workers` are what makes rounds resumable and ranks agree.
"""
