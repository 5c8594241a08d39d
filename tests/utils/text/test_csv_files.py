"""CSV files: each row is read as it was written, or the file is refused."""

import csv
import gzip
import logging
import random

import pytest

from utils.errors import UsageError


PARTS = ["a", "b c", '"', '""', ",", "\t", "\n", "\r\n", " ", "é", "\\", "'", "\u2028", "\x0b"]


def read(load_documents, file, is_stream: bool) -> list[str]:
    documents = load_documents(validation_file=file, do_train=False, do_eval=True, streaming=is_stream)["validation"]
    return [text for columns in documents.iter(10) for text in columns["text"]]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_what_a_csv_writer_writes_is_read(tmp_path, load_documents, caplog, suffix, quoting):
    """Whatever the texts contain, and however the rows end."""
    caplog.set_level(logging.INFO, "utils.text")
    generator = random.Random(0)
    texts = ["x" + "".join(generator.choices(PARTS, k=generator.randrange(12))) for _ in range(300)]
    texts[7] = "long " * 40_000  # more than the csv module takes by default
    num_long = sum("\n" in text for text in texts)
    for number, line_end in enumerate(("\n", "\r\n")):
        file = tmp_path / f"{number}{suffix}"
        with file.open("w", newline="") as stream:
            separator = "," if suffix == ".csv" else "\t"
            writer = csv.writer(stream, delimiter=separator, quoting=quoting, lineterminator=line_end)
            writer.writerows([["id", "text"], *enumerate(texts)])
        for is_stream in (False, True):
            assert read(load_documents, file, is_stream) == texts
    assert f"{num_long} of 300 rows have line breaks within quotes" in caplog.text


def test_quotes_within_an_unquoted_field_are_text(tmp_path, load_documents):
    (tmp_path / "rows.csv").write_text('text\nhe said "yes"\n5" wide\n\n \nend\n')
    assert read(load_documents, tmp_path / "rows.csv", False) == ['he said "yes"', '5" wide', "end"]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['"a lone quote', "b", '"another one', "c"], "unbalanced quotes in the row that begins in line 2 (line 4:"),
        (["a", '"open until the end', "b", "c"], "unbalanced quotes in the row that begins in line 3 (line 5:"),
        (["a", '"quoted" and not', "b"], "unbalanced quotes in the row that begins in line 3 (line 3:"),
        (["a", r'"with \" a backslash"'], "unbalanced quotes in the row that begins in line 3 (line 3:"),
        (['"a\nb"', "c, d"], "the row in line 4 has 2 fields, but the header has 1"),
        (["a, b", "c"], "the row in line 2 has 2 fields, but the header has 1"),
    ],
)
def test_rows_that_would_be_merged_or_shifted_are_refused(tmp_path, load_documents, rows, message, is_stream):
    """With the file and the line. Nothing is cached: the second run is refused, too."""
    file = tmp_path / "rows.csv.gz"
    file.write_bytes(gzip.compress("\n".join(["text", *rows, ""]).encode()))
    for _ in range(2):
        with pytest.raises(UsageError) as error:
            read(load_documents, file, is_stream)
        assert str(error.value).startswith(f"{file}: {message}")


def test_the_file_with_the_mistake_is_named(tmp_path, load_documents, caplog):
    """In one line: the reader of `datasets` logs nothing of its own."""
    logging.getLogger("datasets").addHandler(caplog.handler)  # its loggers do not propagate further
    (tmp_path / "a.csv").write_text("id,text\n1,a\n2,b\n")
    (tmp_path / "b.csv").write_text("id,text\n" + "1,a\n" * 9 + '1,"a\n2,b\n')
    with pytest.raises(UsageError, match=r"b\.csv: unbalanced quotes in the row that begins in line 11 "):
        read(load_documents, [tmp_path / "a.csv", tmp_path / "b.csv"], False)
    logging.getLogger("datasets").removeHandler(caplog.handler)
    assert not caplog.text
