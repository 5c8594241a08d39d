"""The splits, columns and held-out documents of a corpus."""

import json
import re

import datasets
import pytest
from datasets import Dataset, DatasetDict

from utils.errors import UsageError
from utils.text.held_out import MAX_GROUPS, hold_out
from utils.text.row import Row
from utils.tokens.tokenization import iterate_texts


# Columns


@pytest.fixture
def rows(tmp_path):
    """`rows({...}, {...})` writes rows as JSON lines and returns the file."""

    def write(*values: dict):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in values))
        return path

    return write


def test_the_only_column_of_strings_is_used(load_documents, rows):
    documents = load_documents(train_file=rows({"body": "a", "id": 1}, {"body": "b", "id": 2}))["train"]
    assert list(documents["text"]) == ["a", "b"]


def test_rows_keep_their_columns_and_have_the_text_as_text(load_documents, rows):
    row = {"body": "a", "title": "A", "id": 1}
    for documents in cached_and_streamed(load_documents, rows(row, row), text_column="body"):
        assert all_rows(documents) == [{"text": "a", **row}] * 2


def test_text_column_replaces_a_column_named_text(load_documents, rows):
    row = {"text": "wrong", "body": "right", "id": 1}
    for documents in cached_and_streamed(load_documents, rows(row), text_column="body"):
        assert all_rows(documents) == [{"text": "right", "body": "right", "id": 1}]


def test_a_column_named_text_among_other_strings(load_documents, rows):
    documents = load_documents(train_file=rows({"title": "A", "text": "a"}))["train"]
    assert documents[0] == {"title": "A", "text": "a"}


def cached_and_streamed(load_documents, file, **flags) -> list:
    return [
        load_documents(validation_file=file, do_train=False, do_eval=True, streaming=streaming, **flags)["validation"]
        for streaming in (False, True)
    ]


def all_rows(documents) -> list[dict]:
    return [
        dict(zip(columns, row, strict=True))
        for columns in documents.iter(batch_size=2)
        for row in zip(*columns.values(), strict=True)
    ]


@pytest.mark.parametrize("text_column", ["text", "body"])
def test_key_of_the_token_cache_is_that_of_a_renamed_column(load_documents, rows, text_column, tmp_path):
    """For files that `datasets` reads."""
    file = rows({"body": "a", "id": 1}, {"body": "b", "id": 2}).rename(tmp_path / "rows.json")
    plain = datasets.load_dataset("json", data_files={"train": [str(file)]}, encoding="utf8", split="train")
    documents = load_documents(train_file=file, text_column=text_column)["train"]
    assert documents._fingerprint == plain.rename_column("body", "text")._fingerprint


@pytest.mark.parametrize(
    ("row", "text_column"),
    [
        ({"title": "A", "body": "a", "id": 1}, "boby"),
        ({"title": "A", "body": "a", "id": 1}, "id"),
        ({"body": "a"}, "content"),
    ],
)
def test_error_lists_the_columns(load_documents, rows, row, text_column):
    with pytest.raises(UsageError, match=f"--text_column {text_column}: ") as error:
        load_documents(train_file=rows(row), text_column=text_column)
    assert all(column in str(error.value) for column in row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"title": "A", "body": "a", "id": 1}, "--text_column text: .*title, body, id"),
        ({"id": 1, "score": 0.5}, "--text_column text: .*id, score"),
        ({"text": 1, "id": 2}, "document_text returned a value of type int"),
        ({"text": ["a"], "id": "2"}, "document_text returned a value of type list"),
    ],
)
def test_rows_without_text_are_refused_when_text_is_read(load_documents, rows, row, message):
    for documents in cached_and_streamed(load_documents, rows(row)):
        assert list(iterate_texts(documents, lambda row: f"{row.get('title')} {row.get('id')}"))
        with pytest.raises(UsageError, match=message):
            list(iterate_texts(documents, lambda row: row["text"]))


def test_missing_column_is_a_key_error():
    """So a document_text may catch it, and what is no column is not reported as one."""
    row = Row(title="A", body="a")
    with pytest.raises(UsageError, match=r'row\["boby"\], but the rows have no such column: title, body') as error:
        row["boby"]
    assert isinstance(error.value, KeyError) and "'" not in str(error.value)
    with pytest.raises(KeyError) as error:
        {"en": 1}[row["title"]]
    assert not isinstance(error.value, UsageError)


