"""Padding of a batch."""

import numpy as np


def pad(values: np.ndarray, is_used: np.ndarray, padding: float) -> np.ndarray:
    """Rows of equal length from the values of all rows, one row after the other.

    Args:
        values: shape (number of true elements in `is_used`,).
        is_used: bool, shape (rows, length), where the values go.
        padding: what goes elsewhere.

    Returns:
        the dtype of `values`, shape (rows, length).
    """
    rows = np.full(is_used.shape, padding, dtype=values.dtype)
    rows[is_used] = values
    return rows
