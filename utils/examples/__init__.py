"""Token ids to training examples, and examples to batches."""
