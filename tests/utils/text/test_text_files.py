"""Text files: each format, compression, folder and glob gives exactly the documents in it."""

import bz2
import csv
import errno
import gzip
import io
import json
import lzma
import os
import random
import re
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from utils.errors import UsageError
from utils.text import file_formats, text_files
from utils.text.cache import cache_folder


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
# Texts that readers of tables tend to parse as something else
DOCUMENTS = [
    "a plain one", "naïve — 日本 🙂", 'with "quotes", commas', "tab\there", "two\nlines", "NA", "null", "nan", "None",
    "12", "007", "1.50", "true", "2020-01-01 00:00:00", " spaces around ", "back\\slash", "'single'", "#comment", "",
    "[1, 2]", '{"a": 1}', "\u2028separator", "last",
]  # fmt: skip


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
    """Every character that some reader treats as a line break, blank lines with and without spaces, and letters."""
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
        for documents in text_files.read_documents(str(path), 0, None, document_by, keep_linebreaks)
        for document in documents
    ]


# .txt files


@pytest.mark.parametrize("read_size", [1, 7, 10 << 20])
@pytest.mark.parametrize("document_by", ["line", "blank_line", "file"])
def test_concatenated_documents_equal_the_file(tmp_path, monkeypatch, document_by, read_size):
    monkeypatch.setattr(file_formats, "READ_SIZE", read_size)
    for seed in range(60):
        text = random_text(seed)
        documents = read(tmp_path, text, document_by)
        assert "".join(documents) == text.removeprefix("\ufeff"), seed
        assert "" not in documents, seed


@pytest.mark.parametrize("keep_linebreaks", [True, False])
@pytest.mark.parametrize("document_by", ["line", "blank_line", "file"])
def test_documents_do_not_depend_on_the_read_size(tmp_path, monkeypatch, document_by, keep_linebreaks):
    for seed in range(60):
        text = random_text(seed)
        expected = read(tmp_path, text, document_by, keep_linebreaks)
        with monkeypatch.context() as patch:
            patch.setattr(file_formats, "READ_SIZE", 1 + seed % 5)
            assert read(tmp_path, text, document_by, keep_linebreaks) == expected, seed


