"""From text files to the samples a training step reads: the same ones on any number of ranks.

`reading`, `formats`, `templates` and `cleaning` turn files into examples, `preprocessing` examples
into token files, `datasets` token files into samples; `inspection` looks at token files.
"""
