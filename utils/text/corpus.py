"""Load the corpus of a run: from the Hub, local files, a saved dataset or Python's own documentation."""

import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping
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
from utils.text.cache import cache_folder
from utils.text.columns import Documents, with_text_column
from utils.text.document_stream import DocumentStream
from utils.text.file_documents import FileDocuments, open_files
from utils.text.held_out import hold_out
from utils.text.text_files import PIECE_SIZE, files_fingerprint, find_files, load_files


logger = logging.getLogger(__name__)

DEFAULT_VALIDATION_PERCENTAGE = DataArguments.validation_split_percentage


def load_corpus(
    data_args: DataArguments,
    training_args: LMTrainingArguments,
    cache_dir: str | None,
    token: str | None,
    has_examples: Callable[[Documents], bool] = lambda rows: False,
) -> dict[str, Documents]:
    """Load the documents that the run needs.

    Args:
        has_examples: tells whether a dataset has ready-made training examples as rows, rather than documents.
            Such rows keep their columns.

    Returns:
        A dict with "train" (if `--do_train`) and "validation" (if `--do_eval`), each a Dataset, FileDocuments, or a
        DocumentStream with `--streaming`. Each row is a document with all columns of the source. Its text is also in
        the column "text", if the source has a column of text. If it has no validation split,
        `--validation_split_percentage` of the training documents are held out, the same ones for the same seed.

    Raises:
        UsageError: a missing file or folder, an unsupported format, text that is not UTF-8, malformed JSON, a
            `--text_column` that does not exist, an empty corpus, no split to train or evaluate on, flags that
            contradict `--streaming`, or a cache folder that cannot be written to.
    """
    do_train, do_eval = training_args.do_train, training_args.do_eval
    if data_args.streaming:
        _check_streaming(training_args)
    _quiet_datasets()
    cache_folder(cache_dir)  # one that cannot be written to would be reported as an error of the files
    splits = _load_splits(data_args, do_train, do_eval, cache_dir, token)
    needs_hold_out = do_eval and "validation" not in splits
    if do_eval and not needs_hold_out and data_args.validation_split_percentage != DEFAULT_VALIDATION_PERCENTAGE:
        logger.warning("--validation_split_percentage has no effect: the corpus has a validation split")
    is_used = {"train": do_train or needs_hold_out, "validation": do_eval and not needs_hold_out}
    corpus = {
        split: _prepare_split(split, splits[split], data_args, cache_dir, has_examples)
        for split in is_used
        if is_used[split]
    }
    if needs_hold_out:
        hold_out_documents = DocumentStream.split if data_args.streaming else hold_out
        corpus["train"], corpus["validation"] = hold_out_documents(
            corpus["train"], data_args.validation_split_percentage, training_args.seed
        )
    if not do_train:
        corpus.pop("train", None)
    elif data_args.streaming:
        corpus["train"] = dataclasses.replace(
            corpus["train"],
            is_endless=True,
            seed=training_args.seed,
            shuffle_buffer_size=data_args.shuffle_buffer_size,
            process_index=training_args.process_index,
            num_processes=training_args.world_size,
        )
    return corpus


def _check_streaming(training_args: LMTrainingArguments) -> None:
    """Refuse flags that require the length of the text, which is unknown for a stream."""
    if training_args.do_train and training_args.max_steps <= 0:
        raise UsageError(
            "--streaming: the length of an epoch is unknown; set the length of the training with --max_steps"
        )
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if training_args.do_train and getattr(training_args, name) == "epoch":
            raise UsageError(f"--{name} epoch: the length of an epoch is unknown with --streaming; use steps")
    if training_args.group_by_length:
        raise UsageError("--group_by_length needs the lengths of all examples, unknown with --streaming; leave it out")
    if training_args.dataloader_num_workers:
        logger.warning(
            "--dataloader_num_workers has no effect on the training stream: threads prepare it "
            "(--preprocessing_num_workers)"
        )


def _quiet_datasets() -> None:
    """Silence `datasets`: progress bars outside a terminal, and the errors that `explain_read_error` words better."""
    if not (sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)):
        datasets.disable_progress_bars()
    for name in ("csv", "json"):
        logging.getLogger(f"datasets.packaged_modules.{name}.{name}").setLevel(logging.CRITICAL)


