"""Checkpoints from and to other formats: Hugging Face folders (`hf`) and PEFT adapters (`peft`)."""
