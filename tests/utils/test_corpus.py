"""Where the text comes from: every format, folder and split gives the documents that are in it."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datasets import Dataset, DatasetDict

from utils.config.data_arguments import DataArguments
from utils.errors import UsageError
from utils.text import text_files
from utils.text.corpus import MAX_GROUPS, hold_out, load_corpus


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
# What the readers of tables like to take for something else than text
DOCUMENTS = [
    "a plain one", "naïve — 日本 🙂", 'with "quotes", commas', "tab\there", "two\nlines", "NA", "null", "nan", "None",
    "12", "007", "1.50", "true", "2020-01-01 00:00:00", " spaces around ", "back\\slash", "'single'", "#comment", "",
    "[1, 2]", '{"a": 1}', "\u2028separator", "last",
]  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """`load(train_file=..., seed=...)` with the defaults of the flags; the cache is shared within a test."""

    def call(*, do_train=True, do_eval=False, seed=42, **data_flags) -> DatasetDict:
        for name in ("train_file", "validation_file"):
            if name in data_flags:
                paths = data_flags[name]
                data_flags[name] = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
        training_args = SimpleNamespace(do_train=do_train, do_eval=do_eval, seed=seed)
        return load_corpus(DataArguments(**data_flags), training_args, str(tmp_path / "cache"), None)

    return call


def serialize(texts: list[str], suffix: str) -> bytes:
    if suffix == ".txt":
        return "".join(f"{text}\n" for text in texts).encode()
    if suffix == ".json":
        return json.dumps([{"text": text} for text in texts], ensure_ascii=False).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    if suffix == ".parquet":
        stream = io.BytesIO()
        pq.write_table(pa.table({"text": texts}), stream)
        return stream.getvalue()
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    writer.writerows([["text"], *([text] for text in texts)])
    return table.getvalue().encode()


def random_text(seed: int) -> str:
    """Characters that some reader takes for a line's end, blank lines with and without spaces, letters between."""
    generator = random.Random(seed)
    parts = [
        "\n",
        "\n",
        "\n\n",
        "\n \t\n",
        "\r",
        "\r\n",
        "\r\n\r\n",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x85",
        "\u2028",
        "\u2029",
    ]
    parts += ["a", "b c", " ", "é", "日本", "🙂", "\ufeff", "\t"]
    return "".join(generator.choice(parts) for _ in range(generator.randrange(80)))


def read(tmp_path, text: str, document_by: str, keep_linebreaks: bool = True) -> list[str]:
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    return [
        document
        for documents in text_files._read_documents(str(path), 0, None, document_by, keep_linebreaks)
        for document in documents
    ]


# .txt files


@pytest.mark.parametrize("read_size", [1, 7, 10 << 20])
@pytest.mark.parametrize("document_by", ["line", "blank_line", "file"])
def test_documents_put_together_are_the_file(tmp_path, monkeypatch, document_by, read_size):
    monkeypatch.setattr(text_files, "READ_SIZE", read_size)
    for seed in range(60):
        text = random_text(seed)
        documents = read(tmp_path, text, document_by)
        assert "".join(documents) == text, seed
        assert "" not in documents, seed


@pytest.mark.parametrize("keep_linebreaks", [True, False])
@pytest.mark.parametrize("document_by", ["line", "blank_line", "file"])
def test_documents_do_not_depend_on_the_size_of_a_read(tmp_path, monkeypatch, document_by, keep_linebreaks):
    for seed in range(60):
        text = random_text(seed)
        expected = read(tmp_path, text, document_by, keep_linebreaks)
        with monkeypatch.context() as patch:
            patch.setattr(text_files, "READ_SIZE", 1 + seed % 5)
            assert read(tmp_path, text, document_by, keep_linebreaks) == expected, seed


