"""Models: configuration, loading, losses, attention and adapters."""
