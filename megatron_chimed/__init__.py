"""Megatron training of Chinese medical language models, end to end."""

__version__ = "0.2.0"
