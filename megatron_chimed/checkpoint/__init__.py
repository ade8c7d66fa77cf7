"""Checkpoints: safetensors and JSON, committed by rename, verified when opened, of any layout.

`save` and `load` for the running job, `reader` for everybody. Other formats: `conversion`. This
file imports nothing, so that the reader starts without megatron-core.
"""
