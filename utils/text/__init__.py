"""Load documents from the Hub, files, saved datasets and streams."""
