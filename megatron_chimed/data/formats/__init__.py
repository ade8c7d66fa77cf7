"""Input formats: how a row of a corpus file becomes texts, conversations or ranked answers.

A format is one small module with a `Format`, listed in `registry.FORMATS`; docs/formats.md shows
them all.
"""
