"""The token store holds exactly the output of the tokenizer, is built once and is never reused for other input."""

import itertools
import json
import multiprocessing
import os
import pickle

import numpy as np
import pytest
from conftest import make_lines
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from utils.config.data_arguments import DataArguments
from utils.errors import UsageError
from utils.text import segmentation
from utils.text.segmentation import Segmenter
from utils.tokens import store_builder, tokenization
from utils.tokens.token_store import TokenStore
from utils.tokens.tokenization import tokenize_documents
from utils.tokens.tokenizer_training import train_tokenizer


def document_text(row: dict) -> str | None:
    return row["text"]


def build(documents, tokenizer, tmp_path, function=document_text, **options) -> TokenStore:
    if not isinstance(documents, Dataset):
        documents = Dataset.from_dict({"text": documents})
    data_options = {"preprocessing_num_workers": options.pop("num_workers", 2)}
    data_args = DataArguments(train_file=["-"], overwrite_cache=options.pop("overwrite_cache", False), **data_options)
    options = {"cache_dir": str(tmp_path), "description": "train", "with_token_bytes": True} | options
    return tokenize_documents(documents, tokenizer, function, data_args, **options)


def documents_of(store: TokenStore) -> list[list[int]]:
    return [store.tokens[start:end].tolist() for start, end in itertools.pairwise(store.offsets)]


@pytest.fixture
def builds(monkeypatch):
    """A list with one entry for each time that a part of a corpus is tokenized."""
    calls = []
    tokenize = store_builder.Build._tokenize
    monkeypatch.setattr(
        store_builder.Build, "_tokenize", lambda self, key: (calls.append(key), tokenize(self, key))[1]
    )
    return calls


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
@pytest.mark.parametrize("use_fast", [True, False])
def test_ids_equal_those_of_the_tokenizer(kind, use_fast, tmp_path, monkeypatch):
    """In batches of any size, in several threads, and even if the tokenizer has truncation and padding enabled."""
    tokenizer = train_tokenizer(kind, [make_lines(100)], 300)
    lines = [*make_lines(300), "", "\n", "a\r\nb", "日本", "x" * 500]
    expected = [tokenizer(line)["input_ids"] for line in lines]
    if use_fast:
        tokenizer.backend_tokenizer.enable_truncation(5)
        tokenizer.backend_tokenizer.enable_padding(length=9)
    else:
        monkeypatch.setattr(type(tokenizer), "is_fast", False)
    monkeypatch.setattr(store_builder, "CHARACTERS_PER_TASK", 300)
    store = build(lines, tokenizer, tmp_path, num_workers=3)
    assert documents_of(store) == expected
    assert store.tokens.dtype == np.uint16
    assert store.num_bytes == sum(len(line.encode()) for line in lines)
    assert store.num_documents == len(lines)
    if use_fast:
        assert store.token_bytes.sum() == store.num_bytes
    else:
        assert store.token_bytes is None


def test_ids_of_large_vocabularies_have_four_bytes(tokenizer, tmp_path):
    larger = AutoTokenizer.from_pretrained(save(tokenizer, tmp_path))
    larger.add_tokens([f"<extra{i}>" for i in range(2**16)])
    store = build(["the <extra65535> cat"], larger, tmp_path)
    assert store.tokens.dtype == np.uint32
    assert store.tokens.max() >= 2**16


