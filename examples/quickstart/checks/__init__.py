"""Checks and figures of the quickstart; `python -m examples.quickstart.checks --help`."""