def test_lines_end_at_newlines_alone(tmp_path):
    for seed in range(60):
        text = random_text(seed)
        lines = text.split("\n")
        expected = [line + "\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]
        assert read(tmp_path, text, "line") == expected, seed


def test_lines_without_their_ends(tmp_path):
    text = "one\n\ntwo\r\n  \n\r\nthree\rfour\x0bfive\u2028six\n last "
    expected = ["one", "", "two", "  ", "", "three\rfour\x0bfive\u2028six", " last "]
    assert read(tmp_path, text, "line", keep_linebreaks=False) == expected


def test_blank_lines_part_documents(tmp_path):
    text = "one\ntwo\n\nthree\n \t\n\r\n\n  four\r\n\r\nfive"
    expected = ["one\ntwo\n\n", "three\n \t\n\r\n\n", "  four\r\n\r\n", "five"]
    assert read(tmp_path, text, "blank_line") == expected


def test_a_document_between_blank_lines_has_text_and_no_blank_line_within(tmp_path):
    for seed in range(60):
        text = random_text(seed)
        documents = read(tmp_path, text, "blank_line")
        if text.strip():
            assert all(document.strip() for document in documents), seed
        for document in documents:
            assert not re.search(r"\S[^\n]*\n([^\S\n]*\n)+[^\S\n]*\S", document), seed


@pytest.mark.parametrize("document_by", ["line", "blank_line", "file"])
def test_no_line_end_is_left_at_the_ends_without_keep_linebreaks(tmp_path, document_by):
    for seed in range(60):
        text = random_text(seed)
        for document in read(tmp_path, text, document_by, keep_linebreaks=False):
            assert document == document.strip("\n"), seed


def test_stripping_removes_nothing_but_line_ends(tmp_path):
    for document_by in ("line", "blank_line", "file"):
        for seed in range(50):
            text = random_text(seed)
            kept = read(tmp_path, text, document_by)
            stripped = read(tmp_path, text, document_by, keep_linebreaks=False)
            assert [document.strip("\r\n") for document in kept] == [document.strip("\r\n") for document in stripped]


@pytest.mark.parametrize("document_by", ["line", "blank_line", "file"])
@pytest.mark.parametrize("read_size", [3, 10 << 20])
def test_text_files_through_the_cache(tmp_path, monkeypatch, load, document_by, read_size):
    """Several files, one of them empty, one without a newline at its end: in their order, no document across two."""
    monkeypatch.setattr(text_files, "READ_SIZE", read_size)
    texts = [random_text(1) + "end", "", "\n", random_text(2) + "\n", "\n\n" + random_text(3)]
    files = [tmp_path / f"{9 - number}.txt" for number in range(len(texts))]  # not in the order of their names
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(text.encode())
    documents = load(train_file=files, document_by=document_by)["train"]["text"]
    assert list(documents) == [document for text in texts for document in read(tmp_path, text, document_by)]
    if document_by == "file":
        assert list(documents) == [text for text in texts if text]


def test_cache_tells_ways_to_cut_and_edited_files_apart(tmp_path, load):
    file = tmp_path / "train.txt"
    file.write_text("one\ntwo\n\nthree\n")
    assert list(load(train_file=file)["train"]["text"]) == ["one\n", "two\n", "\n", "three\n"]
    assert list(load(train_file=file, keep_linebreaks=False)["train"]["text"]) == ["one", "two", "", "three"]
    assert list(load(train_file=file, document_by="blank_line")["train"]["text"]) == ["one\ntwo\n\n", "three\n"]
    assert list(load(train_file=file, document_by="file")["train"]["text"]) == ["one\ntwo\n\nthree\n"]
    file.write_text("One\ntwo\n\nthree\n")
    os.utime(file, (1, 1))
    assert list(load(train_file=file)["train"]["text"]) == ["One\n", "two\n", "\n", "three\n"]
    other = tmp_path / "other.txt"
    other.write_text("Two\ntwo\n\nthree\n")
    os.utime(other, (1, 1))
    assert list(load(train_file=other)["train"]["text"]) == ["Two\n", "two\n", "\n", "three\n"]


def test_byte_that_is_not_utf8_is_counted_from_the_start_of_the_file(tmp_path, monkeypatch):
    content = "é\n".encode() * 20 + b"\xff\n"
    (tmp_path / "text.txt").write_bytes(content)
    for read_size in (1, 7, 1000):
        monkeypatch.setattr(text_files, "READ_SIZE", read_size)
        with pytest.raises(UsageError, match=r"text\.txt: not UTF-8 at byte 60 "):
            list(text_files._read_documents(str(tmp_path / "text.txt"), 0, None, "line", True))


# Formats, compressions, files


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_tables_hold_any_text(tmp_path, load, suffix):
    (tmp_path / f"train{suffix}").write_bytes(serialize(DOCUMENTS, suffix))
    assert list(load(train_file=tmp_path / f"train{suffix}")["train"]["text"]) == DOCUMENTS


@pytest.mark.parametrize("compression", list(COMPRESS))
@pytest.mark.parametrize("suffix", list(text_files.FORMATS))
def test_formats_and_compressions_give_the_same_documents(tmp_path, load, suffix, compression):
    texts = [text for text in DOCUMENTS if "\n" not in text and text not in ("", "NA", "null", "nan", "None")]
    file = tmp_path / f"train{suffix}{compression}"
    file.write_bytes(COMPRESS[compression](serialize(texts, suffix)))
    assert list(load(train_file=file, keep_linebreaks=False)["train"]["text"]) == texts


@pytest.mark.parametrize("compression", list(COMPRESS)[1:])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_compressed_parts_that_were_joined_are_all_read(tmp_path, load, suffix, compression):
    """As `cat a.gz b.gz > c.gz` or a parallel compressor writes them."""
    file = tmp_path / f"train{suffix}{compression}"
    file.write_bytes(b"".join(COMPRESS[compression](serialize([text], suffix)) for text in ("a", "b", "c")))
    assert list(load(train_file=file, keep_linebreaks=False)["train"]["text"]) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ['{"text": "a"}\n{"text": "b"}\n', '[{"text": "a"},\n {"text": "b"}]\n'])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_lines_and_json_arrays_under_either_name(tmp_path, load, suffix, text):
    (tmp_path / f"train{suffix}").write_text(text)
    assert list(load(train_file=tmp_path / f"train{suffix}")["train"]["text"]) == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["train[1].txt", "what?.txt", "a*b.txt", "with space.txt", "100%.txt", "a#b.txt", "naïve.txt", "{x}.txt"]
)
def test_file_whose_name_is_odd(tmp_path, load, name):
    (tmp_path / name).write_text("right\n")
    (tmp_path / "train1.txt").write_text("wrong\n")
    (tmp_path / "aXb.txt").write_text("wrong\n")
    assert list(load(train_file=tmp_path / name)["train"]["text"]) == ["right\n"]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    for name in ("b.txt", "a.txt", "c.txt.gz", "deep/er/d.txt", "README.md", "noise.bin"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = f"{name}\n".encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["."], ["a.txt", "b.txt", "c.txt.gz", "deep/er/d.txt"]),
        (["*.txt"], ["a.txt", "b.txt"]),
        (["*"], ["a.txt", "b.txt", "c.txt.gz"]),
        (["**/*.txt"], ["a.txt", "b.txt", "deep/er/d.txt"]),
        (["[bc].txt*"], ["b.txt", "c.txt.gz"]),
        (["deep", "b.txt", "a.*"], ["deep/er/d.txt", "b.txt", "a.txt"]),
    ],
)
def test_folders_and_globs(load, folder, patterns, expected):
    documents = load(train_file=[folder / pattern for pattern in patterns], keep_linebreaks=False)["train"]["text"]
    assert list(documents) == expected