def _load_splits(
    data_args: DataArguments, do_train: bool, do_eval: bool, cache_dir: str | None, token: str | None
) -> Mapping[str, Documents]:
    """Load all splits of the source. Raise UsageError if one that the run needs is missing."""
    if data_args.dataset_name == "builtin/python-docs":
        splits = {"train": _load_python_docs()}
    elif data_args.dataset_name:
        splits = _load_named(data_args, cache_dir, token)
    elif data_args.dataset_path:
        splits = _load_saved(data_args.dataset_path)
    else:
        paths = {"train": data_args.train_file, "validation": data_args.validation_file if do_eval else None}
        # Find the files of both splits before reading either, which may take long.
        files = {split: find_files(f"--{split}_file", paths[split]) for split in paths if paths[split]}
        _require_splits(files, do_train, do_eval)
        if do_train and "validation" in files:
            _warn_of_common_files(**files)
        splits = {split: _load_files(split, files[split], data_args, cache_dir) for split in files}
    _require_splits(splits, do_train, do_eval)
    return splits


def _warn_of_common_files(train: list[str], validation: list[str]) -> None:
    """Warn of a file that both splits read, under the same name or through a link."""

    def identity(file: str) -> tuple[int, int]:
        return os.stat(file).st_dev, os.stat(file).st_ino

    trained_on = set(map(identity, train))
    common = [file for file in validation if identity(file) in trained_on]
    if common:
        more = f" and {len(common) - 1:,} more" if len(common) > 1 else ""
        logger.warning(
            "--train_file and --validation_file both read %s%s: the evaluation is on text that was trained on",
            common[0],
            more,
        )


def _prepare_split(
    split: str,
    rows: Documents,
    data_args: DataArguments,
    cache_dir: str | None,
    has_examples: Callable[[Documents], bool],
) -> Documents:
    """Turn a split into a stream with `--streaming`, and make the text of its documents available as "text"."""
    if data_args.streaming:
        rows = _as_stream(rows, data_args)
    if not has_examples(rows):
        rows = with_text_column(rows, data_args.text_column, split)
    elif isinstance(rows, FileDocuments):  # examples are read in random order, so `datasets` converts them
        rows = load_files(rows.source, list(rows.files), data_args, cache_dir)
    elif data_args.streaming:
        raise UsageError("--streaming: the dataset contains ready-made pairs; leave the flag out")
    if isinstance(rows, Dataset) and len(rows) == 0:
        raise UsageError(f"the {split} corpus is empty: it has no documents")
    return rows


def _require_splits(splits: Collection[str], do_train: bool, do_eval: bool) -> None:
    if do_train and "train" not in splits:
        raise UsageError(
            "training needs text: give --train_file (or a dataset with a train split), or --do_eval alone; "
            f"available splits: {', '.join(splits)}"
        )
    if do_eval and not {"train", "validation"} & set(splits):
        raise UsageError(f"evaluation needs a validation or a train split; available splits: {', '.join(splits)}")


def _load_files(split: str, files: list[str], data_args: DataArguments, cache_dir: str | None) -> Documents:
    flag = f"--{split}_file"
    if not data_args.streaming:
        return open_files(flag, files, data_args) or load_files(flag, files, data_args, cache_dir)
    rows = load_files(flag, files, data_args, cache_dir)
    return DocumentStream(rows, flag, files_fingerprint(files, data_args), files=tuple(files))


def _load_named(data_args: DataArguments, cache_dir: str | None, token: str | None) -> dict[str, Documents]:
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
    # Each file with its commit or modification time.
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
        raise UsageError(f"--dataset_path {path}: not a folder written by save_to_disk: {error}") from error
    return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)


def _as_stream(documents: Documents, data_args: DataArguments) -> DocumentStream:
    """Turn a dataset on disk into a stream, with one shard per PIECE_SIZE bytes."""
    if isinstance(documents, DocumentStream):
        return documents
    num_shards = min(max(documents.data.nbytes // PIECE_SIZE, 1), max(len(documents), 1))
    source = (
        f"--dataset_path {data_args.dataset_path}"
        if data_args.dataset_path
        else f"--dataset_name {data_args.dataset_name}"
    )
    return DocumentStream(documents.to_iterable_dataset(num_shards=num_shards), source, documents._fingerprint)


def _load_python_docs() -> Dataset:
    from pydoc_data.topics import topics  # part of every Python installation, 0.7 MB of text

    table = pa.table({"topic": list(topics), "text": list(topics.values())})
    content = json.dumps(topics, sort_keys=True).encode()
    return Dataset(table, fingerprint=hashlib.sha256(content).hexdigest()[:16])
