"""Pairs that a dataset already has, as texts or as token ids."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from pair_stores import FIRST, make_pair_store, take_apart

from utils.errors import UsageError
from utils.examples.prebuilt_pairs import PreprocessedPairs, TextPairs, pair_source, read_labels, text_columns


def make_text_pairs(tmp_path, tokenizer, lengths_a, lengths_b, size) -> TextPairs:
    stores = [
        make_pair_store(tmp_path / name, [[length] if length else [] for length in lengths])
        for name, lengths in (("a", lengths_a), ("b", lengths_b))
    ]
    labels = np.arange(len(lengths_a), dtype=np.uint8) % 2
    return TextPairs(stores, labels, size, tokenizer, seed=0)


def test_truncation_takes_from_random_ends(tmp_path, masked_tokenizer):
    pairs = make_text_pairs(tmp_path, masked_tokenizer, [60] * 400, [10] * 400, 33)
    from_front = []
    for index, example in enumerate(pairs.__getitems__(list(range(400)))):
        a, b = take_apart(example, masked_tokenizer)
        assert (len(a), len(b)) == (20, 10)
        from_front.append(a[0] - 60 * index)
    assert min(from_front) >= 0 and max(from_front) <= 40
    assert abs(np.mean(from_front) - 20) < 4 * (40 * 0.25 / 400) ** 0.5


def test_text_pairs(tmp_path, masked_tokenizer):
    pairs = make_text_pairs(tmp_path, masked_tokenizer, [5, 0, 9], [4, 6, 0], 40)
    cls, sep = masked_tokenizer.cls_token_id, masked_tokenizer.sep_token_id
    places = [((0, 5), (0, 4)), ((5, 5), (4, 10)), ((5, 14), (10, 10))]
    for example, label, (a, b) in zip(pairs.__getitems__([0, 1, 2]), (0, 1, 0), places, strict=True):
        a, b = (list(range(FIRST + start, FIRST + stop)) for start, stop in (a, b))
        assert example["input_ids"].tolist() == [cls, *a, sep, *b, sep]
        assert example["token_type_ids"].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert example["next_sentence_label"] == label


def make_ids(num_rows: int = 6, **changes) -> Dataset:
    """Rows of 8 places, of which the last ones are padding."""
    columns = {"input_ids": [], "token_type_ids": [], "attention_mask": [], "next_sentence_label": [], "labels": []}
    for row in range(num_rows):
        length = 8 - row % 3
        columns["input_ids"].append([0, 10 + row, 2, *range(20, 20 + length - 4), 2, *[1] * (8 - length)])
        columns["token_type_ids"].append([0, 0, 0, *[1] * (length - 3), *[0] * (8 - length)])
        columns["attention_mask"].append([1] * length + [0] * (8 - length))
        columns["next_sentence_label"].append(row % 2)
        columns["labels"].append([-100, 30 + row, *[-100] * 6])
    return Dataset.from_dict(columns | changes)


def test_preprocessed_pairs_lose_their_padding(masked_tokenizer):
    rows = make_ids()
    pairs = PreprocessedPairs(rows.select([1, 2, 4]), 8, masked_tokenizer, seed=0, is_masked=True)
    assert len(pairs) == 3
    for index, example in enumerate(pairs.__getitems__([0, 1, 2])):
        row = rows[[1, 2, 4][index]]
        length = sum(row["attention_mask"])
        for name in ("input_ids", "token_type_ids", "labels"):
            assert example[name].tolist() == row[name][:length]
        assert (example["next_sentence_label"], example["index"]) == (row["next_sentence_label"], index)
    assert "labels" not in PreprocessedPairs(rows, 8, masked_tokenizer, seed=0)[0]
    assert len(PreprocessedPairs(rows, 8, masked_tokenizer, seed=0, max_pairs=2)) == 2


@pytest.mark.parametrize(
    ("changes", "length", "message"),
    [
        ({"next_sentence_label": [0, 1, 2, 0, 1, 0]}, 8, "has the value 2"),
        ({"next_sentence_label": [0, 1, None, 0, 1, 0]}, 8, "has the value None"),
        ({"next_sentence_label": ["0"] * 6}, 8, "has the value '0'"),
        ({"input_ids": [[5000] * 8] * 6}, 8, "a token 5000"),
        ({"token_type_ids": [[2] * 8] * 6}, 8, "token type 2"),
        ({"token_type_ids": [[0] * 7] * 6}, 8, "differ in length"),
        ({"attention_mask": ["yes"] * 6}, 8, "no column attention_mask of lists of integers"),
        ({}, 7, "row 0 of the train data has 8 tokens"),
    ],
)
def test_bad_preprocessed_data_are_refused(changes, length, message, masked_tokenizer):
    with pytest.raises(UsageError, match=message):
        PreprocessedPairs(make_ids(**changes), length, masked_tokenizer, seed=0)


def test_missing_columns_are_named(masked_tokenizer):
    with pytest.raises(UsageError, match="no column labels of lists"):
        PreprocessedPairs(make_ids().remove_columns("labels"), 8, masked_tokenizer, seed=0, is_masked=True)
    with pytest.raises(UsageError, match="no column next_sentence_label"):
        read_labels(make_ids().remove_columns("next_sentence_label"), "train")


def test_what_a_data_set_holds():
    ids, texts = make_ids(), Dataset.from_dict({"one": ["a"], "two": ["b"], "next_sentence_label": [0]})
    raw = Dataset.from_dict({"text": ["a"], "input_ids": [[1]]})
    assert [pair_source(rows, False, (None, None)) for rows in (ids, texts, raw)] == ["ids", "texts", "documents"]
    assert pair_source(raw, True, (None, None)) == "ids"
    assert pair_source(ids, False, ("one", "two")) == "texts"
    assert text_columns(DatasetDict(train=texts), (None, None)) == ["one", "two"]
    assert text_columns(DatasetDict(train=texts), ("two", "one")) == ["two", "one"]
    with pytest.raises(UsageError, match="choose two of one, two"):
        text_columns(DatasetDict(train=texts), ("one", "three"))
    with pytest.raises(UsageError, match="without two"):
        columns = {"one": ["a", "b"], "two": ["c", None], "next_sentence_label": [0, 1]}
        text_columns(DatasetDict(train=Dataset.from_dict(columns)), (None, None))
