"""Where the text comes from: a hub name, files, a saved or the built-in corpus -> train and validation documents."""

import dataclasses
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

from utils.config.data_arguments import DataArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.fingerprint import fingerprint
from utils.hub.dataset_names import full_dataset_name
from utils.hub.errors import explain_hub_error
from utils.text.document_stream import DocumentStream
from utils.text.text_files import PIECE_SIZE, files_fingerprint, find_files, load_files


logger = logging.getLogger(__name__)

MOST_RUNS = 1000  # see hold_out
DEFAULT_PERCENTAGE = DataArguments.validation_split_percentage


def load_corpus(
    data_args: DataArguments,
    training_args: LMTrainingArguments,
    cache_dir: str | None,
    token: str | None,
    holds_examples: Callable[[Dataset | DocumentStream], bool] = lambda documents: False,
) -> dict[str, Dataset | DocumentStream]:
    """Load the documents that the run needs.

    Args:
        holds_examples: says of a data set that its rows are no documents; then its columns stay as they are.

    Returns:
        A dict with "train" (if `--do_train`) and "validation" (if `--do_eval`), each a Dataset, or a DocumentStream
        with `--streaming`. Each row is a document; its text is in the column "text", the source's other columns are
        kept. Without a validation split in the source, `--validation_split_percentage` of the training documents are
        held out, the same for the same seed.

    Raises:
        UsageError: a missing file or folder, a format that is not read, text that is not UTF-8, malformed JSON, no
            column of text, an empty corpus, or no train split although `--do_train`; or flags that do not go with
            `--streaming`.
    """
    do_train, do_eval = training_args.do_train, training_args.do_eval
    if data_args.streaming:
        _check_streaming(training_args)
    if not (sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)):
        datasets.disable_progress_bars()
    logging.getLogger("datasets.packaged_modules.json.json").setLevel(logging.CRITICAL)  # _explain() says it better
    if data_args.dataset_name == "builtin/python-docs":
        raw_datasets = {"train": _python_docs()}
    elif data_args.dataset_name:
        raw_datasets = _load_named(data_args, cache_dir, token)
    elif data_args.dataset_path:
        raw_datasets = _load_saved(data_args.dataset_path)
    else:
        paths = {"train": data_args.train_file, "validation": data_args.validation_file if do_eval else None}
        # Both are looked for before either is read.
        files = {split: find_files(f"--{split}_file", paths[split]) for split in paths if paths[split]}
        _require_splits(files, do_train, do_eval)
        raw_datasets = {split: _load_files(split, files[split], data_args, cache_dir) for split in files}
    _require_splits(raw_datasets, do_train, do_eval)
    must_hold_out = do_eval and "validation" not in raw_datasets
    if do_eval and not must_hold_out and data_args.validation_split_percentage != DEFAULT_PERCENTAGE:
        logger.warning("--validation_split_percentage has no effect: the corpus has a validation split")
    used = {"train": do_train or must_hold_out, "validation": do_eval and not must_hold_out}
    raw_datasets = {split: raw_datasets[split] for split in used if used[split]}
    if data_args.streaming:
        raw_datasets = {split: _as_stream(documents, data_args) for split, documents in raw_datasets.items()}
    for split, documents in raw_datasets.items():
        if not holds_examples(documents):
            raw_datasets[split] = _with_text_column(documents, data_args.text_column, split)
        elif data_args.streaming:
            raise UsageError("--streaming: the data set holds pairs that are made already; leave it out")
        if isinstance(documents, Dataset) and len(documents) == 0:
            raise UsageError(f"the {split} corpus is empty: it has no document")
    if must_hold_out:
        percentage = data_args.validation_split_percentage
        if data_args.streaming:
            parts = raw_datasets["train"].split(percentage, training_args.seed)
        else:
            parts = hold_out(raw_datasets["train"], percentage, training_args.seed)
        raw_datasets = dict(zip(("train", "validation"), parts, strict=True))
    if not do_train:
        raw_datasets.pop("train", None)
    elif data_args.streaming:
        raw_datasets["train"] = dataclasses.replace(
            raw_datasets["train"],
            is_endless=True,
            seed=training_args.seed,
            shuffle_buffer_size=data_args.shuffle_buffer_size,
            process_index=training_args.process_index,
            num_processes=training_args.world_size,
        )
    return raw_datasets


