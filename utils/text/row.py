"""A row of the corpus, as `document_text` sees it."""

from typing import NoReturn

from utils.errors import UsageError


class MissingColumn(UsageError, KeyError):
    """`document_text` reads a column that the rows do not have."""

    __str__ = UsageError.__str__  # KeyError's would quote the message


class Row(dict):
    """The columns of one row and their values. A column that does not exist raises MissingColumn, a KeyError."""

    def __missing__(self, column: str) -> NoReturn:
        columns = ", ".join(self)
        if column == "text":
            raise MissingColumn(
                f"--text_column text: the rows have no such column (all columns: {columns}); name the column of the "
                'text, or edit document_text, which reads row["text"]'
            )
        raise MissingColumn(f'document_text reads row["{column}"], but the rows have no such column: {columns}')
