"""What is evaluated: checkpoints on their shards, Hugging Face folders, endpoints."""
