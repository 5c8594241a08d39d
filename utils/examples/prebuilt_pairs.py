"""Pairs of texts and labels from a dataset that already has them, as texts or as token ids."""

import functools
import logging
from collections.abc import Callable, Sequence

import datasets
import numpy as np
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from utils.errors import UsageError
from utils.examples.pairs import LABEL, Pairs
from utils.fingerprint import checksum
from utils.tokens.token_store import TokenStore


logger = logging.getLogger(__name__)

TOKEN_COLUMNS = ("input_ids", "token_type_ids", "attention_mask")
ROWS_CHECKED = 1000  # before training; the other rows are checked when they are read


class TextPairs(Pairs):
    """Pairs of texts from a dataset, with its labels.

    Args:
        stores: the tokens of all As and of all Bs, a document for each pair, tokenized without special tokens.
        labels: 0 or 1 for each pair.
        block_size: the most tokens in an example; longer pairs are truncated as in SentencePairs.
        max_pairs: keep only this many pairs, the first ones.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        labels: np.ndarray,
        block_size: int,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        max_pairs: int | None = None,
    ):
        assert all(store.num_documents == len(labels) for store in stores)
        num_pairs = len(labels) if max_pairs is None else min(len(labels), max_pairs)
        super().__init__(block_size, list(stores), num_pairs, tokenizer, seed)
        self.labels = labels

    @property
    def checksum(self) -> str:
        return f"{super().checksum}+{checksum(self.labels)}"

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """An example; see Pairs."""
        generator = self._generator(index)
        a, b = ((store, *store.offsets[index : index + 2].tolist()) for store in self.stores)
        return self._example(index, int(self.labels[index]), a, b, generator)


class PreprocessedPairs(Pairs):
    """Pairs from a dataset of token ids: columns input_ids, token_type_ids, attention_mask and a label.

    Padding, where attention_mask is 0, is removed: the collator pads each batch as far as necessary.

    Args:
        documents: the dataset; with `is_masked` it also has a column `labels`, -100 where nothing is masked.
        block_size: the most tokens that an example may have.
        is_masked: the ids are already masked, and the examples include the labels.
        max_pairs: keep only this many pairs, the first ones.
        description: the name of the dataset in errors.

    Raises:
        UsageError: a column is missing or not of integers, an example is longer than `block_size`, or the tokenizer
            does not have a token. The first `ROWS_CHECKED` examples are checked here, the others in `__getitems__`.
    """

    def __init__(
        self,
        documents: datasets.Dataset,
        block_size: int,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        is_masked: bool = False,
        max_pairs: int | None = None,
        description: str = "train",
    ):
        num_pairs = len(documents) if max_pairs is None else min(len(documents), max_pairs)
        super().__init__(block_size, [], num_pairs, tokenizer, seed)
        self.labels = read_labels(documents, description)
        self.description = description
        columns = [*TOKEN_COLUMNS, *(["labels"] if is_masked else [])]
        for column in columns:
            inner = getattr(documents.features.get(column), "feature", None)
            if not isinstance(inner, datasets.Value) or "int" not in inner.dtype:
                raise UsageError(
                    f"--is_already_{'masked' if is_masked else 'preprocessed'}: the {description} data have no column "
                    f"{column} of lists of integers; they have {', '.join(documents.column_names)}"
                )
        if "labels" in documents.column_names and not is_masked:
            logger.warning(
                "%s: the column labels is ignored and input_ids are masked in training; if they are masked already, "
                "give --is_already_masked", description,
            )  # fmt: skip
        self._documents = documents.select_columns(columns).with_format("numpy")
        self._vocab_size = max(tokenizer.get_vocab().values()) + 1
        self.__getitems__(list(range(min(self.num_examples, ROWS_CHECKED))))

    @functools.cached_property
    def checksum(self) -> str:
        rows = self._documents.with_format("arrow").iter(batch_size=ROWS_CHECKED)
        columns = (pc.list_flatten(column).to_numpy() for table in rows for column in table.columns)
        return checksum(*columns, self.labels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """An example; see Pairs. With `is_masked` also `labels`, of the shape of `input_ids`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray | int]]:
        """The examples of a batch, read in one call."""
        columns = self._documents[list(indices)]
        examples = []
        for index, *row in zip(indices, *columns.values(), strict=True):
            row = dict(zip(columns, row, strict=True))
            is_token = row.pop("attention_mask") != 0
            if any(len(values) != len(is_token) for values in row.values()):
                raise UsageError(f"row {index} of the {self.description} data: its columns differ in length")
            example = {name: values[is_token] for name, values in row.items()}
            self._check(index, example)
            examples.append(
                example | {LABEL: int(self.labels[index]), "index": self.number(index), "epoch": self.epoch}
            )
        return examples

    def _check(self, index: int, example: dict[str, np.ndarray]) -> None:
        ids, types = example["input_ids"], example["token_type_ids"]
        row = f"row {index} of the {self.description} data"
        if not 0 < len(ids) <= self.block_size:
            raise UsageError(
                f"{row} has {len(ids):,} tokens, and --block_size is {self.block_size}: give that of the dataset"
            )
        most = max(ids.max(), example.get("labels", ids).max())
        if ids.min() < 0 or most >= self._vocab_size or types.min() < 0 or types.max() > 1:
            raise UsageError(
                f"{row} has a token {most} or a token type {types.max()}, but the tokenizer has {self._vocab_size} "
                "tokens and a pair has types 0 and 1: give the --tokenizer_name that the dataset was made with"
            )


