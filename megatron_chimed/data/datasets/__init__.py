"""Token files (`.bin/.idx`) and the samples that training reads from them, for any number of ranks.

Read `config` first, then `pretrain`, `sft` and `preference`; `indexed` is the file format.
"""