def test_lines_end_at_newlines_only(tmp_path):
    for seed in range(60):
        text = random_text(seed)
        lines = text.removeprefix("\ufeff").split("\n")
        expected = [line + "\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]
        assert read(tmp_path, text, "line") == expected, seed


def test_lines_without_line_breaks(tmp_path):
    text = "one\n\ntwo\r\n  \n\r\nthree\rfour\x0bfive\u2028six\n last "
    expected = ["one", "", "two", "  ", "", "three\rfour\x0bfive\u2028six", " last "]
    assert read(tmp_path, text, "line", keep_linebreaks=False) == expected


def test_blank_lines_separate_documents(tmp_path):
    text = "one\ntwo\n\nthree\n \t\n\r\n\n  four\r\n\r\nfive"
    expected = ["one\ntwo\n\n", "three\n \t\n\r\n\n", "  four\r\n\r\n", "five"]
    assert read(tmp_path, text, "blank_line") == expected


def test_a_document_between_blank_lines_has_text_and_contains_no_blank_line(tmp_path):
    for seed in range(60):
        text = random_text(seed)
        documents = read(tmp_path, text, "blank_line")
        if text.strip():
            assert all(document.strip() for document in documents), seed
        for document in documents:
            assert not re.search(r"\S[^\n]*\n([^\S\n]*\n)+[^\S\n]*\S", document), seed


@pytest.mark.parametrize("document_by", ["line", "blank_line", "file"])
def test_documents_have_no_outer_newlines_without_keep_linebreaks(tmp_path, document_by):
    for seed in range(60):
        text = random_text(seed)
        for document in read(tmp_path, text, document_by, keep_linebreaks=False):
            assert document == document.strip("\n"), seed


def test_stripping_removes_only_line_breaks(tmp_path):
    for document_by in ("line", "blank_line", "file"):
        for seed in range(50):
            text = random_text(seed)
            kept = read(tmp_path, text, document_by)
            stripped = read(tmp_path, text, document_by, keep_linebreaks=False)
            assert [document.strip("\r\n") for document in kept] == [document.strip("\r\n") for document in stripped]


@pytest.mark.parametrize("document_by", ["line", "blank_line", "file"])
@pytest.mark.parametrize("read_size", [3, 10 << 20])
def test_text_files_through_the_cache(tmp_path, monkeypatch, load_documents, document_by, read_size):
    """Files keep their order, and no document spans two of them, even if one is empty or lacks a final newline."""
    monkeypatch.setattr(file_formats, "READ_SIZE", read_size)
    texts = [random_text(1) + "end", "", "\n", random_text(2) + "\n", "\n\n" + random_text(3)]
    files = [tmp_path / f"{9 - number}.txt" for number in range(len(texts))]  # not sorted by name
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(text.encode())
    documents = load_documents(train_file=files, document_by=document_by)["train"]["text"]
    assert list(documents) == [document for text in texts for document in read(tmp_path, text, document_by)]
    if document_by == "file":
        assert list(documents) == [text.removeprefix("\ufeff") for text in texts if text]


def test_cache_distinguishes_options_and_edited_files(tmp_path, load_documents):
    file = tmp_path / "train.txt"
    file.write_text("one\ntwo\n\nthree\n")
    assert list(load_documents(train_file=file)["train"]["text"]) == ["one\n", "two\n", "\n", "three\n"]
    assert list(load_documents(train_file=file, keep_linebreaks=False)["train"]["text"]) == ["one", "two", "", "three"]
    assert list(load_documents(train_file=file, document_by="blank_line")["train"]["text"]) == [
        "one\ntwo\n\n",
        "three\n",
    ]
    assert list(load_documents(train_file=file, document_by="file")["train"]["text"]) == ["one\ntwo\n\nthree\n"]
    file.write_text("One\ntwo\n\nthree\n")
    os.utime(file, (1, 1))
    assert list(load_documents(train_file=file)["train"]["text"]) == ["One\n", "two\n", "\n", "three\n"]
    other = tmp_path / "other.txt"
    other.write_text("Two\ntwo\n\nthree\n")
    os.utime(other, (1, 1))
    assert list(load_documents(train_file=other)["train"]["text"]) == ["Two\n", "two\n", "\n", "three\n"]


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize("suffix", [suffix for suffix in file_formats.FORMATS if suffix != ".parquet"])
def test_byte_order_mark_is_no_text(tmp_path, load_documents, suffix, compression):
    """At the beginning of each file. Elsewhere, the character is text like any other."""
    texts = ["a", "b\ufeff", "\ufeffc"]
    mark = "\ufeff".encode()
    files = [tmp_path / f"{number}{suffix}{compression}" for number in range(2)]
    for file in files:
        file.write_bytes(COMPRESS[compression](mark + serialize(texts, suffix)))
    for streaming in (False, True):
        flags = {"validation_file": files, "keep_linebreaks": False, "streaming": streaming}
        documents = load_documents(do_train=False, do_eval=True, **flags)["validation"]
        assert [text for columns in documents.iter(10) for text in columns["text"]] == texts * 2


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_utf16_is_refused(tmp_path, load_documents, suffix, encoding):
    file = tmp_path / f"train{suffix}"
    file.write_bytes("\ufeff".encode(encoding) + serialize(["a"], suffix).decode().encode(encoding))
    with pytest.raises(UsageError, match=rf"train\{suffix}: not UTF-8 at byte 0 \(UTF-16\); convert it"):
        load_documents(train_file=file)


def test_position_of_an_invalid_byte_counts_from_the_start_of_the_file(tmp_path, monkeypatch):
    content = "é\n".encode() * 20 + b"\xff\n"
    (tmp_path / "text.txt").write_bytes(content)
    for read_size in (1, 7, 1000):
        monkeypatch.setattr(file_formats, "READ_SIZE", read_size)
        with pytest.raises(UsageError, match=r"text\.txt: not UTF-8 at byte 60 "):
            list(text_files.read_documents(str(tmp_path / "text.txt"), 0, None, "line", True))


# Formats, compressions, files


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_tables_preserve_any_text(tmp_path, load_documents, suffix):
    (tmp_path / f"train{suffix}").write_bytes(serialize(DOCUMENTS, suffix))
    assert list(load_documents(train_file=tmp_path / f"train{suffix}")["train"]["text"]) == DOCUMENTS


@pytest.mark.parametrize("compression", list(COMPRESS))
@pytest.mark.parametrize("suffix", list(file_formats.FORMATS))
def test_formats_and_compressions_give_the_same_documents(tmp_path, load_documents, suffix, compression):
    texts = [text for text in DOCUMENTS if "\n" not in text and text not in ("", "NA", "null", "nan", "None")]
    file = tmp_path / f"train{suffix}{compression}"
    file.write_bytes(COMPRESS[compression](serialize(texts, suffix)))
    assert list(load_documents(train_file=file, keep_linebreaks=False)["train"]["text"]) == texts


@pytest.mark.parametrize("compression", list(COMPRESS)[1:])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_concatenated_compressed_files_are_read_completely(tmp_path, load_documents, suffix, compression):
    """Such as the output of `cat a.gz b.gz > c.gz` or of a parallel compressor."""
    file = tmp_path / f"train{suffix}{compression}"
    file.write_bytes(b"".join(COMPRESS[compression](serialize([text], suffix)) for text in ("a", "b", "c")))
    assert list(load_documents(train_file=file, keep_linebreaks=False)["train"]["text"]) == ["a", "b", "c"]


@pytest.mark.parametrize("text", ['{"text": "a"}\n{"text": "b"}\n', '[{"text": "a"},\n {"text": "b"}]\n'])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_lines_and_json_arrays_with_either_suffix(tmp_path, load_documents, suffix, text):
    (tmp_path / f"train{suffix}").write_text(text)
    assert list(load_documents(train_file=tmp_path / f"train{suffix}")["train"]["text"]) == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["train[1].txt", "what?.txt", "a*b.txt", "with space.txt", "100%.txt", "a#b.txt", "naïve.txt", "{x}.txt"]
)
def test_unusual_file_names(tmp_path, load_documents, name):
    (tmp_path / name).write_text("right\n")
    (tmp_path / "train1.txt").write_text("wrong\n")
    (tmp_path / "aXb.txt").write_text("wrong\n")
    assert list(load_documents(train_file=tmp_path / name)["train"]["text"]) == ["right\n"]


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
def test_folders_and_globs(load_documents, folder, patterns, expected):
    documents = load_documents(train_file=[folder / pattern for pattern in patterns], keep_linebreaks=False)["train"][
        "text"
    ]
    assert list(documents) == expected