def pair_source(rows: datasets.Dataset, is_preprocessed: bool, text_columns: tuple[str | None, str | None]) -> str:
    """What a dataset holds, from the flags, or else from its columns: "documents", or pairs as "texts" or "ids"."""
    if is_preprocessed or (text_columns == (None, None) and {LABEL, "input_ids"} <= set(rows.column_names)):
        return "ids"
    return "documents" if text_columns == (None, None) and LABEL not in rows.column_names else "texts"


def text_columns(raw_datasets: datasets.DatasetDict, named: tuple[str | None, str | None]) -> list[str]:
    """The columns of A and B: the named ones, or else the only two columns of strings.

    Raises:
        UsageError: a named column does not exist or is not of strings, there are not exactly two columns of strings
            and none is named, or a row has no text.
    """
    for split, rows in raw_datasets.items():
        strings = [
            name
            for name, feature in rows.features.items()
            if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
        ]
        columns = strings if named == (None, None) else list(named)
        if len(columns) != 2 or not set(columns) <= set(strings):
            raise UsageError(
                f"--text_column_a {named[0]} --text_column_b {named[1]}: the {split} data are pairs, and A and B must "
                f"be two columns of strings; choose two of {', '.join(strings) or 'none'} (all "
                f"columns: {', '.join(rows.column_names)})"
            )
        for column in columns:
            if rows.data.column(column).null_count:
                raise UsageError(f"the {split} data have a row without {column}: remove it")
    return columns


def read_labels(documents: datasets.Dataset, description: str) -> np.ndarray:
    """The column next_sentence_label, uint8 of shape (rows,). Raises UsageError for values other than 0 and 1."""
    if LABEL not in documents.column_names:
        raise UsageError(
            f"the {description} data have no column {LABEL}; they have {', '.join(documents.column_names)}; to make "
            "pairs from raw text, leave out --is_already_preprocessed, --is_already_masked and --text_column_a"
        )
    values = documents.select_columns([LABEL]).with_format("arrow")[:].column(LABEL)
    wrong = [value for value in pc.unique(values).to_pylist() if value not in (0, 1)]
    if wrong:
        raise UsageError(f"{LABEL} of the {description} data has the value {wrong[0]!r}: it must be 0 or 1 everywhere")
    return values.to_numpy().astype(np.uint8)


def column_text(*columns: str) -> Callable[[dict], str]:
    """A function that reads the text of these columns, joined by spaces, from a row."""
    return lambda row: " ".join(row[column] for column in columns)
