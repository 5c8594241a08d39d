"""The tokenized corpus: flat arrays on disk, in parts, memory-mapped by every process."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.fingerprint import checksum_of
from utils.tokens.store_files import memory_map, new_folder, read_chunks, read_folder


PART_METADATA = "part.json"
STORE_METADATA = "meta.json"


class TokenStore:
    """The tokens of a corpus, document after document. The arrays are memory-mapped, so any size fits in memory.

    A store has the offsets of its documents, and spans of tokens in the parts of the corpus; see `write_store`.

    Attributes:
        tokens: uint16 or uint32 (the smallest type that holds the vocabulary), shape (tokens,).
        offsets: int64, shape (documents + 1,); document i is `tokens[offsets[i]:offsets[i + 1]]`.
        token_bytes: uint32, shape (tokens,), the UTF-8 bytes that each token stands for; None if not stored.
        word_starts: uint8, shape (tokens,), 1 where a token starts a word; None if not stored.
        segment_offsets: int64, shape (segments + 1,), like `offsets` but for the segments of the documents. Each
            segment has at least one token. None if not stored.
        num_bytes: UTF-8 bytes of all documents.
        num_documents: documents, including those without tokens.
        checksum: of the tokens and the offsets, 16 hexadecimal digits.

    `tokens`, `token_bytes` and `word_starts` are NumPy arrays, or `Concatenated` ones for several spans.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        metadata = read_folder(self.path, STORE_METADATA)
        self.num_bytes: int = metadata["bytes"]
        self.num_documents: int = metadata["documents"]
        self.checksum: str = metadata["checksum"]
        self._spans = metadata["spans"]
        self.tokens = self._map_spans("tokens.bin", metadata["dtype"])
        self.token_bytes = self._map_spans("token_bytes.bin", "uint32")
        self.word_starts = self._map_spans("word_starts.bin", "uint8")
        self.offsets = memory_map(self.path / "offsets.bin", "int64")
        segments = self.path / "segment_offsets.bin"
        self.segment_offsets = memory_map(segments, "int64") if segments.exists() else None

    def _map_spans(self, name: str, dtype: str) -> "np.ndarray | Concatenated | None":
        return map_spans([(self.path.parent / part, start, end) for part, start, end in self._spans], name, dtype)

    def __reduce__(self):  # a dataloader worker maps the files again instead of receiving a copy of them
        return TokenStore, (self.path,)


