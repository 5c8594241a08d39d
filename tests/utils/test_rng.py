"""Random streams: the numbers are those of the documented keys and counters, and no two streams share a counter."""

import itertools

import numpy as np
import pytest

from utils import rng


SEEDS_AND_EPOCHS = [(0, 0), (42, 3), (2**64 - 1, 7)]


def philox(seed: int, epoch: int, *counter: int) -> np.random.Generator:
    key, counter = (np.array(words, dtype=np.uint64) for words in ((seed, epoch), counter))
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@pytest.mark.parametrize(("seed", "epoch"), SEEDS_AND_EPOCHS)
def test_numbers_are_those_of_literal_counters(seed, epoch):
    numbers, counts = [0, 5, 2**40], [10, 1, 33]
    draws = rng.collator_draws(seed, [epoch] * 3, numbers, counts)
    for drawn, number, count in zip(draws, numbers, counts, strict=True):
        assert drawn.tolist() == philox(seed, epoch, 0, 0, 0, number).random(count).tolist()
    for generator, counter in (
        (rng.pair_generator(seed, epoch, 5), (0, 0, 1, 5)),
        (rng.shard_generator(seed, epoch), (0, 2, 0, 0)),
        (rng.buffer_generator(seed, epoch, process_index=3, chunk=6), (0, 2, 4, 6)),
        (rng.window_generator(seed, epoch, process_index=3, window=6), (0, 3, 3, 6)),
    ):
        expected = philox(seed, epoch, *counter)
        assert generator.random(9).tolist() == expected.random(9).tolist()
        assert generator.permutation(20).tolist() == expected.permutation(20).tolist()


def test_numbers_stay_as_they_are():
    """Literal values: a changed stream would change the meaning of every seed."""
    (draws,) = rng.collator_draws(42, [1], [7], [2])
    generators = [
        rng.pair_generator(42, 1, 7),
        rng.shard_generator(42, 1),
        rng.buffer_generator(42, 1, 0, 7),
        rng.window_generator(42, 1, 0, 7),
    ]
    firsts = [draws[0], *(generator.random() for generator in generators)]
    expected = [0.7153377995449304, 0.6374068228033427, 0.15304433530212924, 0.43680670647806397, 0.2141104112805695]
    assert firsts == expected


def test_each_example_has_its_own_epoch():
    first, second = rng.collator_draws(1, [0, 4], [9, 9], [3, 3])
    assert first.tolist() == philox(1, 0, 0, 0, 0, 9).random(3).tolist()
    assert second.tolist() == philox(1, 4, 0, 0, 0, 9).random(3).tolist()


def test_no_two_streams_share_a_counter(monkeypatch):
    """With processes, chunks, windows and examples of any number, small and as large as may be."""
    counters = []
    plain_philox = np.random.Philox

    class RecordingPhilox(plain_philox):
        """Notes the counter that it starts from; `collator_draws` sets one for each example."""

        def __init__(self, *args, counter=None, **kwargs):
            super().__init__(*args, counter=counter, **kwargs)
            if counter is not None:
                counters.append(tuple(map(int, counter)))

        @property
        def state(self):
            return plain_philox.state.__get__(self)

        @state.setter
        def state(self, value):
            counters.append(tuple(value["state"]["counter"].tolist()))
            plain_philox.state.__set__(self, value)

    monkeypatch.setattr(np.random, "Philox", RecordingPhilox)
    values = [0, 1, 2, 3, 4, 5, 1000, 2**32, 2**63 - 1]
    rng.collator_draws(0, [0] * len(values), values, [1] * len(values))
    rng.shard_generator(0, 0)
    for value in values:
        rng.pair_generator(0, 0, value)
    for process, value in itertools.product(values, values):
        rng.buffer_generator(0, 0, process, value)
        rng.window_generator(0, 0, process, value)
    assert len(counters) == 2 * len(values) + 1 + 2 * len(values) ** 2
    assert len(set(counters)) == len(counters)
    assert {counter[0] for counter in counters} == {0}  # the word that the generator counts up itself
    assert len(set(rng.Stream)) == len(rng.Stream.__members__)