def test_home_folder(load, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert list(load(train_file="~/a.txt")["train"]["text"]) == ["a.txt\n"]


def test_files_keep_their_order_in_other_formats(tmp_path, load):
    files = [tmp_path / f"{name}.jsonl" for name in ("z", "a", "m")]
    for file in files:
        file.write_bytes(serialize([f"{file.stem}{number}" for number in range(3)], ".jsonl"))
    expected = ["z0", "z1", "z2", "a0", "a1", "a2", "m0", "m1", "m2"]
    assert list(load(train_file=files)["train"]["text"]) == expected


@pytest.mark.parametrize("others", [[".txt", ".jsonl"], [".csv", ".tsv"], [".parquet", ".json"]])
def test_formats_are_not_mixed_in_one_flag(tmp_path, load, others):
    files = [tmp_path / f"train{suffix}" for suffix in others]
    for file in files:
        file.write_bytes(serialize(["a\tb", "c,d"], file.suffix))
    with pytest.raises(UsageError, match=r"--train_file: all files must have the same format") as refusal:
        load(train_file=files)
    assert all(str(file) in str(refusal.value) for file in files)


def test_train_and_validation_may_differ_in_format(tmp_path, load):
    (tmp_path / "train.jsonl").write_bytes(serialize(["a", "b"], ".jsonl"))
    (tmp_path / "validation.txt.gz").write_bytes(gzip.compress(b"c\nd"))
    loaded = load(train_file=tmp_path / "train.jsonl", validation_file=tmp_path / "validation.txt.gz", do_eval=True)
    assert list(loaded["train"]["text"]) == ["a", "b"]
    assert list(loaded["validation"]["text"]) == ["c\n", "d"]


@pytest.mark.parametrize(
    "suffix", [".txt.gz", ".txt.zst", ".csv.gz", ".jsonl.gz", ".jsonl.zst", ".json.xz", ".parquet"]
)
def test_file_that_is_cut_off(tmp_path, load, suffix):
    texts = [str(random.Random(number).random()) for number in range(500)]
    path = tmp_path / f"train{suffix}"
    inner, _, compression = suffix[1:].partition(".")
    content = COMPRESS[f".{compression}" if compression else ""](serialize(texts, f".{inner}"))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=f"train{re.escape(suffix)}"):
        load(train_file=path)


