"""A store in parts: each whole or absent, checked when it is used, tokenized once by any number of processes."""

import json
import logging
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_lines
from sharded_text import make_documents, write_shards
from transformers import AutoTokenizer

from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.text import file_documents, file_pieces
from utils.text.corpus import load_corpus
from utils.text.segmentation import Segmenter
from utils.tokens import part_writer, store_builder, store_files
from utils.tokens.store_files import new_folder
from utils.tokens.token_store import PART_METADATA, Concatenated, TokenStore, write_store
from utils.tokens.tokenization import tokenize_documents
from utils.tokens.tokenizer_training import train_tokenizer


def document_text(row: dict) -> str:
    return row["text"]


def tokenize(folder, tokenizer, cache: Path, function=document_text, hold_out: bool = False, **options) -> TokenStore:
    """The training documents of a folder of files, which `hold_out` makes a part of."""
    flags = {name: options.pop(name) for name in ("overwrite_cache", "document_by") if name in options}
    data_args = DataArguments(train_file=[str(folder)], preprocessing_num_workers=2, **flags)
    training_args = LMTrainingArguments(
        output_dir=str(cache / "out"), do_train=True, do_eval=hold_out, use_cpu=True, bf16=False, report_to=["none"]
    )
    documents = load_corpus(data_args, training_args, str(cache), None)["train"]
    options = {"cache_dir": str(cache), "description": "train"} | options
    return tokenize_documents(documents, tokenizer, function, data_args, **options)


