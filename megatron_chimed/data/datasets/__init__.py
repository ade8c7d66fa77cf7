"""Token files (`.bin/.idx`) and the samples a training step reads from them, the same on any ranks.

Read `config` first, then `pretrain`, `sft` and `preference`; `indexed` is the format.
"""