def test_home_folder(load_documents, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert list(load_documents(train_file="~/a.txt")["train"]["text"]) == ["a.txt\n"]


def test_files_keep_their_order_in_other_formats(tmp_path, load_documents):
    files = [tmp_path / f"{name}.jsonl" for name in ("z", "a", "m")]
    for file in files:
        file.write_bytes(serialize([f"{file.stem}{number}" for number in range(3)], ".jsonl"))
    expected = ["z0", "z1", "z2", "a0", "a1", "a2", "m0", "m1", "m2"]
    assert list(load_documents(train_file=files)["train"]["text"]) == expected


@pytest.mark.parametrize("others", [[".txt", ".jsonl"], [".csv", ".tsv"], [".parquet", ".json"]])
def test_files_of_different_formats_are_refused(tmp_path, load_documents, others):
    files = [tmp_path / f"train{suffix}" for suffix in others]
    for file in files:
        file.write_bytes(serialize(["a\tb", "c,d"], file.suffix))
    with pytest.raises(UsageError, match=r"--train_file: all files must have the same format") as error:
        load_documents(train_file=files)
    assert all(str(file) in str(error.value) for file in files)


def test_train_and_validation_files_may_have_different_formats(tmp_path, load_documents):
    (tmp_path / "train.jsonl").write_bytes(serialize(["a", "b"], ".jsonl"))
    (tmp_path / "validation.txt.gz").write_bytes(gzip.compress(b"c\nd"))
    loaded = load_documents(
        train_file=tmp_path / "train.jsonl", validation_file=tmp_path / "validation.txt.gz", do_eval=True
    )
    assert list(loaded["train"]["text"]) == ["a", "b"]
    assert list(loaded["validation"]["text"]) == ["c\n", "d"]


@pytest.mark.parametrize(
    "suffix", [".txt.gz", ".txt.zst", ".csv.gz", ".jsonl.gz", ".jsonl.zst", ".json.xz", ".parquet"]
)
def test_truncated_file(tmp_path, load_documents, suffix):
    texts = [str(random.Random(number).random()) for number in range(500)]
    path = tmp_path / f"train{suffix}"
    inner, _, compression = suffix[1:].partition(".")
    content = COMPRESS[f".{compression}" if compression else ""](serialize(texts, f".{inner}"))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=f"train{re.escape(suffix)}"):
        load_documents(train_file=path)


