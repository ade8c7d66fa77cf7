"""Kinds of tasks: from rows to prompts, and from responses to scores and figures."""
