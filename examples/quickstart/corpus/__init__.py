"""A small corpus of Chinese medical text, made from facts and templates of this project."""
