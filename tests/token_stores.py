"""Token stores from arrays, without a tokenizer."""

from pathlib import Path

import numpy as np

from utils.tokens.store_files import new_folder
from utils.tokens.token_store import PART_METADATA, TokenStore
from utils.tokens.token_store import write_store as write_store_of


def write_store(
    folder: Path,
    tokens: np.ndarray,
    document_lengths: list[int],
    segment_lengths: list[int] | None = None,
    token_bytes: np.ndarray | None = None,
    word_starts: np.ndarray | None = None,
) -> TokenStore:
    """Documents of `document_lengths` tokens, and the optional arrays of a token store."""
    with new_folder(folder.with_name(f"{folder.name}-part"), PART_METADATA) as (part, metadata):
        tokens.tofile(part / "tokens.bin")
        np.array(document_lengths, dtype=np.uint32).tofile(part / "lengths.bin")
        document_bytes = np.zeros(len(document_lengths), dtype=np.uint32)
        if len(document_bytes) and token_bytes is not None:
            document_bytes[0] = token_bytes.sum()
        document_bytes.tofile(part / "document_bytes.bin")
        if segment_lengths is not None:
            np.array(segment_lengths, dtype=np.uint32).tofile(part / "segment_lengths.bin")
        if token_bytes is not None:
            token_bytes.tofile(part / "token_bytes.bin")
        if word_starts is not None:
            word_starts.tofile(part / "word_starts.bin")
        metadata |= {"rows": len(document_lengths), "dtype": tokens.dtype.name}
    write_store_of(folder, [folder.with_name(f"{folder.name}-part")])
    return TokenStore(folder)
