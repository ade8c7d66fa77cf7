"""Input formats: how one line of a corpus file becomes one document's text.

A format is a function from a line to a text, in one small module, listed in `registry.FORMATS`.
"""