def _check_streaming(training_args: LMTrainingArguments) -> None:
    """Refuse what needs to know how long the text is, which nobody knows of a stream."""
    if training_args.do_train and training_args.max_steps <= 0:
        raise UsageError(
            "--streaming: nobody knows how long an epoch of a stream is: say with --max_steps how long to train"
        )
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if training_args.do_train and getattr(training_args, name) == "epoch":
            raise UsageError(f"--{name} epoch: nobody knows how long an epoch of a stream is: give steps")
    if training_args.group_by_length:
        raise UsageError("--group_by_length needs all lengths, which a stream does not know: leave it out")
    if training_args.dataloader_num_workers:
        logger.warning(
            "--dataloader_num_workers has no effect on the training stream, which threads beside the training prepare "
            "(--preprocessing_num_workers)"
        )


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


def _load_files(
    split: str, files: list[str], data_args: DataArguments, cache_dir: str | None
) -> Dataset | DocumentStream:
    flag = f"--{split}_file"
    rows = load_files(flag, files, data_args, cache_dir)
    if not data_args.streaming:
        return rows
    return DocumentStream(rows, flag, files_fingerprint(files, data_args), files=tuple(files))


def _load_named(
    data_args: DataArguments, cache_dir: str | None, token: str | None
) -> dict[str, Dataset | DocumentStream]:
    name = data_args.dataset_name
    try:
        repository = full_dataset_name(name, token, cache_dir)
        options = {"cache_dir": cache_dir, "token": token, "revision": data_args.dataset_revision}
        if not data_args.streaming:
            return datasets.load_dataset(repository, data_args.dataset_config_name, **options)
        builder = datasets.load_dataset_builder(repository, data_args.dataset_config_name, **options)
        streams = builder.as_streaming_dataset()
    except Exception as error:  # of many types: the name, the access, the network or the files may be wrong
        raise UsageError(f"--dataset_name {name}: {explain_hub_error(error, name)}") from error
    # The files with the commit, or the time, of each.
    files = {
        str(split): [*data_files, *map(list, data_files.origin_metadata)]
        for split, data_files in (builder.config.data_files or {}).items()
    }
    source = fingerprint(builder=builder.hash, config=repr(builder.config_id), files=files)
    return {
        str(split): DocumentStream(rows, f"--dataset_name {name}", fingerprint(source=source, split=str(split)))
        for split, rows in streams.items()
    }


def _load_saved(path: str) -> DatasetDict:
    if not Path(path).is_dir():
        raise UsageError(f"--dataset_path {path}: there is no such folder")
    try:
        saved = datasets.load_from_disk(path)
    except (FileNotFoundError, ValueError, pa.ArrowInvalid) as error:
        raise UsageError(f"--dataset_path {path}: not written by save_to_disk: {error}") from error
    return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)


def _as_stream(documents: Dataset | DocumentStream, data_args: DataArguments) -> DocumentStream:
    """A data set on the disk as a stream, in as many shards as its size suggests."""
    if isinstance(documents, DocumentStream):
        return documents
    num_shards = min(max(documents.data.nbytes // PIECE_SIZE, 1), max(len(documents), 1))
    source = (
        f"--dataset_path {data_args.dataset_path}"
        if data_args.dataset_path
        else f"--dataset_name {data_args.dataset_name}"
    )
    return DocumentStream(documents.to_iterable_dataset(num_shards=num_shards), source, documents._fingerprint)


def _python_docs() -> Dataset:
    from pydoc_data.topics import topics  # every Python has it, 0.7 MB of text

    table = pa.table({"topic": list(topics), "text": list(topics.values())})
    content = json.dumps(topics, sort_keys=True).encode()
    return Dataset(table, fingerprint=hashlib.sha256(content).hexdigest()[:16])


def _with_text_column(documents: Dataset | DocumentStream, text_column: str, split: str) -> Dataset | DocumentStream:
    columns = _string_columns(documents)
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
    if isinstance(documents, DocumentStream):
        return dataclasses.replace(documents, text_column=text_column)
    if "text" in documents.column_names:
        documents = documents.remove_columns("text")
    return documents.rename_column(text_column, "text")


def _string_columns(documents: Dataset | DocumentStream) -> list[str]:
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
