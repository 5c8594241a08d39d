"""Hold out a part of the documents for evaluation."""

import dataclasses
import itertools
import logging
import random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from utils.errors import UsageError
from utils.text.columns import string_columns
from utils.text.file_documents import FileDocuments


logger = logging.getLogger(__name__)

MAX_GROUPS = 1000  # see hold_out


def hold_out(
    documents: Dataset | FileDocuments, percentage: int, seed: int
) -> tuple[Dataset, Dataset] | tuple[FileDocuments, FileDocuments]:
    """Split documents into a train and a validation part: disjoint, complete, each in the order of the corpus.

    The corpus is divided into up to 1,000 groups of consecutive documents, and `percentage` per cent of the groups are
    held out. Whole groups keep text readable if documents are lines. Many groups, drawn from the entire corpus, make
    the held-out part representative even if the corpus is sorted by source. With few documents or very long ones, the
    share of the text can be far from `percentage`, of which a warning gives the figures.

    Args:
        documents: at least two.
        percentage: 1 to 99.
        seed: another seed draws other groups.

    Raises:
        UsageError: there are fewer than two documents.
    """
    if isinstance(documents, FileDocuments):
        documents, sizes = documents.count()
    else:
        sizes = _text_sizes(documents)
    num_documents = len(documents) if isinstance(documents, Dataset) else documents.num_rows
    if num_documents < 2:
        raise UsageError(
            "the corpus is one document, so no validation part can be held out: give --validation_file, split it with "
            "--document_by line, or give --do_train alone"
        )
    num_groups = min(MAX_GROUPS, num_documents)
    num_held_out = min(max(round(num_groups * percentage / 100), 1), num_groups - 1)
    held_out = set(random.Random(seed).sample(range(num_groups), num_held_out))
    edges = [group * num_documents // num_groups for group in range(num_groups + 1)]
    train, validation = [], []
    for group in range(num_groups):
        (validation if group in held_out else train).append((edges[group], edges[group + 1]))
    _warn_of_share(sizes, num_documents, validation, percentage)
    if isinstance(documents, FileDocuments):
        return tuple(dataclasses.replace(documents, selected=tuple(ranges)) for ranges in (train, validation))
    return tuple(
        documents.select(list(itertools.chain(*itertools.starmap(range, ranges)))) for ranges in (train, validation)
    )


def _warn_of_share(sizes: np.ndarray, num_documents: int, held_out: list[tuple[int, int]], percentage: int) -> None:
    """Warn if one of the two parts has less than half, or the held-out one more than twice, of the text asked for.

    Args:
        sizes: bytes of each document; empty if they are not known.
    """
    if not sizes.any():  # token ids, for example
        return
    share = 100 * sum(sizes[start:end].sum() for start, end in held_out) / sizes.sum()
    if not percentage / 2 <= share <= min(2 * percentage, 50 + percentage / 2):
        logger.warning(
            "held out for evaluation: %s of %s documents, with %.0f%% of the text instead of the %d%% of "
            "--validation_split_percentage; give more documents, shorter ones, or a --validation_file",
            f"{sum(end - start for start, end in held_out):,}", f"{num_documents:,}", share, percentage,
        )  # fmt: skip


def _text_sizes(documents: Dataset) -> np.ndarray:
    """UTF-8 bytes of the text of each document, or of all its strings if it has no column "text"."""
    columns = string_columns(documents)
    columns = ["text"] if "text" in columns else columns
    if not columns:
        return np.empty(0)
    batches = documents.select_columns(columns).with_format("arrow").iter(10_000)
    return np.concatenate([sum(map(_num_bytes, batch.columns), np.zeros(len(batch))) for batch in batches])


def _num_bytes(texts: pa.ChunkedArray) -> np.ndarray:
    """UTF-8 bytes of each text, float64. From the offsets: no text is read."""
    return pc.binary_length(texts).fill_null(0).to_numpy().astype(float)
