"""From text files to the samples a training step reads: the same ones on any number of ranks.

Submodules are imported one by one by those who need them: preprocessing needs no sample index, and
training no text formats.
"""
