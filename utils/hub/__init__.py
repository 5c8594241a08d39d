"""The Hugging Face Hub: names, errors and uploads."""
