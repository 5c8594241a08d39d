"""A script whose `document_text` reads columns of its own: title and body, from every format, cached and streamed."""

from pathlib import Path

import pytest
import torch
from conftest import make_lines
from datasets import Dataset
from safetensors.torch import load_file
from scripts import SCRIPTS, save_checkpoints

from utils.tokens.tokenization import iterate_texts


def title_and_body(row: dict) -> str | None:
    return f"{row['title']}\n{row['body']}"


def make_rows(number: int) -> list[dict]:
    """A title, a body of four lines and a number each."""
    lines = iter(make_lines(5 * number))
    return [
        {"id": i, "title": next(lines), "body": "\n".join(next(lines) for _ in range(4)) + "\n"} for i in range(number)
    ]


def write(rows: list[dict], file: Path) -> Path:
    file.parent.mkdir(exist_ok=True)
    documents = Dataset.from_list(rows)
    {".csv": documents.to_csv, ".jsonl": documents.to_json, ".parquet": documents.to_parquet}[file.suffix](file)
    return file


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoints(folder)
    return folder


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_texts(suffix, is_stream, load_documents, tmp_path):
    rows = make_rows(20)
    file = write(rows, tmp_path / f"rows{suffix}")
    loaded = load_documents(validation_file=file, do_train=False, do_eval=True, streaming=is_stream)["validation"]
    texts = [text for some in iterate_texts(loaded, title_and_body) for text in some]
    assert texts == [title_and_body(row) for row in rows]


@pytest.mark.parametrize(
    ("name", "is_stream", "source"),
    [
        ("clm", False, ".csv"),
        ("clm", True, "hub"),
        ("mlm", False, "hub"),
        ("mlm", True, ".csv"),
        ("plm", False, ".jsonl"),
        ("plm", True, ".parquet"),
        ("pretraining", False, ".parquet"),
        ("pretraining", True, ".jsonl"),
    ],
)
def test_scripts(name, is_stream, source, checkpoints, run, tmp_path, hub, monkeypatch):
    """The weights are those of a run on texts that were joined beforehand."""
    rows = make_rows(40)
    if source == "hub":
        hub.add("dataset", "tester/books", {"train.jsonl": write(rows, tmp_path / "rows.jsonl").read_bytes()})
        text = ["--dataset_name", "tester/books"]
    else:
        text = ["--train_file", write(rows, tmp_path / f"rows{source}")]
    flags = [
        "--model_name_or_path", checkpoints / name, "--block_size", 32, "--max_steps", 2, "--do_train",
        "--learning_rate", "1e-2", "--use_cpu",
    ]  # fmt: skip
    flags += ["--streaming", "--shuffle_buffer_size", 0] if is_stream else []
    texts = write([{"text": title_and_body(row)} for row in rows], tmp_path / "texts.jsonl")
    run(tmp_path / "expected", *flags, "--train_file", texts, script=SCRIPTS[name])
    monkeypatch.setattr(SCRIPTS[name], "document_text", title_and_body)
    run(tmp_path / "out", *flags, *text, script=SCRIPTS[name])
    weights, expected = (load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "expected"))
    assert all(torch.equal(weight, expected[key]) for key, weight in weights.items())


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_column_that_does_not_exist(is_stream, checkpoints, refused, tmp_path, monkeypatch):
    """Is found before the model is loaded, and leaves nothing half-written."""
    file = write(make_rows(3), tmp_path / "rows.jsonl")
    flags = ["--model_name_or_path", checkpoints / "clm", "--train_file", file, "--do_train", "--max_steps", 1]
    flags += ["--streaming"] if is_stream else []
    monkeypatch.setattr(SCRIPTS["clm"], "load_model", None)
    line = refused(*flags)
    assert "--text_column text: the rows have no such column (all columns: id, title, body)" in line
    monkeypatch.setattr(SCRIPTS["clm"], "document_text", lambda row: row["boby"])
    assert 'document_text reads row["boby"], but the rows have no such column: id, title, body' in refused(*flags)
    assert not list((tmp_path / "cache").rglob("*.unfinished"))
