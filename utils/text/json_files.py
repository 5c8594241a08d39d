"""JSON and JSON Lines files, where the reader of `datasets` needs help."""

import json
from collections.abc import Iterator

import pyarrow as pa
from datasets.packaged_modules.json.json import Json

from utils.errors import UsageError


class MarkedJsonDocuments(Json):
    """For files that begin with a byte order mark: the reader of `datasets` removes it from the first file alone."""

    def _generate_tables(
        self, base_files, files_iterables, original_files, **options
    ) -> Iterator[tuple[tuple, pa.Table]]:
        for index, file in enumerate(zip(base_files, files_iterables, original_files, strict=True)):
            as_first_file = ([part] for part in file)
            for number, (_, table) in enumerate(super()._generate_tables(*as_first_file, **options)):
                yield (index, number), table


def check_json(file: str, text: str) -> None:
    """Raise UsageError with the line of the first syntax error, if any, in a JSON or JSON Lines file."""
    is_one_value = text.lstrip().startswith("[") or not file.removesuffix(".gz").endswith(".jsonl")
    if is_one_value:
        try:
            json.loads(text)
            return
        except json.JSONDecodeError as error:
            if text.lstrip().startswith("["):
                raise UsageError(f"{file}: malformed JSON in line {error.lineno}: {error.msg}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{file}: malformed JSON in line {number}: {error.msg}") from error
