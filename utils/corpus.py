"""Where the text comes from: a hub name, files, a saved or the built-in corpus -> train and validation documents."""

import hashlib
import json
import logging
import random
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict

from utils.arguments import DataArguments, LMTrainingArguments
from utils.command_line import UsageError
from utils.hub_errors import explain
from utils.text_files import find_files, load_files


logger = logging.getLogger(__name__)

MOST_RUNS = 1000  # see hold_out
DEFAULT_PERCENTAGE = DataArguments.validation_split_percentage


def load_corpus(
    data_args: DataArguments,
    training_args: LMTrainingArguments,
    cache_dir: str | None,
    token: str | None,
    holds_examples: Callable[[Dataset], bool] = lambda documents: False,
) -> DatasetDict:
    """Load the documents that the run needs.

    Args:
        holds_examples: says of a data set that its rows are no documents; then its columns stay as they are.

    Returns:
        A DatasetDict with "train" (if `--do_train`) and "validation" (if `--do_eval`). Each row is a document;
        its text is in the column "text", the source's other columns are kept. Without a validation split in the
        source, `--validation_split_percentage` of the training documents are held out, the same for the same seed.

    Raises:
        UsageError: a missing file or folder, a format that is not read, text that is not UTF-8, malformed JSON, no
            column of text, an empty corpus, or no train split although `--do_train`.
    """
    do_train, do_eval = training_args.do_train, training_args.do_eval
    if not (sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)):
        datasets.disable_progress_bars()
    logging.getLogger("datasets.packaged_modules.json.json").setLevel(logging.CRITICAL)  # _explain() says it better
    if data_args.dataset_name == "builtin/python-docs":
        raw_datasets = DatasetDict(train=_python_docs())
    elif data_args.dataset_name:
        raw_datasets = _load_named(data_args, cache_dir, token)
    elif data_args.dataset_path:
        raw_datasets = _load_saved(data_args.dataset_path)
    else:
        paths = {"train": data_args.train_file, "validation": data_args.validation_file if do_eval else None}
        # Both are looked for before either is read.
        files = {split: find_files(f"--{split}_file", paths[split]) for split in paths if paths[split]}
        _require_splits(files, do_train, do_eval)
        raw_datasets = DatasetDict(
            {split: load_files(f"--{split}_file", files[split], data_args, cache_dir) for split in files}
        )
    _require_splits(raw_datasets, do_train, do_eval)
    must_hold_out = do_eval and "validation" not in raw_datasets
    if do_eval and not must_hold_out and data_args.validation_split_percentage != DEFAULT_PERCENTAGE:
        logger.warning("--validation_split_percentage has no effect: the corpus has a validation split")
    used = {"train": do_train or must_hold_out, "validation": do_eval and not must_hold_out}
    raw_datasets = DatasetDict(
        {
            split: raw_datasets[split]
            if holds_examples(raw_datasets[split])
            else _with_text_column(raw_datasets[split], data_args.text_column, split)
            for split in used
            if used[split]
        }
    )
    for split, documents in raw_datasets.items():
        if len(documents) == 0:
            raise UsageError(f"the {split} corpus is empty: it has no document")
    if must_hold_out:
        parts = hold_out(raw_datasets["train"], data_args.validation_split_percentage, training_args.seed)
        raw_datasets = DatasetDict(zip(("train", "validation"), parts, strict=True))
    if not do_train:
        raw_datasets.pop("train", None)
    return raw_datasets


def _require_splits(splits: Collection[str], do_train: bool, do_eval: bool) -> None:
    if do_train and "train" not in splits:
        raise UsageError(
            "training needs text: give --train_file (or a data set with a train split), or --do_eval alone; "
            f"there is {', '.join(splits)}"
        )
    if do_eval and not {"train", "validation"} & set(splits):
        raise UsageError(f"evaluation needs a validation or a train split; there is {', '.join(splits)}")


def hold_out(documents: Dataset, percentage: int, seed: int) -> tuple[Dataset, Dataset]:
    """Split documents into train and validation: disjoint, complete, each in the order of the corpus.

    The corpus is cut into up to 1,000 runs of neighbouring documents, of which `percentage` per cent are held out.
    Whole runs, so that text whose documents are lines stays readable; many of them, drawn from all over the corpus,
    since corpora are often sorted by source.

    Args:
        documents: at least two.
        percentage: 1 to 99.
        seed: draws the runs.
    """
    if len(documents) < 2:
        raise UsageError(
            "the corpus is one document, of which no validation part can be held out: give --validation_file, split "
            "it with --document_by line, or give --do_train alone"
        )
    num_runs = min(MOST_RUNS, len(documents))
    num_held_out = min(max(round(num_runs * percentage / 100), 1), num_runs - 1)
    held_out = set(random.Random(seed).sample(range(num_runs), num_held_out))
    edges = [run * len(documents) // num_runs for run in range(num_runs + 1)]
    indices = {True: [], False: []}
    for run in range(num_runs):
        indices[run in held_out].extend(range(edges[run], edges[run + 1]))
    return documents.select(indices[False]), documents.select(indices[True])


def _load_named(data_args: DataArguments, cache_dir: str | None, token: str | None) -> DatasetDict:
    name = data_args.dataset_name
    try:
        options = {"cache_dir": cache_dir, "token": token, "revision": data_args.dataset_revision}
        return datasets.load_dataset(name, data_args.dataset_config_name, **options)
    except Exception as error:  # of many types: the name, the access, the network or the files may be wrong
        raise UsageError(f"--dataset_name {name}: {explain(error, name)}") from error


def _load_saved(path: str) -> DatasetDict:
    if not Path(path).is_dir():
        raise UsageError(f"--dataset_path {path}: there is no such folder")
    try:
        saved = datasets.load_from_disk(path)
    except (FileNotFoundError, ValueError, pa.ArrowInvalid) as error:
        raise UsageError(f"--dataset_path {path}: not written by save_to_disk: {error}") from error
    return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)


def _python_docs() -> Dataset:
    from pydoc_data.topics import topics  # every Python has it, 0.7 MB of text

    table = pa.table({"topic": list(topics), "text": list(topics.values())})
    content = json.dumps(topics, sort_keys=True).encode()
    return Dataset(table, fingerprint=hashlib.sha256(content).hexdigest()[:16])


def _with_text_column(documents: Dataset, text_column: str, split: str) -> Dataset:
    columns = [
        name
        for name, feature in documents.features.items()
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
    ]
    if text_column not in columns:
        if text_column != DataArguments.text_column or len(columns) != 1:
            raise UsageError(
                f"--text_column {text_column}: the {split} documents have no such column of strings; choose one of "
                f"{', '.join(columns) or 'none'} (all columns: {', '.join(documents.column_names) or 'none'})"
            )
        text_column = columns[0]
        logger.info("corpus: the text of %s is its only column of strings, %s", split, text_column)
    if text_column == "text":
        return documents
    if "text" in documents.column_names:
        documents = documents.remove_columns("text")
    return documents.rename_column(text_column, "text")
