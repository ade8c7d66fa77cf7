"""Input formats: how a row of a corpus file becomes texts, conversations or ranked answers.

A format is a `Format` in a small module, listed in `registry.FORMATS`; docs/formats.md shows all.
"""
