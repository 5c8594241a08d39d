"""The Hugging Face Hub: dataset names, errors and uploads."""
