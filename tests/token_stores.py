"""Token stores from arrays, without a tokenizer."""

import json
from pathlib import Path

import numpy as np

from utils.tokens.token_store import TokenStore


def write_store(
    folder: Path,
    tokens: np.ndarray,
    document_lengths: list[int],
    segment_lengths: list[int] | None = None,
    token_bytes: np.ndarray | None = None,
    word_starts: np.ndarray | None = None,
) -> TokenStore:
    """Documents of `document_lengths` tokens, and the optional arrays of a token store."""
    folder.mkdir(exist_ok=True)
    tokens.tofile(folder / "tokens.bin")
    np.cumsum([0, *document_lengths]).astype(np.int64).tofile(folder / "offsets.bin")
    meta = {"documents": len(document_lengths), "tokens": len(tokens), "bytes": 0, "dtype": tokens.dtype.name}
    if segment_lengths is not None:
        np.cumsum([0, *segment_lengths]).astype(np.int64).tofile(folder / "segment_offsets.bin")
        meta["segments"] = len(segment_lengths)
    if token_bytes is not None:
        token_bytes.tofile(folder / "token_bytes.bin")
        meta["bytes"] = int(token_bytes.sum())
    if word_starts is not None:
        word_starts.tofile(folder / "word_starts.bin")
    (folder / "meta.json").write_text(json.dumps(meta))
    return TokenStore(folder)
