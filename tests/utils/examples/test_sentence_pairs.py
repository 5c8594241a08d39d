"""Pairs of segments: share of negatives, the place of B, the length, and that seed, epoch and index decide all."""

import itertools
import pickle
import random
from bisect import bisect_right

import numpy as np
import pytest
from pair_stores import make_pair_store, take_apart
from torch.utils.data import DataLoader

from utils.errors import UsageError
from utils.examples.pairs import truncate_pair
from utils.examples.sentence_pairs import SentencePairs


def random_documents(num_documents: int, seed: int = 0) -> list[list[int]]:
    """Documents of 0 to 40 segments of 1 to 30 tokens, and now and then of 100."""
    generator = random.Random(seed)
    lengths = [*range(1, 31), 100]
    return [[generator.choice(lengths) for _ in range(generator.randint(0, 40))] for _ in range(num_documents)]


@pytest.fixture
def pairs_of(tmp_path, masked_tokenizer):
    """`pairs_of(documents, length, ...)`: their SentencePairs."""
    numbers = itertools.count()

    def make(documents, length, task="nsp", seed=1, with_words=False, **options) -> SentencePairs:
        store = make_pair_store(tmp_path / f"store{next(numbers)}", documents, with_words)
        return SentencePairs(store, length, masked_tokenizer, task=task, seed=seed, **options)

    return make


@pytest.mark.parametrize("task", ["nsp", "sop"])
def test_twenty_thousand_pairs(task, pairs_of, masked_tokenizer):
    """Half of them are negatives, whose B is from another document (nsp) or before A (sop). The B of a positive
    follows its A. None is too long. The lengths do not give the label away."""
    pairs = pairs_of(random_documents(400), 32, task)
    store = pairs.stores[0]
    segments, offsets = store.segment_offsets.tolist(), store.offsets.tolist()
    num_negatives = total = 0
    differences = ([], [])  # between the lengths of A and B, by label
    for epoch in itertools.count():
        pairs.set_epoch(epoch)
        for example in pairs.__getitems__(list(range(len(pairs)))):
            a, b = take_apart(example, masked_tokenizer)
            assert len(example["input_ids"]) <= 32
            document_a, document_b = bisect_right(offsets, a[0]), bisect_right(offsets, b[0])
            assert a[-1] < offsets[document_a] and b[-1] < offsets[document_b]  # each within one document
            is_negative = example["next_sentence_label"]
            if is_negative and task == "nsp":
                assert document_a != document_b
            else:
                before, after = (b, a) if is_negative else (a, b)
                assert document_a == document_b
                # The end of a segment lies between them, and only what was truncated.
                assert before[-1] < segments[bisect_right(segments, before[-1])] <= after[0]
                if len(example["input_ids"]) < 32:  # nothing was truncated
                    assert after[0] == before[-1] + 1
            num_negatives += is_negative
            differences[is_negative].append(len(a) - len(b))
        total += len(pairs)
        if total >= 20_000:
            break
    assert abs(num_negatives / total - 0.5) < 4 * 0.5 / total**0.5
    error = sum(np.var(values) / len(values) for values in differences) ** 0.5
    assert abs(np.mean(differences[0]) - np.mean(differences[1])) < 4 * error


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_share_of_negatives_follows_the_flag(probability, pairs_of):
    pairs = pairs_of(random_documents(100), 16, negative_probability=probability)
    labels = [example["next_sentence_label"] for example in pairs.__getitems__(list(range(len(pairs))))]
    assert len(labels) > 2000
    assert abs(np.mean(labels) - probability) <= 4 * (probability * (1 - probability) / len(labels)) ** 0.5


def test_the_length_is_filled(pairs_of):
    """By every pair of a document that is longer; a pair of a short document has all of it."""
    long_documents = [document for document in random_documents(150) if sum(document) > 100]
    for task, label in itertools.product(("nsp", "sop"), (0.0, 1.0)):
        pairs = pairs_of(long_documents, 48, task, short_probability=0.0, negative_probability=label)
        assert {len(example["input_ids"]) for example in pairs.__getitems__(list(range(len(pairs))))} == {48}
    pairs = pairs_of([[3, 4, 5]] * 50, 64, short_probability=0.0, negative_probability=0.0)
    assert {len(example["input_ids"]) for example in pairs.__getitems__(list(range(50)))} == {15}


def test_short_pairs_are_gathered_up_to_a_random_length(pairs_of):
    """With segments of one token, the length is exact: 2 to the maximum, all equally likely."""
    pairs = pairs_of([[1] * 200] * 40, 23, short_probability=0.5)
    lengths = np.array([len(example["input_ids"]) - 3 for example in pairs.__getitems__(list(range(len(pairs))))])
    shares = np.bincount(lengths, minlength=21) / len(lengths)
    assert shares[:2].sum() == 0
    error = 4 * (0.5 / 19 / len(lengths)) ** 0.5
    assert np.all(np.abs(shares[2:20] - 0.5 / 19) < error)
    assert abs(shares[20] - 0.5 - 0.5 / 19) < 4 * (0.25 / len(lengths)) ** 0.5
    none = pairs_of([[1] * 200] * 4, 23, short_probability=0.0)
    assert {len(example["input_ids"]) for example in none.__getitems__(list(range(len(none))))} == {23}