def parts_of(cache: Path) -> dict[str, int]:
    """The folders of parts, each with the time when it was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (cache / "language_modeling").glob("*/part.json")}


def expected_tokens(documents: list[str], tokenizer) -> list[int]:
    return [token for text in documents for token in tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("hold_out", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".jsonl.gz"])
def test_one_changed_file_of_ten_is_one_part(tmp_path, tokenizer, suffix, hold_out):
    """Even if the documents that are held out change with it."""
    documents = make_documents(400)
    folder = write_shards(tmp_path / "text", documents, 10, suffix)
    first = tokenize(folder, tokenizer, tmp_path, hold_out=hold_out)
    before = parts_of(tmp_path)
    assert len(before) == 10
    if not hold_out:
        assert np.asarray(first.tokens).tolist() == expected_tokens(documents, tokenizer)

    write_shards(tmp_path / "other", make_documents(7, seed=5), 1, suffix)
    shutil.copy(tmp_path / "other" / f"0{suffix}", folder / f"3{suffix}")
    tokenize(folder, tokenizer, tmp_path, hold_out=hold_out)
    after = parts_of(tmp_path)
    assert len(after) == 11 and before.items() <= after.items()

    shutil.copy(tmp_path / "other" / f"0{suffix}", folder / f"another{suffix}")
    tokenize(folder, tokenizer, tmp_path, hold_out=hold_out)
    assert len(parts_of(tmp_path)) == 12 and after.items() <= parts_of(tmp_path).items()


def test_large_files_are_several_parts(tmp_path, tokenizer, monkeypatch):
    """With the same tokens, for each size of a part."""
    documents = make_documents(300)
    for suffix in (".jsonl", ".txt", ".parquet"):
        folder = write_shards(tmp_path / f"text{suffix}", documents, 2, suffix)
        stores, num_parts = [], []
        for size in (64 << 20, 5000, 700):
            monkeypatch.setattr(file_pieces, "PIECE_SIZE", size)
            cache = tmp_path / f"{suffix}{size}"
            stores.append(tokenize(folder, tokenizer, cache))
            num_parts.append(len(parts_of(cache)))
        assert len({store.checksum for store in stores}) == 1
        assert num_parts[0] == 2 and (suffix == ".parquet" or num_parts[2] > num_parts[1] > 2)


def test_parquet_is_divided_at_row_groups(tmp_path, tokenizer, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = make_documents(300)
    pq.write_table(pa.table({"text": documents}), tmp_path / "text.parquet", row_group_size=40)
    monkeypatch.setattr(file_pieces, "PIECE_SIZE", 10_000)
    store = tokenize(tmp_path / "text.parquet", tokenizer, tmp_path)
    assert np.asarray(store.tokens).tolist() == expected_tokens(documents, tokenizer)
    assert 2 < len(parts_of(tmp_path)) < 8


def test_held_out_documents_do_not_depend_on_the_files(tmp_path, tokenizer, monkeypatch):
    """Train and validation are those of one file of all documents, which `datasets` reads."""
    documents = make_documents(2500)
    one = tmp_path / "one.json"
    one.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    folder = write_shards(tmp_path / "text", documents, 7)
    monkeypatch.setattr(file_pieces, "PIECE_SIZE", 20_000)
    for percentage in (5, 60):
        checksums = []
        for source in (one, folder):
            data_args = DataArguments(train_file=[str(source)], validation_split_percentage=percentage)
            training_args = LMTrainingArguments(
                output_dir=str(tmp_path / "out"), do_train=True, do_eval=True, use_cpu=True, bf16=False
            )
            corpus = load_corpus(data_args, training_args, str(tmp_path / "cache"), None)
            for documents_of_split in corpus.values():
                store = tokenize_documents(
                    documents_of_split, tokenizer, document_text, data_args, cache_dir=str(tmp_path / "cache"),
                    description="split", with_token_bytes=documents_of_split is corpus["validation"],
                )  # fmt: skip
                checksums.append((store.checksum, store.num_documents, store.num_bytes))
                if store.token_bytes is not None:
                    assert np.asarray(store.token_bytes).sum() == store.num_bytes
        assert checksums[:2] == checksums[2:] and len(set(checksums)) == 2


class Killed(BaseException):
    pass


def test_a_build_that_was_killed_goes_on(tmp_path, tokenizer, monkeypatch):
    """With the parts that are missing. Nothing of the part that was being tokenized is left."""
    documents = make_documents(200)
    folder = write_shards(tmp_path / "text", documents, 10)
    read_piece = file_documents.read_piece

    def read_until_killed(piece, *args):
        for rows in read_piece(piece, *args):
            yield rows[:1]
            if piece.file.endswith("6.jsonl"):
                raise Killed
            yield rows[1:]

    with monkeypatch.context() as patch:
        patch.setattr(file_documents, "read_piece", read_until_killed)
        with pytest.raises(Killed):
            tokenize(folder, tokenizer, tmp_path)
    before = parts_of(tmp_path)
    assert len(before) == 6
    assert not list((tmp_path / "language_modeling").glob("*.unfinished"))
    store = tokenize(folder, tokenizer, tmp_path)
    assert before.items() <= parts_of(tmp_path).items() and len(parts_of(tmp_path)) == 10
    assert np.asarray(store.tokens).tolist() == expected_tokens(documents, tokenizer)


def _tokenize_in_process(folder: Path, tokenizer_folder: Path, cache: Path, barrier, results) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    built = []
    tokenize_part = store_builder.Build._tokenize
    store_builder.Build._tokenize = lambda build, key: (built.append(key), tokenize_part(build, key))[1]
    barrier.wait()
    store = tokenize(folder, tokenizer, cache)
    results.put((built, store.checksum))


def test_two_processes_build_one_store_together(tmp_path, tokenizer):
    """Each part is tokenized once, by one of them."""
    documents = make_documents(6000)
    folder = write_shards(tmp_path / "text", documents, 12)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (folder, tmp_path / "tokenizer", tmp_path, barrier, results)
    processes = [context.Process(target=_tokenize_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    (first, checksum), (second, other_checksum) = results.get(timeout=120), results.get(timeout=120)
    for process in processes:
        process.join()
    assert sorted(first + second) == sorted(parts_of(tmp_path)) and len(parts_of(tmp_path)) == 12
    assert checksum == other_checksum == tokenize(folder, tokenizer, tmp_path / "alone").checksum
    assert first and second


@pytest.mark.parametrize("name", ["tokens.bin", "lengths.bin"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, tokenizer, monkeypatch, name):
    folder = write_shards(tmp_path / "text", make_documents(60), 1)

    def open_on_full_disk(path: Path, mode: str):
        return open("/dev/full" if path.name == name else path, mode)

    monkeypatch.setattr(part_writer, "open", open_on_full_disk, raising=False)
    with pytest.raises(UsageError, match=r"^the cache is full: .*No space left on device; .*--cache_dir"):
        tokenize(folder, tokenizer, tmp_path)
    assert not list((tmp_path / "language_modeling").glob("*/"))


# Damage


@pytest.fixture(scope="module")
def wordpiece():
    return train_tokenizer("wordpiece", [make_lines(200)], 120)


FILES = {
    "part": ["tokens.bin", "lengths.bin", "document_bytes.bin", "rows.bin", "word_starts.bin", "segment_lengths.bin",
             "part.json"],
    "store": ["offsets.bin", "segment_offsets.bin", "meta.json"],
}  # fmt: skip


@pytest.mark.parametrize("damage", ["a bit", "the end", "all", "the file"])
@pytest.mark.parametrize("name", [*FILES["part"], *FILES["store"]])
def test_damage_is_found_and_repaired(tmp_path, wordpiece, name, damage, caplog):
    """With a warning; only what is damaged is made again."""
    folder = write_shards(tmp_path / "text", make_documents(60), 3)

    def build() -> TokenStore:
        options = {"add_special_tokens": False, "with_word_starts": True, "segmenter": Segmenter("line")}
        return tokenize(folder, wordpiece, tmp_path, leave_out_some, **options)

    before = build()
    contents = [np.array(array) for array in arrays_of(before)]
    built = parts_of(tmp_path)
    part = next(key for key in sorted(built) if (tmp_path / "language_modeling" / key / "rows.bin").exists())
    file = (tmp_path / "language_modeling" / part if name in FILES["part"] else before.path) / name
    data = bytearray(file.read_bytes())
    if damage == "a bit":
        data[len(data) // 2] ^= 4
    elif damage == "the end":
        data = data[:-3]
    elif damage == "all":
        data = b""
    file.write_bytes(data) if damage != "the file" else file.unlink()
    with caplog.at_level(logging.WARNING):
        after = build()
    assert any(str(file) in record.getMessage() for record in caplog.records)
    assert all(np.array_equal(array, content) for array, content in zip(arrays_of(after), contents, strict=True))
    assert after.checksum == before.checksum
    now = parts_of(tmp_path)
    assert {key for key in now if now[key] != built[key]} == ({part} if name in FILES["part"] else set())
    caplog.clear()
    build()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def leave_out_some(row: dict) -> str | None:
    return row["text"] if row["text"][0] != "4" else None


def arrays_of(store: TokenStore) -> list[np.ndarray]:
    return [store.tokens, store.offsets, store.word_starts, store.segment_offsets]


def test_checksums_are_computed_when_files_or_machine_changed(tmp_path, tokenizer, monkeypatch):
    folder = write_shards(tmp_path / "text", make_documents(60), 3)
    store = tokenize(folder, tokenizer, tmp_path)
    checked = []
    checksum = store_files._checksum
    monkeypatch.setattr(store_files, "_checksum", lambda file: (checked.append(file.parent.name), checksum(file))[1])
    tokenize(folder, tokenizer, tmp_path)
    assert checked == []
    part = sorted(parts_of(tmp_path))[0]
    tokens = tmp_path / "language_modeling" / part / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes())
    tokenize(folder, tokenizer, tmp_path)
    assert set(checked) == {part}
    (tmp_path / "boot_id").write_text("another")
    for name, value in (("_host", lambda: "another"), ("BOOT_ID", tmp_path / "boot_id")):
        checked.clear()
        monkeypatch.setattr(store_files, name, value)
        tokenize(folder, tokenizer, tmp_path)
        assert set(checked) == {*parts_of(tmp_path), store.path.name}


# Arrays


def test_a_store_of_some_rows_of_some_parts(tmp_path):
    """Any ranges of rows, in parts of any length, with rows left out and empty documents and segments."""
    generator = np.random.default_rng(0)
    for case in range(30):
        folder = tmp_path / str(case)
        parts, rows = [], []  # rows: (tokens, segment lengths, bytes), or None for one left out
        for number in range(generator.integers(1, 5)):
            some = [random_row(generator) for _ in range(generator.integers(0, 9))]
            parts.append(folder / f"part{number}")
            write_part(parts[-1], some)
            rows += some
        ranges = None
        if generator.random() < 0.8:
            edges = np.unique(generator.integers(0, len(rows) + 1, 6))
            ranges = list(zip(edges[:-1:2].tolist(), edges[1::2].tolist(), strict=True))
        chosen = rows if ranges is None else [row for start, end in ranges for row in rows[start:end]]
        chosen = [row for row in chosen if row is not None]
        write_store(folder / "store", parts, ranges)
        store = TokenStore(folder / "store")
        tokens = np.concatenate([np.empty(0, np.uint16), *(ids for ids, _, _ in chosen)])
        assert np.array_equal(np.asarray(store.tokens), tokens)
        assert store.offsets.tolist() == np.cumsum([0, *(len(ids) for ids, _, _ in chosen)]).tolist()
        lengths = [length for _, segments, _ in chosen for length in segments]
        assert store.segment_offsets is None or store.segment_offsets.tolist() == np.cumsum([0, *lengths]).tolist()
        assert store.num_bytes == sum(size for _, _, size in chosen) and store.num_documents == len(chosen)


def random_row(generator: np.random.Generator) -> tuple[np.ndarray, list[int], int] | None:
    if generator.random() < 0.2:
        return None
    segments = generator.integers(1, 4, generator.integers(0, 4)).tolist()
    return generator.integers(0, 1000, sum(segments)).astype(np.uint16), segments, int(generator.integers(0, 50))


def write_part(folder: Path, rows: list) -> None:
    kept = [row for row in rows if row is not None]
    with new_folder(folder, PART_METADATA) as (part, metadata):
        np.concatenate([np.empty(0, np.uint16), *(ids for ids, _, _ in kept)]).tofile(part / "tokens.bin")
        np.array([len(ids) for ids, _, _ in kept], dtype=np.uint32).tofile(part / "lengths.bin")
        np.array([size for _, _, size in kept], dtype=np.uint32).tofile(part / "document_bytes.bin")
        segments = [length for _, lengths, _ in kept for length in lengths]
        np.array(segments, dtype=np.uint32).tofile(part / "segment_lengths.bin")
        if len(kept) < len(rows):
            np.array([i for i, row in enumerate(rows) if row is not None], np.int64).tofile(part / "rows.bin")
        metadata |= {"rows": len(rows), "dtype": "uint16"}


def test_concatenated_arrays_are_read_like_one(tmp_path):
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 100, size).astype(np.uint16) for size in (3, 0, 1, 50, 0, 7)]
    one, several = np.concatenate(arrays), Concatenated(arrays)
    assert len(several) == len(one) and several.shape == one.shape and several.dtype == one.dtype
    assert np.array_equal(several, one)
    for start, end in generator.integers(-70, 70, (300, 2)).tolist():
        assert np.array_equal(several[start:end], one[start:end])
        assert np.array_equal(several[start:end:3], one[start:end:3])
    for index in range(-61, 61):
        assert several[index] == one[index]
    for index in (61, -62):
        with pytest.raises(IndexError):
            several[index]
    places = generator.integers(0, 61, 20)
    assert np.array_equal(several[places], one[places])


def test_many_files_are_bundled(tmp_path, tokenizer, monkeypatch):
    """Another file changes the bundle that it belongs to alone."""
    monkeypatch.setattr(file_documents, "MAX_FILES", 10)
    documents = make_documents(200)
    folder = write_shards(tmp_path / "text", documents, 60)
    store = tokenize(folder, tokenizer, tmp_path)
    before = parts_of(tmp_path)
    assert 2 < len(before) < 30
    files = sorted(folder.iterdir())
    texts = [json.loads(line)["text"] for file in files for line in file.read_text().splitlines()]
    assert np.asarray(store.tokens).tolist() == expected_tokens(texts, tokenizer)
    (folder / "35a.jsonl").write_text('{"text": "one more"}\n')
    tokenize(folder, tokenizer, tmp_path)
    assert 1 <= len(parts_of(tmp_path)) - len(before) <= 2
