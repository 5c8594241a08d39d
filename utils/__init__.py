"""What the training scripts share, in packages; see ARCHITECTURE.md."""