def save(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_bytes_of_documents_without_tokens_count_towards_the_next_token(tmp_path):
    tokenizer = train_tokenizer("wordpiece", [["ab cd"] * 3], 50)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    store = build(["  ", "ab", " \n ", "cd", "\n\n"], tokenizer, tmp_path)
    assert [len(document) for document in documents_of(store)] == [0, 1, 0, 1, 0]
    assert store.token_bytes.tolist() == [2 + 2, 3 + 2 + 2]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_append_eos_ends_each_document_once(kind, tmp_path):
    """It is not doubled if the tokenizer adds it ([SEP]) or the text ends with it. Empty documents stay empty."""
    tokenizer = train_tokenizer(kind, [make_lines(100)], 300)
    eos = tokenizer.eos_token_id
    lines = ["the cat", "", "sat on" + tokenizer.eos_token, "a mat", ""]
    documents = documents_of(build(lines, tokenizer, tmp_path, append_eos=True))
    assert [document.count(eos) for document in documents] == [1, 0, 1 if kind == "bpe" else 2, 1, 0]
    assert all(
        document[-1] == eos and document[:-1][-1] != eos for document in documents if document and kind == "bpe"
    )
    plain = documents_of(build(lines, tokenizer, tmp_path))
    assert [len(a) for a, b in zip(plain, documents, strict=True) if b] == [
        len(b) - (kind == "bpe" and eos not in a) for a, b in zip(plain, documents, strict=True) if b
    ]


def test_append_eos_needs_an_eos_token(tokenizer, tmp_path):
    folder = save(tokenizer, tmp_path)
    plain = AutoTokenizer.from_pretrained(folder, eos_token=None)
    with pytest.raises(UsageError, match="--append_eos"):
        build(["the cat"], plain, tmp_path, append_eos=True)


def test_rows_may_be_left_out(tokenizer, tmp_path):
    lines = make_lines(10)
    store = build(lines, tokenizer, tmp_path, lambda row: row["text"] if row["text"] in lines[::2] else None)
    assert documents_of(store) == [tokenizer(line)["input_ids"] for line in lines[::2]]


def test_store_is_reused_and_rebuilt_after_any_change(tokenizer, tmp_path, builds, monkeypatch):
    lines = make_lines(20)
    first = build(lines, tokenizer, tmp_path)
    assert build(lines, tokenizer, tmp_path, num_workers=1).path == first.path
    assert len(builds) == 1

    build([*lines[:-1], lines[-1] + "!"], tokenizer, tmp_path)
    assert len(builds) == 2
    build(lines, tokenizer, tmp_path, append_eos=True)
    assert len(builds) == 3
    build(lines, tokenizer, tmp_path, with_token_bytes=False)
    assert len(builds) == 4
    build(lines, train_tokenizer("bpe", [lines], 290), tmp_path)
    assert len(builds) == 5
    changed = AutoTokenizer.from_pretrained(save(tokenizer, tmp_path))
    changed.add_tokens(["cat sat"])
    build(lines, changed, tmp_path)
    assert len(builds) == 6
    with monkeypatch.context() as patch:
        patch.setattr(tokenization, "FORMAT_VERSION", 999)
        build(lines, tokenizer, tmp_path)
    assert len(builds) == 7
    build(lines, tokenizer, tmp_path, overwrite_cache=True)
    assert len(builds) == 8
    assert build(lines, tokenizer, tmp_path).path == first.path
    assert len(builds) == 8


def test_an_incomplete_store_is_rebuilt(tokenizer, tmp_path, builds):
    """As a killed job leaves it."""
    lines = make_lines(20)
    store = build(lines, tokenizer, tmp_path)
    expected = store.tokens.tolist()
    for folder in [store.path, *store.path.parent.glob("*/part.json")]:
        folder = folder if folder.is_dir() else folder.parent
        folder.rename(folder.with_name(f"{folder.name}.unfinished"))
    assert build(lines, tokenizer, tmp_path).tokens.tolist() == expected
    assert len(builds) == 2


def test_a_corpus_without_tokens_is_an_error(tokenizer, tmp_path):
    with pytest.raises(UsageError, match="empty"):
        build(["", ""], tokenizer, tmp_path)


def test_pickled_store_is_a_path(tokenizer, tmp_path):
    store = build(make_lines(500), tokenizer, tmp_path)
    packed = pickle.dumps(store)
    assert len(packed) < 1000
    np.testing.assert_array_equal(pickle.loads(packed).tokens, store.tokens)


def _build_in_process(arguments):
    lines, folder, cache = arguments
    os.environ |= {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    store = build(lines, AutoTokenizer.from_pretrained(folder), cache, overwrite_cache=True)
    (part,) = store.path.parent.glob("*/part.json")
    return json.loads(part.read_text())["job"], part.stat().st_mtime_ns


def test_processes_of_a_job_build_once(tokenizer, tmp_path):
    """Even with --overwrite_cache, which all of them receive."""
    folder = save(tokenizer, tmp_path)
    arguments = [(make_lines(200), folder, tmp_path)] * 2
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        (job, built), (other_job, other_built) = pool.map(_build_in_process, arguments, chunksize=1)
    assert (job, built) == (other_job, other_built)


# Segments


@pytest.fixture(scope="module")
def wordpiece():
    return train_tokenizer("wordpiece", [make_lines(200)], 120)


@pytest.fixture
def build_segments(tmp_path, wordpiece):
    """`build_segments(texts, segmenter)` returns the store of these documents."""

    def call(texts: list[str], segmenter: Segmenter | None, **options) -> TokenStore:
        options |= {"add_special_tokens": False, "with_token_bytes": False, "segmenter": segmenter}
        return build(texts, wordpiece, tmp_path, **options)

    return call


def test_each_segment_is_tokenized_separately(build_segments, wordpiece):
    """A document is the concatenation of its segments. A segment without tokens is dropped."""
    lines = make_lines(3000)
    documents = ["\n".join(lines[start : start + start % 7]) for start in range(0, 3000, 7)]
    documents += ["", "\n\n", "the cat\n\x00\nsat"]  # WordPiece has no token for a control character
    store = build_segments(documents, Segmenter("line"))
    assert len(store.offsets) == len(documents) + 1
    assert store.num_bytes == sum(len(document.encode()) for document in documents)
    segments = itertools.pairwise(store.segment_offsets)
    for document, (start, end) in zip(documents, itertools.pairwise(store.offsets), strict=True):
        for line in document.split("\n"):
            ids = wordpiece(line, add_special_tokens=False)["input_ids"]
            if ids:
                assert next(segments) == (start, start + len(ids))
                assert store.tokens[start : start + len(ids)].tolist() == ids
                start += len(ids)
        assert start == end
    assert next(segments, None) is None
    assert store.segment_offsets.dtype == np.int64


def test_each_segment_starts_a_word(build_segments):
    store = build_segments(["sat\non\nthe mat"], Segmenter("line"), with_word_starts=True)
    assert set(store.segment_offsets[:-1].tolist()) <= set(np.flatnonzero(store.word_starts).tolist())


def test_no_segments_without_a_segmenter(build_segments):
    store = build_segments(["the cat\nsat"], None)
    assert store.segment_offsets is None
    assert not (store.path / "segment_offsets.bin").exists()


def test_segmenter_is_part_of_the_cache_key(build_segments, monkeypatch):
    texts = ["the cat sat. a mat\nand one."]

    def path(*segmenter) -> str:
        return build_segments(texts, Segmenter(*segmenter) if segmenter else None).path

    paths = [path(), path("line"), path("sentence", "en"), path("sentence", "de")]
    assert len(set(paths)) == 4
    assert path("line", "de") == path("line")  # the language does not affect lines
    monkeypatch.setattr(segmentation, "version", lambda package: "another")
    assert path("sentence", "en") not in paths
    assert path("line") in paths
    monkeypatch.setattr(segmentation, "SEGMENTATION_VERSION", 0)
    assert path("line") not in paths