# Columns


@pytest.fixture
def rows(tmp_path):
    """Writes rows as JSON lines."""

    def write(*values: dict):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in values))
        return path

    return write


def test_only_column_of_strings_is_the_text(load, rows):
    documents = load(train_file=rows({"body": "a", "id": 1}, {"body": "b", "id": 2}))["train"]
    assert list(documents["text"]) == ["a", "b"]


def test_named_column_becomes_text_and_others_stay(load, rows):
    documents = load(train_file=rows({"body": "a", "title": "A", "id": 1}), text_column="body")["train"]
    assert documents[0] == {"text": "a", "title": "A", "id": 1}


def test_named_column_wins_over_a_column_called_text(load, rows):
    documents = load(train_file=rows({"text": "wrong", "body": "right", "id": 1}), text_column="body")["train"]
    assert documents[0] == {"text": "right", "id": 1}


def test_text_column_beside_other_strings(load, rows):
    documents = load(train_file=rows({"title": "A", "text": "a"}))["train"]
    assert documents[0] == {"title": "A", "text": "a"}


@pytest.mark.parametrize(
    ("row", "text_column"),
    [
        ({"title": "A", "body": "a", "id": 1}, "text"),
        ({"title": "A", "body": "a", "id": 1}, "boby"),
        ({"title": "A", "body": "a", "id": 1}, "id"),
        ({"id": 1, "score": 0.5}, "text"),
        ({"text": 1, "id": 2}, "text"),
        ({"text": ["a"], "id": 2}, "text"),
        ({"body": "a"}, "content"),
    ],
)
def test_refusal_lists_the_columns(load, rows, row, text_column):
    with pytest.raises(UsageError, match=f"--text_column {text_column}: ") as refusal:
        load(train_file=rows(row), text_column=text_column)
    assert all(column in str(refusal.value) for column in row)


@pytest.mark.parametrize("sources", [{}, {"validation_file": "x"}])
def test_training_without_training_text(tmp_path, load, sources):
    (tmp_path / "validation.txt").write_text("a\nb\n")
    if sources:
        with pytest.raises(UsageError, match="--train_file"):
            load(validation_file=tmp_path / "validation.txt", do_eval=True)
    else:
        with pytest.raises(UsageError, match="no text"):
            load()


# Held-out documents


def split(num_documents: int, percentage: int, seed: int = 42) -> tuple[list[int], list[int]]:
    documents = Dataset.from_dict({"number": range(num_documents)}).with_format("numpy")
    train, validation = hold_out(documents, percentage, seed)
    return train[:]["number"].tolist(), validation[:]["number"].tolist()


