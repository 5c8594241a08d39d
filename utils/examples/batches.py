"""What the collators share: random numbers for each example, and padding."""

import numpy as np


def _draws(seed: int, examples: list[dict[str, np.ndarray | int]], counts: np.ndarray) -> list[np.ndarray]:
    """For each example so many numbers in [0, 1), float64, which depend on the seed, its epoch and its index alone."""
    bits = np.random.Philox(0)
    generator = np.random.Generator(bits)
    state = bits.state  # to set it anew takes a sixth of the time that a new generator takes
    draws = []
    for example, count in zip(examples, counts, strict=True):
        state["state"]["key"][:] = (seed, example["epoch"])
        state["state"]["counter"][:] = (0, 0, 0, example["index"])  # the last word keeps the examples' streams apart
        bits.state = state
        draws.append(generator.random(count))
    return draws


def _padded(values: np.ndarray, is_used: np.ndarray, padding: float) -> np.ndarray:
    """Rows with the values (of all rows, one after the other) where `is_used` says so, and `padding` elsewhere."""
    rows = np.full(is_used.shape, padding, dtype=values.dtype)
    rows[is_used] = values
    return rows
