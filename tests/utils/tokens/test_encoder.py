"""Texts are encoded in threads, in order, without side effects on the process."""

import os
import threading

import pytest
from conftest import make_lines

from utils.text.segmentation import Segmenter
from utils.tokens.encoder import Encoder
from utils.tokens.threads import map_in_threads


def test_results_keep_their_order_and_little_is_read_ahead():
    num_read = 0

    def items():
        nonlocal num_read
        for i in range(100):
            num_read += 1
            yield i

    for i, result in enumerate(map_in_threads(lambda number: number**2, items(), 3)):
        assert result == i**2
        assert num_read <= i + 1 + 2 * 3
    assert i == 99


def test_an_error_in_a_thread_is_raised_in_order():
    results = map_in_threads(lambda number: 1 // (3 - number), range(10), 2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_stops_the_threads():
    before = set(threading.enumerate())
    results = map_in_threads(lambda number: number, iter(range(10**9)), 2)
    next(results)
    threads = set(threading.enumerate()) - before
    assert 1 <= len(threads) <= 2
    results.close()
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_environment_stays_as_it_is(tokenizer, monkeypatch):
    encoder = Encoder(tokenizer, False, False, False, False)
    for value in (None, "false", "true"):
        if value is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM")
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", value)
        before = dict(os.environ)
        results = map_in_threads(encoder, [make_lines(20, seed) for seed in range(10)], 2)
        tokens = next(results).tokens.tolist()
        assert dict(os.environ) == before
        assert tokens == [token for line in make_lines(20) for token in tokenizer(line)["input_ids"]]
        results.close()
        assert dict(os.environ) == before


@pytest.mark.parametrize("use_fast", [True, False])
def test_documents_without_segments(use_fast, tokenizer, monkeypatch):
    if not use_fast:
        monkeypatch.setattr(type(tokenizer), "is_fast", False)
    encoded = Encoder(tokenizer, False, False, False, False, Segmenter("line"))(["", "\n \n"])
    assert encoded.tokens.tolist() == encoded.segment_lengths.tolist() == []
    assert encoded.lengths.tolist() == [0, 0]
    assert encoded.document_bytes.tolist() == [0, 3]
