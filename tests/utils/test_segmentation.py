"""Documents are cut into lines or sentences, and the token store knows where their tokens begin."""

import numpy as np
import pytest
from conftest import make_lines
from datasets import Dataset

import utils.text.segmentation
from utils.config.data_arguments import DataArguments
from utils.text.segmentation import Segmenter
from utils.tokens.token_store import TokenStore, tokenize_documents
from utils.tokens.tokenizer_training import train_tokenizer


def document_text(row: dict) -> str | None:
    return row["text"]


@pytest.fixture(scope="module")
def wordpiece():
    return train_tokenizer("wordpiece", [make_lines(200)], 120)


@pytest.fixture
def store_of(tmp_path, wordpiece):
    """`store_of(texts, segmenter)`: the store of these documents."""

    def build(texts: list[str], segmenter: Segmenter | None, **options) -> TokenStore:
        data_args = DataArguments(train_file=["unused"], preprocessing_num_workers=2)
        return tokenize_documents(
            Dataset.from_dict({"text": texts}), wordpiece, document_text, data_args, cache_dir=str(tmp_path),
            description="train", add_special_tokens=False, segmenter=segmenter, **options,
        )  # fmt: skip

    return build


def test_lines():
    assert Segmenter("line")("One.\r\n\n  two words \n\x0b\nthree\x0cfour\n") == ["One.", "two words", "three\x0cfour"]
    assert Segmenter("line")(" \n\n") == []


def test_sentences():
    """Abbreviations and quotations do not end them, the white space between them belongs to none."""
    text = 'Mr. Smith paid $3.50 on Jan. 5. "Did he?" she asked.  He did!\n\nIt was J. K. Rowling.'
    assert Segmenter("sentence")(text) == [
        "Mr. Smith paid $3.50 on Jan. 5.", '"Did he?" she asked.', "He did!", "It was J. K. Rowling.",
    ]  # fmt: skip
    german = "Das kostet z. B. 3 Euro, d. h. viel. Prof. Müller zahlt."
    assert Segmenter("sentence", "de")(german) == ["Das kostet z. B. 3 Euro, d. h. viel.", "Prof. Müller zahlt."]


def test_segments_in_the_store(store_of, wordpiece):
    """Each is tokenized by itself; a document is its segments; what has no token is no segment."""
    lines = make_lines(3000)
    documents = ["\n".join(lines[start : start + start % 7]) for start in range(0, 3000, 7)]
    documents += ["", "\n\n", "the cat\n\x00\nsat"]  # WordPiece gives no token for a control character
    store = store_of(documents, Segmenter("line"))
    assert len(store.offsets) == len(documents) + 1
    assert store.num_bytes == sum(len(document.encode()) for document in documents)
    segments = iter(zip(store.segment_offsets, store.segment_offsets[1:], strict=False))
    for document, start, end in zip(documents, store.offsets, store.offsets[1:], strict=False):
        place = start
        for line in document.split("\n"):
            ids = wordpiece(line, add_special_tokens=False)["input_ids"]
            if ids:
                assert next(segments) == (place, place + len(ids))
                assert store.tokens[place : place + len(ids)].tolist() == ids
                place += len(ids)
        assert place == end
    assert next(segments, None) is None
    assert store.segment_offsets.dtype == np.int64


def test_words_begin_anew_in_each_segment(store_of):
    store = store_of(["sat\non\nthe mat"], Segmenter("line"), with_word_starts=True)
    assert set(store.segment_offsets[:-1].tolist()) <= set(np.flatnonzero(store.word_starts).tolist())


def test_without_a_segmenter_there_are_none(store_of):
    store = store_of(["the cat\nsat"], None)
    assert store.segment_offsets is None
    assert not (store.path / "segment_offsets.bin").exists()


def test_what_decides_the_segments_is_in_the_cache_key(store_of, monkeypatch):
    texts = ["the cat sat. a mat\nand one."]

    def path(*segmenter) -> str:
        return store_of(texts, Segmenter(*segmenter) if segmenter else None).path

    paths = [path(), path("line"), path("sentence", "en"), path("sentence", "de")]
    assert len(set(paths)) == 4
    assert path("line", "de") == path("line")  # lines have no language
    monkeypatch.setattr(utils.text.segmentation, "version", lambda package: "another")
    assert path("sentence", "en") not in paths
    assert path("line") in paths
    monkeypatch.setattr(utils.text.segmentation, "SEGMENTATION_VERSION", 0)
    assert path("line") not in paths
