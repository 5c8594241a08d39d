"""Where to continue a stream, as a file of a checkpoint: numbers and arrays, no pickle."""

import json
from pathlib import Path

import numpy as np

from utils.tokens.token_stream import Document, Position


STATE_FILE = "stream-{}.npz"  # one for each process


def write_state(folder: Path, process_index: int, state: dict, identity: dict) -> None:
    """Write a state, nested dicts of numbers, positions and lists of documents, and what it depends on, as JSON."""
    arrays = {}
    plain = _move_documents(state, "state", arrays)
    header = json.dumps({"state": plain, "identity": identity})
    np.savez(folder / STATE_FILE.format(process_index), header=np.frombuffer(header.encode(), np.uint8), **arrays)


def read_state(folder: Path, process_index: int) -> tuple[dict | None, dict]:
    """The state, None for the beginning of a stream, and what it depends on."""
    with np.load(folder / STATE_FILE.format(process_index), allow_pickle=False) as arrays:
        header = json.loads(bytes(arrays["header"]))
        state = _restore_documents(header["state"], "state", dict(arrays))
    return state or None, header["identity"]


def _move_documents(value, name: str, arrays: dict[str, np.ndarray]):
    """What JSON can hold of a value. The documents in it go to `arrays`, named after their place in the value."""
    if isinstance(value, dict):
        return {key: _move_documents(part, f"{name}.{key}", arrays) for key, part in value.items()}
    if not isinstance(value, list):
        return value
    documents = [document for document in value if document is not None]
    ends_epoch = len(documents) < len(value)
    assert value == documents + [None] * ends_epoch  # only the last item may be the end of an epoch
    for field in Document._fields if documents else ():
        parts = [getattr(document, field) for document in documents]
        if parts[0] is not None:
            arrays[f"{name}.{field}"] = np.concatenate(parts)
            arrays[f"{name}.{field}.lengths"] = np.array([len(part) for part in parts])
    return {"num_documents": len(documents), "ends_epoch": ends_epoch}


def _restore_documents(value, name: str, arrays: dict[str, np.ndarray]):
    """The inverse of `_move_documents`. A list is a Position: JSON has no tuples."""
    if isinstance(value, list):
        return Position(*value)
    if not isinstance(value, dict):
        return value
    if "num_documents" not in value:
        return {key: _restore_documents(part, f"{name}.{key}", arrays) for key, part in value.items()}
    fields = []
    for field in Document._fields:
        parts = [None] * value["num_documents"]
        if f"{name}.{field}" in arrays:
            ends = np.cumsum(arrays[f"{name}.{field}.lengths"])
            parts = np.split(arrays[f"{name}.{field}"], ends[:-1])
        fields.append(parts)
    return [Document(*parts) for parts in zip(*fields, strict=True)] + [None] * value["ends_epoch"]