# Permissions


@pytest.fixture
def own_folder():
    """A folder of this process, which cannot override permissions, as root can."""
    folder = Path(tempfile.mkdtemp())
    was_root = os.geteuid() == 0
    if was_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if was_root:
        os.seteuid(0)
    for path in [folder, *folder.iterdir()]:
        path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".csv", ".parquet"])
def test_a_file_without_permission(own_folder, suffix):
    file = own_folder / f"train{suffix}"
    file.touch(mode=0o000)
    with pytest.raises(UsageError, match=f"^--train_file {file}: cannot be read: Permission denied$"):
        text_files.find_files("--train_file", [str(own_folder)])
    own_folder.chmod(0o000)
    with pytest.raises(UsageError, match=f"^--train_file {own_folder}: cannot be read: Permission denied$"):
        text_files.find_files("--train_file", [str(own_folder)])


def test_a_cache_that_cannot_be_written_to(own_folder, monkeypatch):
    """Names the flag, or what sets the folder without it."""
    own_folder.chmod(0o500)
    cache = own_folder / "cache"
    with pytest.raises(UsageError, match=f"^--cache_dir {cache}: the cache cannot be written to: Permission denied;"):
        cache_folder(str(cache))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    with pytest.raises(UsageError, match=f"^the cache {cache}: .* give --cache_dir, or set HF_HOME or HF_DATASETS_"):
        cache_folder(None)


def test_the_files_are_not_blamed_for_the_cache(tmp_path, refused, train_file, checkpoint):
    (tmp_path / "file").touch()
    flags = ["--model_name_or_path", checkpoint("gpt2"), "--train_file", train_file, "--cache_dir", tmp_path / "file"]
    line = refused(*flags)
    assert f"error: --cache_dir {tmp_path / 'file'}: the cache cannot be written to: Not a directory" in line


def test_the_files_are_not_blamed_for_a_full_disk(tmp_path, load_documents, monkeypatch):
    """With a format that `datasets` copies into its cache."""
    train_file = tmp_path / "train.csv"
    train_file.write_text("text\na\nb\n")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.finalize", full)
    with pytest.raises(UsageError, match=r"^the cache is full: .*No space left on device; .*--cache_dir"):
        load_documents(train_file=train_file)
