"""Configuration: `run_config` composes a run's sections, a file each; `parsing` reads them.

Nothing here imports torch, so that a command can check what it was given before it loads the rest.
The sections `data` and `logging` are defined in `data.datasets.config` and `observe.logger`.
"""
