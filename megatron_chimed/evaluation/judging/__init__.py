"""Judges: verdicts of a model or of people on stored answers, and what they add up to."""
