"""The training run: trainer, evaluation, checkpoints, signals and logging."""