@pytest.mark.parametrize("percentage", [1, 5, 50, 99])
@pytest.mark.parametrize("num_documents", [2, 3, 10, 999, 1000, 1001, 12345])
def test_hold_out(num_documents, percentage):
    train, validation = split(num_documents, percentage)
    assert sorted(train + validation) == list(range(num_documents))  # disjoint and complete
    assert train == sorted(train) and validation == sorted(validation)
    assert train and validation
    asked_for = num_documents * percentage / 100
    run = -(-num_documents // MAX_GROUPS)
    assert abs(len(validation) - min(max(asked_for, 1), num_documents - 1)) <= max(run, 0.01 * num_documents)
    assert split(num_documents, percentage) == (train, validation)


@pytest.mark.parametrize("num_documents", [1000, 12345])
def test_hold_out_depends_on_the_seed(num_documents):
    held_out = {tuple(split(num_documents, 5, seed)[1]) for seed in range(5)}
    assert len(held_out) == 5


def test_hold_out_keeps_neighbours_together_and_draws_from_everywhere():
    _, validation = split(20_000, 5)
    stretches = 1 + sum(later != earlier + 1 for earlier, later in zip(validation, validation[1:], strict=False))
    assert stretches <= 50 and len(validation) == 1000
    tenths = {number // 2_000 for number in validation}
    assert len(tenths) >= 8


def test_every_document_is_held_out_by_some_seed():
    held_out = {number for seed in range(100) for number in split(20, 10, seed)[1]}
    assert held_out == set(range(20))


def test_one_document_cannot_be_held_out():
    with pytest.raises(UsageError, match="--validation_file"):
        split(1, 50)


def test_held_out_documents_of_a_file(tmp_path, load):
    lines = [f"line {number}\n" for number in range(200)]
    (tmp_path / "train.txt").write_text("".join(lines))
    loaded = load(train_file=tmp_path / "train.txt", do_eval=True, validation_split_percentage=10)
    assert len(loaded["validation"]) == 20
    assert sorted([*loaded["train"]["text"], *loaded["validation"]["text"]]) == sorted(lines)
    only_eval = load(train_file=tmp_path / "train.txt", do_train=False, do_eval=True, validation_split_percentage=10)
    assert list(only_eval["validation"]["text"]) == list(loaded["validation"]["text"])
    only_train = load(train_file=tmp_path / "train.txt")
    assert list(only_train["train"]["text"]) == lines and "validation" not in only_train


# Other sources


def test_saved_dataset(tmp_path, load):
    Dataset.from_dict({"text": ["a", "b", "c"]}).save_to_disk(tmp_path / "saved")
    assert list(load(dataset_path=str(tmp_path / "saved"))["train"]["text"]) == ["a", "b", "c"]


def test_saved_dataset_dict_keeps_its_validation_split(tmp_path, load):
    splits = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    saved = DatasetDict({name: Dataset.from_dict({"body": texts}) for name, texts in splits.items()})
    saved.save_to_disk(tmp_path / "saved")
    loaded = load(dataset_path=str(tmp_path / "saved"), do_eval=True)
    assert {name: list(documents["text"]) for name, documents in loaded.items()} == {
        "train": ["a", "b"],
        "validation": ["c"],
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_local_folder_as_a_dataset_name(tmp_path, load, suffix):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / f"train{suffix}").write_bytes(serialize(["a", "b"], suffix))
    (folder / f"validation{suffix}").write_bytes(serialize(["c"], suffix))
    loaded = load(dataset_name=str(folder), do_eval=True)
    assert list(loaded["train"]["text"]) == ["a", "b"]
    assert list(loaded["validation"]["text"]) == ["c"]


def test_source_without_a_split_that_is_needed(tmp_path, load):
    DatasetDict(test=Dataset.from_dict({"text": ["a", "b"]})).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match="train split.*available splits: test"):
        load(dataset_path=str(tmp_path / "saved"))
    with pytest.raises(UsageError, match="validation or a train split; available splits: test"):
        load(dataset_path=str(tmp_path / "saved"), do_train=False, do_eval=True)


def test_built_in_corpus(load):
    loaded = load(dataset_name="builtin/python-docs", do_eval=True)
    texts = [*loaded["train"]["text"], *loaded["validation"]["text"]]
    assert len(texts) > 50 and sum(map(len, texts)) > 300_000
    assert len(loaded["validation"]) == max(round(len(texts) * 0.05), 1)
    assert load(dataset_name="builtin/python-docs")["train"]._fingerprint == (
        load(dataset_name="builtin/python-docs")["train"]._fingerprint
    )
