"""BLEU, ROUGE and diversity of generated texts, in the ways in which others compute them."""
