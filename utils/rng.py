"""Counter-based random numbers: which stream of them is for what, in one place.

A counter-based generator (Philox, Salmon et al. 2011) computes its numbers from a key and a counter. With all choices
drawn from such generators, an example is the same in any batch, worker, process or resumed run. The key is
(seed, epoch), two integers from 0 to 2**64 - 1. The counter has four words of 64 bits. The generator increments word 0
while it draws; the other three say what the numbers are for:

    word 1       word 2        word 3               what is drawn
    -----------  ------------  -------------------  -----------------------------------------------
    0            COLLATOR (0)  number of example    which tokens are targets, and what replaces them
    0            PAIR (1)      number of example    where A and B come from, and the label
    SHUFFLE (2)  0             0                    the order of the shards
    SHUFFLE (2)  1 + process   number of chunk      which document leaves the shuffle buffer
    WINDOW (3)   process       number of window     the order of the examples in a window of a stream

Examples, chunks and windows are numbered from 0 in each epoch. No two rows have the same words 1 and 2, and within a
row the process and the number differ, so no two generators ever share a counter. A new stream takes the next member
of `Stream` and puts it in word 1.

Random numbers from elsewhere:

    utils/training/batch_sampler.py, `epoch_order`    NumPy's default generator (PCG64), seeded with (seed, epoch)
    utils/text/document_stream.py, `HeldOut`          a hash (SplitMix64) of the seed, the shard and the row
    utils/text/corpus.py, held-out documents          Python's `random.Random`, seeded with the seed
    weights of a new model, dropout                   torch's global generator
"""

from collections.abc import Iterable
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are for. Changing a value changes what is drawn."""

    COLLATOR = 0
    PAIR = 1
    SHUFFLE = 2
    WINDOW = 3


def collator_draws(
    seed: int, epochs: Iterable[int], numbers: Iterable[int], counts: Iterable[int]
) -> list[np.ndarray]:
    """For each example, `counts` numbers in [0, 1), float64, for its random choices in a collator.

    Args:
        epochs, numbers: the epoch of each example, and its number in the epoch.
    """
    philox = np.random.Philox(0)
    generator = np.random.Generator(philox)
    state = philox.state  # setting it takes a sixth of the time of a new generator
    draws = []
    for epoch, number, count in zip(epochs, numbers, counts, strict=True):
        state["state"]["key"][:] = (seed, epoch)
        state["state"]["counter"][:] = (0, 0, Stream.COLLATOR, number)
        philox.state = state
        draws.append(generator.random(count))
    return draws


def pair_generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """For the random choices about the pair of texts with this number in the epoch."""
    return _generator(seed, epoch, 0, Stream.PAIR, number)


def shard_generator(seed: int, epoch: int) -> np.random.Generator:
    """For the order in which the shards of a stream are read, the same for all processes."""
    return _generator(seed, epoch, Stream.SHUFFLE, 0, 0)


def buffer_generator(seed: int, epoch: int, process_index: int, chunk: int) -> np.random.Generator:
    """For one chunk of the draws from a process's shuffle buffer; chunks are numbered from 0 in each epoch."""
    return _generator(seed, epoch, Stream.SHUFFLE, 1 + process_index, chunk)


def window_generator(seed: int, epoch: int, process_index: int, window: int) -> np.random.Generator:
    """For the order of the examples in a window of a process's stream; windows are numbered from 0 in each epoch."""
    return _generator(seed, epoch, Stream.WINDOW, process_index, window)


def _generator(seed: int, epoch: int, *words: int) -> np.random.Generator:
    key = np.array([seed, epoch], dtype=np.uint64)  # from a list, NumPy would round seeds above 2**63 to float64
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, *words], dtype=np.uint64)))