class Concatenated:
    """Arrays of one dimension and one type, one after another, without a copy. What is read from it is a copy.

    Attributes:
        dtype: of the elements.
        shape: (elements,).
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])
        self.dtype = arrays[0].dtype
        self.shape = (int(self._ends[-1]),)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray | np.generic:
        if isinstance(key, slice):
            start, end, step = key.indices(len(self))
            if step == 1:
                return self._read(start, end)
        elif np.ndim(key) == 0:
            index = range(len(self))[key]
            return self._read(index, index + 1)[0]
        return np.asarray(self)[key]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self._read(0, len(self)).astype(dtype or self.dtype, copy=False)

    def _read(self, start: int, end: int) -> np.ndarray:
        if end <= start:
            return np.empty(0, self.dtype)
        first = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        while start < end:
            offset = int(self._ends[first]) - len(self._arrays[first])
            pieces.append(self._arrays[first][start - offset : end - offset])
            start = int(self._ends[first])
            first += 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def map_spans(spans: list[tuple[Path, int, int]], name: str, dtype: str) -> np.ndarray | Concatenated | None:
    """The elements `start` to `end` of a file in each folder, as one array. None if the folders have no such file."""
    if not spans:
        return np.empty(0, dtype) if name == "tokens.bin" else None
    if not (spans[0][0] / name).exists():
        return None
    arrays = [memory_map(folder / name, dtype)[start:end] for folder, start, end in spans]
    return arrays[0] if len(arrays) == 1 else Concatenated(arrays)


def write_store(path: Path, parts: list[Path], rows: Sequence[tuple[int, int]] | None = None) -> None:
    """Make a store of parts, or of some of their rows. No token is copied; the offsets are written anew.

    Args:
        path: the store, in the same folder as the parts.
        rows: ranges of rows of the corpus, ascending; None for all.
    """
    with new_folder(path, STORE_METADATA) as (folder, metadata):
        spans: list[tuple[Path, int, int]] = []
        num_documents = num_bytes = num_tokens = num_segments = first_row = 0
        has_segments = False
        contents, dtype = [], "uint16"
        with open(folder / "offsets.bin", "wb") as offsets, open(folder / "segment_offsets.bin", "wb") as segments:
            for file in (offsets, segments):
                file.write(np.int64(0))
            for part in parts:
                part_metadata = read_folder(part, PART_METADATA)
                contents.append(part_metadata["files"])
                dtype = part_metadata["dtype"]
                lengths = memory_map(part / "lengths.bin", "uint32").astype(np.int64)
                token_ends = np.cumsum(lengths)
                document_bytes = memory_map(part / "document_bytes.bin", "uint32")
                has_segments = (part / "segment_lengths.bin").exists()
                if has_segments:
                    segment_ends = np.cumsum(memory_map(part / "segment_lengths.bin", "uint32").astype(np.int64))
                for first, last in _documents_of(part, part_metadata, first_row, rows):
                    start = int(token_ends[first] - lengths[first])
                    end = int(token_ends[last - 1])
                    offsets.write(token_ends[first:last] - start + num_tokens)
                    if has_segments:
                        place = slice(*np.searchsorted(segment_ends, [start, end], side="right").tolist())
                        segments.write(segment_ends[place] - start + num_tokens)
                        num_segments += place.stop - place.start
                    if spans and spans[-1][0] == part and spans[-1][2] == start:
                        spans[-1] = (part, spans[-1][1], end)
                    elif end > start:
                        spans.append((part, start, end))
                    num_documents += last - first
                    num_bytes += int(document_bytes[first:last].sum(dtype=np.int64))
                    num_tokens += end - start
                first_row += part_metadata["rows"]
        if not has_segments:
            (folder / "segment_offsets.bin").unlink()
        size = np.dtype(dtype).itemsize
        places = [(part / "tokens.bin", start * size, end * size) for part, start, end in spans]
        places += [
            (folder / name, 0, None) for name in ("offsets.bin", "segment_offsets.bin") if (folder / name).exists()
        ]
        metadata |= {
            "parts": contents,
            "documents": num_documents,
            "segments": num_segments,
            "tokens": num_tokens,
            "bytes": num_bytes,
            "dtype": dtype,
            "checksum": checksum_of(chunk for place in places for chunk in read_chunks(*place)),
            "spans": [(part.name, start, end) for part, start, end in spans],
        }


def is_store_of(path: Path, parts: list[Path]) -> bool:
    """Whether a store exists and was made of these parts as they are now. Raises CorruptFolder if it is damaged."""
    metadata = read_folder(path, STORE_METADATA)
    if metadata is None:
        return False
    return metadata["parts"] == [read_folder(part, PART_METADATA)["files"] for part in parts]


def _documents_of(
    part: Path, metadata: dict, first_row: int, rows: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """The ranges of a part's documents that are in ranges of rows. `first_row` is the number of its first row."""
    ranges = [(0, metadata["rows"])]
    if rows is not None:
        last_row = first_row + metadata["rows"]
        ranges = [
            (max(start, first_row) - first_row, min(end, last_row) - first_row)
            for start, end in rows
            if start < last_row and end > first_row
        ]
    if (part / "rows.bin").exists():
        numbers = memory_map(part / "rows.bin", "int64")
        ranges = [tuple(np.searchsorted(numbers, edges).tolist()) for edges in ranges]
    return [(first, last) for first, last in ranges if last > first]
