"""Evaluation of models: what they answer, how that is scored, and how sure the score is."""
