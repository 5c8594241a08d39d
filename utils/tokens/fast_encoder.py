"""Libraries that encode 20 to 200 times as fast as `tokenizers`, used only where they give the same ids.

fastokens encodes BPE, byte-level or with byte fallback; splintr encodes WordPiece and Unigram. Both return
buffers of ids and release the GIL. See docs/tokenizers.md for those that were measured and not chosen.
"""

import functools
import itertools
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from tokenizers import Tokenizer, normalizers

from utils.tokens.word_starts import find_any, is_newline_split


Encode = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]  # see FastEncoder
LIBRARIES = {"BPE": "fastokens", "WordPiece": "splintr-rs", "Unigram": "splintr-rs"}


@dataclass(frozen=True)
class FastEncoder:
    """A library's encoder for one tokenizer.

    Attributes:
        name: the library and its version.
        encode: texts -> their ids without special tokens around them, uint32 of shape (tokens,), and the number of
            tokens of each text, int64 of shape (texts,). Special tokens within a text are recognized.
    """

    name: str
    encode: Encode


class Unsupported(Exception):
    """No fast encoder can be used. The message says why."""


def load_fast_encoder(tokenizer: Tokenizer, serialized: str) -> FastEncoder:
    """The fast encoder for a tokenizer. Whether its ids are right is for the caller to check.

    Args:
        tokenizer: without truncation and padding.
        serialized: `tokenizer.to_str()`, which takes a while.

    Raises:
        Unsupported: the library is missing or does not know this kind of tokenizer.
    """
    if tokenizer.encode_special_tokens:
        raise Unsupported("the tokenizer splits special tokens within a text")
    kind = type(tokenizer.model).__name__
    if kind == "BPE" and tokenizer.model.dropout:
        raise Unsupported("its ids are random (BPE dropout)")
    if kind not in LIBRARIES:
        raise Unsupported(f"there is none for {kind}")
    library = LIBRARIES[kind]
    try:
        encode_batch = _load_fastokens(serialized) if library == "fastokens" else _load_splintr(serialized)
    except ImportError as error:
        raise Unsupported(f"{library} is not installed") from error
    except (ValueError, RuntimeError) as error:
        raise Unsupported(f"{library} does not support this tokenizer: {error}") from error
    # splintr looks for added tokens before it normalizes a text, tokenizers also for these afterwards.
    normalized = [token.content.strip() for token in tokenizer.get_added_tokens_decoder().values() if token.normalized]
    spells_out = find_any(normalized if library == "splintr-rs" else [])

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = encode_batch(texts)
        exceptions = [i for i, text in enumerate(texts) if spells_out(text)]
        if exceptions:
            documents = np.split(ids, np.cumsum(lengths)[:-1])
            for i in exceptions:
                documents[i] = np.array(tokenizer.encode(texts[i], add_special_tokens=False).ids, dtype=np.uint32)
            ids, lengths = np.concatenate(documents), np.array(list(map(len, documents)))
        return ids, lengths

    return FastEncoder(f"{library} {version(library)}", encode)


def _load_fastokens(serialized: str) -> Encode:
    from fastokens import Tokenizer

    try:
        tokenizer = Tokenizer.from_json_str(serialized)
    except ValueError:  # it does not know each post-processor, such as RoBERTa's
        tokenizer = Tokenizer.from_json_str(json.dumps(json.loads(serialized) | {"post_processor": None}))

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = tokenizer.encode_batch_flat(texts)
        return np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.uint64).astype(np.int64))

    return encode


def _load_splintr(serialized: str) -> Encode:
    import splintr

    definition = json.loads(serialized) | {"post_processor": None}
    if definition["model"]["type"] == "Unigram":
        _drop_newline_split(definition)
        _spell_out_accents(definition)
    tokenizer = splintr.from_json_bytes(json.dumps(definition).encode())

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        # Not its encode_batch_flat: that starts threads, without which it hangs in a process that is forked later.
        buffers = [tokenizer.encode_flat(text) for text in texts]
        return np.frombuffer(b"".join(buffers), np.uint32), np.array(list(map(len, buffers)), dtype=np.int64) // 4

    return encode


def _drop_newline_split(definition: dict) -> None:
    """Leave out a pre-tokenizer that isolates newlines, if the only piece with a newline is the newline itself.

    Unigram then isolates them anyway. splintr would prepend a space to each.
    """
    steps = (definition["pre_tokenizer"] or {}).get("pretokenizers", [])
    pieces_with_newline = [piece for piece, _ in definition["model"]["vocab"] if "\n" in piece]
    if len(steps) > 1 and is_newline_split(steps[0]) and pieces_with_newline == ["\n"]:
        steps.pop(0)


def _spell_out_accents(definition: dict) -> None:
    """Let splintr remove the same accents as `tokenizers`, which removes spacing marks too, of an older Unicode."""
    normalizer = definition["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    for step in steps:
        if step.get("type") == "StripAccents":
            step |= {"type": "Replace", "pattern": {"Regex": f"[{_accents()}]"}, "content": ""}


@functools.cache
def _accents() -> str:
    """The characters that `tokenizers` strips as accents, as ranges of a regular expression."""
    strip = normalizers.StripAccents().normalize_str
    planes = itertools.chain(range(0x300, 0x20000), range(0xE0000, 0xE0200))  # the blocks that have marks
    marks = [point for point in planes if unicodedata.category(chr(point))[0] == "M" and not strip(chr(point))]
    breaks = [i for i in range(1, len(marks)) if marks[i] != marks[i - 1] + 1]
    ranges = zip([0, *breaks], [*breaks, len(marks)], strict=True)
    return "".join(f"\\x{{{marks[start]:x}}}-\\x{{{marks[end - 1]:x}}}" for start, end in ranges)