def test_the_number_of_pairs_is_fixed_and_an_epoch_reads_the_corpus_about_once(pairs_of, masked_tokenizer):
    documents = random_documents(30)
    pairs = pairs_of(documents, 32)
    assert len(pairs) == sum(-(-sum(document) // 29) for document in documents if len(document) > 1)
    reads = np.zeros(len(pairs.stores[0].tokens))
    num_epochs = 20
    for epoch in range(num_epochs):
        pairs.set_epoch(epoch)
        for example in pairs.__getitems__(list(range(len(pairs)))):
            for part in take_apart(example, masked_tokenizer):
                reads[part.start : part.stop] += 1
    assert 0.85 < reads.mean() / num_epochs < 1.15
    segments = pairs.stores[0].segment_offsets
    reads_of_segments = np.add.reduceat(reads, segments[:-1]) / np.diff(segments) / num_epochs
    assert np.mean(reads_of_segments > 0) > 0.99
    assert np.mean((reads_of_segments > 0.3) & (reads_of_segments < 2)) > 0.9


def test_long_and_single_segments(pairs_of, masked_tokenizer):
    """Segments longer than an example give positives too; a document of one segment serves only as a B."""
    pairs = pairs_of([[100, 100, 100], [7], [50, 60]], 20)
    assert len(pairs) == 18 + 7
    sources = {"a": set(), "b": set()}
    for epoch in range(30):
        pairs.set_epoch(epoch)
        for example in pairs.__getitems__(list(range(len(pairs)))):
            a, b = take_apart(example, masked_tokenizer)
            assert len(a) + len(b) == 17
            sources["a"].add(int(np.searchsorted([0, 100, 200, 300, 307, 357], a[0], side="right")))
            sources["b"].add(int(np.searchsorted([0, 100, 200, 300, 307, 357], b[0], side="right")))
    assert sources == {
        "a": {1, 2, 5},
        "b": {2, 3, 4, 6},
    }  # a random B, like a true one, does not start a document, unless that has a single segment


def test_a_function_of_seed_epoch_and_index(pairs_of):
    """In any order of access, and in any worker."""
    documents = random_documents(40)

    def contents(pairs, indices) -> list:
        return [(e["input_ids"].tolist(), e["next_sentence_label"]) for e in pairs.__getitems__(indices)]

    indices = list(range(200))
    pairs, twin = pairs_of(documents, 24), pairs_of(documents, 24)
    first = contents(pairs, indices)
    assert contents(twin, indices[::-1])[::-1] == first
    twin.set_epoch(1)
    second = contents(twin, indices)
    assert sum(one != two for one, two in zip(first, second, strict=True)) > 190
    twin.set_epoch(0)
    assert contents(twin, indices) == first
    other_seed = contents(pairs_of(documents, 24, seed=2), indices)
    assert sum(one != two for one, two in zip(first, other_seed, strict=True)) > 190
    with pytest.raises(IndexError):
        pairs[len(pairs)]
    limited = pairs_of(documents, 24, max_pairs=10)
    assert len(limited) == 10 and contents(limited, indices[:10]) == first[:10]

    loader = DataLoader(pairs, batch_size=50, num_workers=2, persistent_workers=True, collate_fn=list)
    for epoch in (0, 1):
        pairs.set_epoch(epoch)
        examples = [example for batch in itertools.islice(loader, 4) for example in batch]
        expected = (first, second)[epoch]
        assert [(e["input_ids"].tolist(), e["next_sentence_label"]) for e in examples] == expected
        assert {example["epoch"] for example in examples} == {epoch}


def test_nothing_that_grows_with_the_tokens_is_kept(pairs_of):
    """Spawned workers receive the offsets of documents, and map the rest."""
    sizes = [len(pickle.dumps(pairs_of([[5] * length] * 4, 16).__dict__ | {"_epoch": 0})) for length in (10, 10_000)]
    assert abs(sizes[1] - sizes[0]) < 100


def test_words_begin_where_their_tokens_are(pairs_of, masked_tokenizer):
    pairs = pairs_of(random_documents(10), 24, with_words=True)
    for example in pairs.__getitems__(list(range(len(pairs)))):
        a, b = take_apart(example, masked_tokenizer)
        expected = [1]
        for part in (a, b):
            expected += [int(place % 3 == 0 or place == part[0]) for place in part] + [1]
        assert example["word_starts"].tolist() == expected


def test_corpora_without_pairs_are_refused(pairs_of):
    with pytest.raises(UsageError, match="validation corpus is one document"):
        pairs_of([[], [5, 5, 5], []], 16, description="validation")
    assert len(pairs_of([[], [5, 5, 5], []], 16, "sop")) == 2
    with pytest.raises(UsageError, match="no document of two segments"):
        pairs_of([[5], [6], [7]], 16)


def test_truncation_is_that_of_bert():
    def reference(length_a: int, length_b: int, size: int) -> tuple[int, int]:
        while length_a + length_b > size:
            if length_a > length_b:
                length_a -= 1
            else:
                length_b -= 1
        return length_a, length_b

    for lengths in itertools.product(range(13), range(13), range(4, 16)):
        assert truncate_pair(*lengths) == reference(*lengths)
