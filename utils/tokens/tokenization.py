"""Documents to a token store, tokenized once, or to a token stream."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tokenizers
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from utils.config.data_arguments import DataArguments
from utils.errors import UsageError
from utils.fingerprint import code_fingerprint, fingerprint
from utils.progress import progress
from utils.text.cache import cache_folder
from utils.text.columns import Documents, read_texts
from utils.text.document_stream import DocumentStream
from utils.text.segmentation import Segmenter
from utils.tokens.corpus_parts import divide, read_rows
from utils.tokens.encoder import Encoder
from utils.tokens.exactness import ONE_IN
from utils.tokens.refusals import heed_refusal
from utils.tokens.store_builder import Build, part_key
from utils.tokens.store_files import CorruptFolder, read_folder
from utils.tokens.token_store import PART_METADATA, TokenStore, is_store_of, write_store
from utils.tokens.token_stream import TokenStream, num_threads
from utils.tokens.word_starts import require_word_boundaries


logger = logging.getLogger(__name__)

FORMAT_VERSION = 3  # part of the cache key: increase it when the files change for the same input
STREAM_VERSION = 2  # part of what a checkpoint of a stream belongs to: increase it when the tokens change


def tokenize_documents(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    document_text: Callable[[dict], str | None],
    data_args: DataArguments,
    *,
    cache_dir: str | None,
    description: str,
    append_eos: bool = False,
    add_special_tokens: bool = True,
    with_token_bytes: bool = False,
    with_word_starts: bool = False,
    segmenter: Segmenter | None = None,
    num_tokens_needed: int | None = None,
) -> TokenStore | TokenStream:
    """Tokenize each document as the tokenizer does by default, or reuse the result of an earlier run.

    An endless stream is not read yet. The result is then a TokenStream, which tokenizes while it is read.

    The corpus is tokenized in parts, each kept under a key of its own. A run that was killed goes on with the parts
    that are missing, and a corpus with another file needs one more part. Any number of processes can call this with
    the same arguments: they tokenize different parts at once. This involves no collective operation.

    Args:
        documents: the rows passed to `document_text`.
        document_text: returns the text that the model reads of a row; None leaves the row out.
        data_args: provides `--preprocessing_num_workers`, `--overwrite_cache` and `--fast_encoder`.
        cache_dir: None for the cache of `datasets`.
        description: name of the documents in the progress and the log.
        append_eos: end each non-empty document with exactly one end-of-text token, even if the tokenizer adds its own.
        add_special_tokens: add the special tokens of the tokenizer's template to each text, such as [CLS] and [SEP].
        with_token_bytes: also store the bytes of each token, for bits per byte. Ignored for slow tokenizers. The
            corpus is then one part, since the bytes of a document without tokens count towards the next one.
        with_word_starts: also store where the words of the tokenizer start, for `--whole_word_mask`.
        segmenter: tokenize the segments of a document one by one and also store where they start.
        num_tokens_needed: stop reading a stream after this many tokens; None to read all of it.

    Raises:
        UsageError: `append_eos` with a tokenizer without an end-of-text token, `with_word_starts` with one that does
            not report word boundaries, a `document_text` that reads a column that does not exist or does not return a
            string, or documents without a single token.
    """
    if append_eos and tokenizer.eos_token_id is None:
        raise UsageError(
            "--append_eos: this tokenizer has no end-of-text token; leave it out or choose another tokenizer"
        )
    if with_word_starts:
        require_word_boundaries(tokenizer)
    with_token_bytes = with_token_bytes and tokenizer.is_fast
    encoder = Encoder(
        tokenizer,
        append_eos,
        add_special_tokens,
        with_token_bytes,
        with_word_starts,
        segmenter,
        use_fast_encoder=data_args.fast_encoder == "auto",
    )
    if not isinstance(documents, DocumentStream):
        num_tokens_needed = None
    determinants = {
        "document_text": code_fingerprint(document_text),
        "tokenizer": encoder.fingerprint,
        "tokenizers_version": tokenizers.__version__,
        "append_eos": append_eos,
        "add_special_tokens": add_special_tokens,
        "with_token_bytes": with_token_bytes,
        "with_word_starts": with_word_starts,
        "segmenter": segmenter and segmenter.fingerprint,
    }
    num_workers = num_threads(data_args.preprocessing_num_workers)
    cache = cache_folder(cache_dir)
    if isinstance(documents, DocumentStream) and documents.is_endless:
        next(iterate_texts(documents, document_text), None)  # finds a missing column before the model is loaded
        key = fingerprint(format_version=STREAM_VERSION, documents=documents._fingerprint, **determinants)
        refusal_file = cache / f"{key}.refusal"
        heed_refusal(encoder, refusal_file)
        _log_stream(description, encoder)
        return TokenStream(documents, encoder, document_text, num_workers, key, refusal_file)

    key = fingerprint(format_version=FORMAT_VERSION, num_tokens_needed=num_tokens_needed, **determinants)
    division = divide(documents, in_one=with_token_bytes)
    parts = {part_key(key, part): part for part in division.parts}
    store_key = fingerprint(key=key, parts=list(parts), rows=division.rows)
    build = Build(
        cache, store_key, parts, encoder, document_text, num_workers, data_args.overwrite_cache, num_tokens_needed
    )
    progress(build.run(), division.num_documents, f"tokenizing {description}", "documents")
    store = _open_store(cache / store_key, build, division.rows)
    _log(description, store, build)
    if len(store.tokens) == 0:
        raise UsageError(f"the {description} corpus is empty: its {store.num_documents:,} documents have no tokens")
    return store


def iterate_texts(documents: Documents, document_text: Callable[[dict], str | None]) -> Iterator[list[str | None]]:
    """The texts of the documents in order, in lists; None for a row that is left out."""
    for rows in read_rows(documents):
        yield read_texts(rows, document_text)


def _open_store(path: Path, build: Build, rows: Sequence[tuple[int, int]] | None) -> TokenStore:
    """The store of parts that exist. Written anew if it is missing or damaged, or a part is not what it was."""
    with FileLock(f"{path}.lock"):
        try:
            is_usable = is_store_of(path, build.paths)
        except CorruptFolder as damage:
            logger.warning("%s; it is written again", damage)
            is_usable = False
        if not is_usable:
            write_store(path, build.paths, rows)
        return TokenStore(path)


def _log_stream(description: str, encoder: Encoder) -> None:
    compared = f" (no fast encoder: {encoder.fast_refusal})"
    if encoder.fast is not None:
        compared = f" (equal to tokenizers on hard texts; one document in {ONE_IN} is compared)"
    logger.info("%s: a stream, tokenized during training with %s%s", description, encoder.name, compared)


def _log(description: str, store: TokenStore, build: Build) -> None:
    metadata = [read_folder(path, PART_METADATA) for path in build.paths]
    num_left_out = sum(part["rows"] - part["documents"] for part in metadata)
    if num_left_out and build.num_built:
        logger.info("%s: document_text left out %s documents", description, f"{num_left_out:,}")
    if build.num_built == 0:
        how = "tokenized earlier"
    elif len(metadata) == 1:
        how = "tokenized"
    else:
        how = f"tokenized in {len(metadata):,} parts, {len(metadata) - build.num_built:,} of them elsewhere or earlier"
    encoders = " and ".join(dict.fromkeys(part["encoder"] for part in metadata))
    num_compared = sum(part["compared"] for part in metadata)
    if num_compared:
        encoders += f" (equal to tokenizers on {num_compared:,} documents that were compared)"
    elif build.encoder.fast_refusal and build.num_built:
        encoders += f" (no fast encoder: {build.encoder.fast_refusal})"
    logger.info(
        "%s: %s documents, %s tokens, %s bytes of text; %s with %s: %s",
        description, f"{store.num_documents:,}", f"{len(store.tokens):,}", f"{store.num_bytes:,}", how, encoders,
        store.path,
    )  # fmt: skip
