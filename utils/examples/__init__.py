"""Token ids to training examples, and examples to batches.

What every script uses is imported here; the rest comes from the modules.
"""

from utils.examples.streaming import make_blocks


__all__ = ["make_blocks"]
