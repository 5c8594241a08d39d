"""Documents that can be told apart, and files of them."""

import gzip
import itertools
import json
from pathlib import Path

from conftest import make_lines
from datasets import Dataset


def make_documents(number: int, seed: int = 0) -> list[str]:
    """Documents of one to nine lines, each beginning with its own number."""
    lines = iter(make_lines(9 * number, seed))
    return ["\n".join([f"{i}:", *itertools.islice(lines, i % 9)]) for i in range(number)]


def write_shards(folder: Path, documents: list[str], num_shards: int, suffix: str = ".jsonl") -> Path:
    folder.mkdir()
    edges = [round(i * len(documents) / num_shards) for i in range(num_shards + 1)]
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        path = folder / f"{i}{suffix}"
        rows = documents[start:end]
        if suffix == ".parquet":
            Dataset.from_dict({"text": rows}).to_parquet(path)
        elif suffix == ".txt":
            path.write_text("".join(f"{row}\n" for text in rows for row in text.split("\n")))
        else:
            content = "".join(json.dumps({"text": text}) + "\n" for text in rows).encode()
            path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    return folder
