"""What a run leaves for its readers: model card, plots and summary."""
