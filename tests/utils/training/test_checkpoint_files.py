"""Checkpoints on disk: whole or not there, and corruption is detected."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from utils.training.checkpoint_files import (
    find_corruption,
    publish,
    read_metadata,
    remove,
    remove_leftovers,
    unfinished_path,
)


FILES = ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "run_args.yaml", "deep/part.bin")


def write_files(folder, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    values = {"weight": torch.rand(100, generator=generator)}
    (folder / "deep").mkdir(parents=True)
    save_file(values, folder / "model.safetensors")
    torch.save(values, folder / "optimizer.pt")
    torch.save(values, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "seed": seed}))
    (folder / "run_args.yaml").write_text("block_size: 16\n")
    (folder / "deep" / "part.bin").write_bytes(os.urandom(50))
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    checkpoint = tmp_path / "checkpoint-3"
    write_files(unfinished_path(checkpoint))
    publish(checkpoint, {"seed": 42})
    return checkpoint


def test_published_checkpoint_is_whole(checkpoint):
    assert find_corruption(checkpoint) is None
    assert read_metadata(checkpoint)["seed"] == 42
    assert not unfinished_path(checkpoint).exists()
    (checkpoint / "notes.txt").write_text("of the user")
    assert find_corruption(checkpoint) is None


@pytest.mark.parametrize("name", [*FILES, "checkpoint.json"])
@pytest.mark.parametrize("how", ["cut", "emptied", "gone", "one bit"])
def test_corruption_is_found_and_named(checkpoint, name, how):
    path = checkpoint / name
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "one bit":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 128]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: len(content) // 2] if how == "cut" else b"")
    if name == "checkpoint.json" and how == "gone":  # as in a checkpoint of an earlier version
        assert find_corruption(checkpoint) is None
        return
    assert name in find_corruption(checkpoint)
    if how != "one bit":
        assert name in find_corruption(checkpoint, read_all=False)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_corruption_without_metadata(checkpoint, name):
    (checkpoint / "checkpoint.json").unlink()
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert find_corruption(checkpoint) == f"{name} is not readable"


def test_publishing_replaces(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"damaged")
    write_files(unfinished_path(checkpoint), seed=1)
    publish(checkpoint, {})
    assert find_corruption(checkpoint) is None
    assert json.loads((checkpoint / "trainer_state.json").read_text())["seed"] == 1
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint-3"]


def test_removing_in_one_piece(checkpoint, monkeypatch):
    """Killed while it removes: what is left is a leftover, not half a checkpoint."""

    def killed(*args, **kwargs):
        if (checkpoint.parent / "checkpoint-3.removed.unfinished").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", killed)
        remove(checkpoint)
    assert not checkpoint.exists()
    (checkpoint.parent / "checkpoint-4").mkdir()
    remove_leftovers(checkpoint.parent)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint-4"]
