"""Checkpoints: safetensors and JSON, committed by rename, verified when opened, of any layout.

`save` and `load` for the running job, `reader` for everybody, `hf` to and from Hugging Face
folders. This file imports nothing, so that the reader starts without megatron-core.
"""
