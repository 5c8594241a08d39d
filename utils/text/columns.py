"""The columns of a row: those of the source, and the column of the text under the name "text" as well."""

import dataclasses
import logging
from collections.abc import Callable, Iterable

import datasets
import pyarrow as pa
from datasets import Dataset

from utils.config.data_arguments import DataArguments
from utils.errors import UsageError
from utils.text.document_stream import DocumentStream
from utils.text.file_documents import FileDocuments


logger = logging.getLogger(__name__)

Documents = Dataset | DocumentStream | FileDocuments


def with_text_column(documents: Documents, text_column: str, split: str) -> Documents:
    """Make `text_column` also available as "text". It keeps its own name, and no other column is lost.

    If `text_column` has its default, "text", but the documents have no such column, then their only column of strings
    is taken. If they have several, "text" does not exist, which matters only to a `document_text` that reads it.

    Raises:
        UsageError: another `text_column` than the default is not a column of strings.
    """
    columns = string_columns(documents)
    if text_column == DataArguments.text_column:
        if text_column in documents.column_names or len(columns) != 1:
            return documents
        text_column = columns[0]
        logger.info("corpus: taking the text of %s from %s, its only column of strings", split, text_column)
    elif text_column not in columns:
        raise UsageError(
            f"--text_column {text_column}: the {split} documents have no such column of strings (columns of strings: "
            f"{', '.join(columns) or 'none'}; all columns: {', '.join(documents.column_names) or 'none'})"
        )
    if not isinstance(documents, Dataset):
        return dataclasses.replace(documents, text_column=text_column)
    if "text" in documents.column_names:
        documents = documents.remove_columns("text")
    renamed = documents.rename_column(text_column, "text")
    both = datasets.concatenate_datasets([documents, renamed.select_columns("text")], axis=1)  # copies nothing
    # The fingerprint is part of the cache key. What `document_text` could read so far is unchanged, and so is the key.
    return Dataset(both.data, info=both.info, split=documents.split, fingerprint=renamed._fingerprint)


def read_texts(rows: Iterable[dict], document_text: Callable[[dict], str | None]) -> list[str | None]:
    """What `document_text` returns for each row. Raises UsageError if that is neither a string nor None."""
    texts = [document_text(row) for row in rows]
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise UsageError(
                f"document_text returned a value of type {type(text).__name__}: it must return a string, or None to "
                "leave the row out; edit it, or name a column of strings with --text_column"
            )
    return texts


def string_columns(documents: Documents) -> list[str]:
    """The names of the columns whose values are strings."""
    if isinstance(documents, FileDocuments):
        return [name for name, is_string in documents.columns.items() if is_string]
    if isinstance(documents, DocumentStream):
        return [
            field.name
            for field in documents.schema
            if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
    return [
        name
        for name, feature in documents.features.items()
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
    ]