@pytest.mark.parametrize("sources", [{}, {"validation_file": "x"}])
def test_training_without_training_text(tmp_path, load_documents, sources):
    (tmp_path / "validation.txt").write_text("a\nb\n")
    if sources:
        with pytest.raises(UsageError, match="--train_file"):
            load_documents(validation_file=tmp_path / "validation.txt", do_eval=True)
    else:
        with pytest.raises(UsageError, match="no text"):
            load_documents()


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
    requested = num_documents * percentage / 100
    group_size = -(-num_documents // MAX_GROUPS)
    assert abs(len(validation) - min(max(requested, 1), num_documents - 1)) <= max(group_size, 0.01 * num_documents)
    assert split(num_documents, percentage) == (train, validation)


@pytest.mark.parametrize("num_documents", [1000, 12345])
def test_hold_out_depends_on_the_seed(num_documents):
    held_out = {tuple(split(num_documents, 5, seed)[1]) for seed in range(5)}
    assert len(held_out) == 5


def test_held_out_groups_are_consecutive_and_spread_over_the_corpus():
    _, validation = split(20_000, 5)
    stretches = 1 + sum(later != earlier + 1 for earlier, later in zip(validation, validation[1:], strict=False))
    assert stretches <= 50 and len(validation) == 1000
    tenths = {number // 2_000 for number in validation}
    assert len(tenths) >= 8


def test_each_document_is_held_out_with_some_seed():
    held_out = {number for seed in range(100) for number in split(20, 10, seed)[1]}
    assert held_out == set(range(20))


def test_a_single_document_cannot_be_split():
    with pytest.raises(UsageError, match="--validation_file"):
        split(1, 50)


@pytest.mark.parametrize(
    ("lengths", "percentage", "figures"),
    [
        ([100] * 20, 5, None),
        ([100] * 3, 5, "held out for evaluation: 1 of 3 documents, with 33% of the text instead of the 5%"),
        ([1000, 10, 10, 10], 50, "2 of 4 documents, with (2|98)% of the text instead of the 50%"),
        ([0, 0, 0], 5, None),
    ],
)
def test_a_share_of_the_text_that_was_not_asked_for(caplog, lengths, percentage, figures):
    texts = ["\u00e9" * (length // 2) for length in lengths]
    hold_out(Dataset.from_dict({"id": range(len(texts)), "text": texts}), percentage, seed=1)
    assert bool(caplog.text) == bool(figures)
    assert figures is None or re.search(figures, caplog.text)


@pytest.mark.parametrize("way", ["the same name", "a glob", "a folder", "a link", "another file", "evaluation only"])
def test_a_file_for_training_and_validation(tmp_path, load_documents, caplog, way):
    (tmp_path / "texts").mkdir()
    file, other = tmp_path / "texts" / "a.txt", tmp_path / "b.txt"
    file.write_text("a\n")
    other.write_text("a\n")
    (tmp_path / "link.txt").symlink_to(file)
    validation_file = {
        "a glob": tmp_path / "*" / "a.*", "a folder": tmp_path / "texts", "a link": tmp_path / "link.txt",
        "another file": other,
    }.get(way, file)  # fmt: skip
    load_documents(train_file=file, validation_file=validation_file, do_eval=True, do_train=way != "evaluation only")
    is_warned = "--train_file and --validation_file both read" in caplog.text
    assert is_warned == (way not in ("another file", "evaluation only"))


def test_held_out_documents_of_a_file(tmp_path, load_documents):
    lines = [f"line {number}\n" for number in range(200)]
    (tmp_path / "train.txt").write_text("".join(lines))
    loaded = load_documents(train_file=tmp_path / "train.txt", do_eval=True, validation_split_percentage=10)
    assert len(loaded["validation"]) == 20
    assert sorted([*loaded["train"]["text"], *loaded["validation"]["text"]]) == sorted(lines)
    only_eval = load_documents(
        train_file=tmp_path / "train.txt", do_train=False, do_eval=True, validation_split_percentage=10
    )
    assert list(only_eval["validation"]["text"]) == list(loaded["validation"]["text"])
    only_train = load_documents(train_file=tmp_path / "train.txt")
    assert list(only_train["train"]["text"]) == lines and "validation" not in only_train


# Other sources


def test_saved_dataset(tmp_path, load_documents):
    Dataset.from_dict({"text": ["a", "b", "c"]}).save_to_disk(tmp_path / "saved")
    assert list(load_documents(dataset_path=str(tmp_path / "saved"))["train"]["text"]) == ["a", "b", "c"]


def test_saved_dataset_dict_keeps_its_validation_split(tmp_path, load_documents):
    splits = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    saved = DatasetDict({name: Dataset.from_dict({"body": texts}) for name, texts in splits.items()})
    saved.save_to_disk(tmp_path / "saved")
    loaded = load_documents(dataset_path=str(tmp_path / "saved"), do_eval=True)
    assert {name: list(documents["text"]) for name, documents in loaded.items()} == {
        "train": ["a", "b"],
        "validation": ["c"],
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_local_folder_as_dataset_name(tmp_path, load_documents, suffix):
    folder = tmp_path / "repository"
    folder.mkdir()
    for split, texts in {"train": ["a", "b"], "validation": ["c"]}.items():
        documents = Dataset.from_dict({"text": texts})
        write = {".jsonl": documents.to_json, ".csv": documents.to_csv, ".parquet": documents.to_parquet}[suffix]
        write(folder / f"{split}{suffix}")
    loaded = load_documents(dataset_name=str(folder), do_eval=True)
    assert list(loaded["train"]["text"]) == ["a", "b"]
    assert list(loaded["validation"]["text"]) == ["c"]


def test_a_missing_split_is_an_error(tmp_path, load_documents):
    DatasetDict(test=Dataset.from_dict({"text": ["a", "b"]})).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match="train split.*available splits: test"):
        load_documents(dataset_path=str(tmp_path / "saved"))
    with pytest.raises(UsageError, match="validation or a train split; available splits: test"):
        load_documents(dataset_path=str(tmp_path / "saved"), do_train=False, do_eval=True)


def test_built_in_corpus(load_documents):
    loaded = load_documents(dataset_name="builtin/python-docs", do_eval=True)
    texts = [*loaded["train"]["text"], *loaded["validation"]["text"]]
    assert len(texts) > 50 and sum(map(len, texts)) > 300_000
    assert len(loaded["validation"]) == max(round(len(texts) * 0.05), 1)
    assert load_documents(dataset_name="builtin/python-docs")["train"]._fingerprint == (
        load_documents(dataset_name="builtin/python-docs")["train"]._fingerprint
    )
