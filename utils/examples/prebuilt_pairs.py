"""Pairs of texts, with their labels, that a data set has already: as texts, or as token ids."""

import logging
from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from utils.errors import UsageError
from utils.examples.sentence_pairs import LABEL, Pairs
from utils.tokens.token_store import TokenStore


logger = logging.getLogger(__name__)

TOKEN_COLUMNS = ("input_ids", "token_type_ids", "attention_mask")
ROWS_CHECKED = 1000  # of a data set of others, before the training; the others are checked when they are read


class TextPairs(Pairs):
    """Pairs of texts that a data set has, with its labels.

    Args:
        stores: the tokens of the As and of the Bs, a document for each pair, tokenized without special tokens.
        labels: 0 or 1 for each pair.
        block_size: the most tokens in an example; what is longer is truncated as in SentencePairs.
        max_pairs: only the first so many pairs.
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
        super().__init__(block_size, num_pairs, tokenizer, seed)
        self.stores = list(stores)
        self.labels = labels

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """An example; see Pairs."""
        a, b = ((store, *store.offsets[index : index + 2].tolist()) for store in self.stores)
        return self._example(index, int(self.labels[index]), a, b, self._draws(index))


class PreprocessedPairs(Pairs):
    """The examples of a data set that holds token ids: columns input_ids, token_type_ids, attention_mask and a label.

    Padding, where attention_mask is 0, is left out: the collator pads as far as a batch needs it.

    Args:
        documents: the data set; with `is_masked` also with a column `labels`, -100 where nothing was masked.
        is_masked: the ids are masked already, and the labels go along.
        block_size: the most tokens that an example may have.
        description: what an error calls the data set.

    Raises:
        UsageError: a column that is missing or not of integers, an example longer than `block_size`, or a token that
            the tokenizer does not have; when the first `ROWS_CHECKED` examples are checked, or in `__getitems__`.
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
        super().__init__(block_size, num_pairs, tokenizer, seed)
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
                "%s: the column labels is not used and input_ids are masked here; where they are masked already, give "
                "--is_already_masked", description,
            )  # fmt: skip
        self._documents = documents.select_columns(columns).with_format("numpy")
        self._vocab_size = max(tokenizer.get_vocab().values()) + 1
        self.__getitems__(list(range(min(self.num_pairs, ROWS_CHECKED))))

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """An example; see Pairs. With `is_masked` also `labels`, of the shape of `input_ids`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray | int]]:
        """The examples of a batch, which torch's DataLoader fetches in one call."""
        columns = self._documents[list(indices)]
        examples = []
        for index, *row in zip(indices, *columns.values(), strict=True):
            row = dict(zip(columns, row, strict=True))
            is_token = row.pop("attention_mask") != 0
            if any(len(values) != len(is_token) for values in row.values()):
                raise UsageError(f"row {index} of the {self.description} data: its columns differ in length")
            example = {name: values[is_token] for name, values in row.items()}
            self._check(index, example)
            examples.append(example | {LABEL: int(self.labels[index]), "index": index, "epoch": int(self._epoch)})
        return examples

    def _check(self, index: int, example: dict[str, np.ndarray]) -> None:
        ids, types = example["input_ids"], example["token_type_ids"]
        row = f"row {index} of the {self.description} data"
        if not 0 < len(ids) <= self.block_size:
            raise UsageError(
                f"{row} has {len(ids):,} tokens, and --max_seq_length is {self.block_size}: give that of the data set"
            )
        most = max(ids.max(), example.get("labels", ids).max())
        if ids.min() < 0 or most >= self._vocab_size or types.min() < 0 or types.max() > 1:
            raise UsageError(
                f"{row}: a token {most} or a token type {types.max()} where the tokenizer has {self._vocab_size} "
                "tokens and a pair has types 0 and 1: give the --tokenizer_name that made the data set"
            )


def pair_source(rows: datasets.Dataset, is_preprocessed: bool, text_columns: tuple[str | None, str | None]) -> str:
    """What a data set holds: "documents", pairs as "texts", or pairs as "ids", by the flags, else by its columns."""
    if is_preprocessed or (text_columns == (None, None) and {LABEL, "input_ids"} <= set(rows.column_names)):
        return "ids"
    return "documents" if text_columns == (None, None) and LABEL not in rows.column_names else "texts"


def text_columns(raw_datasets: datasets.DatasetDict, named: tuple[str | None, str | None]) -> list[str]:
    """The columns of A and B: those that are named, else the only two columns of strings.

    Raises:
        UsageError: no such column of strings, not two of them where none is named, or a row without text.
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
