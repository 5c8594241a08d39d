"""Examples for the collators, and what a batch of PermutationLMCollator says about its targets."""

import numpy as np
import torch


def make_examples(tokenizer, lengths: list[int], epoch: int = 0, words: bool = False) -> list[dict]:
    """Random tokens that are not special, between [CLS] and [SEP]; with `words`, also words of a few tokens."""
    generator = np.random.default_rng(0)
    normal = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    examples = []
    for index, length in enumerate(lengths):
        ids = [tokenizer.cls_token_id, *generator.choice(normal, length - 2), tokenizer.sep_token_id]
        examples.append({"input_ids": np.array(ids, dtype=np.uint16), "index": index, "epoch": epoch})
        if words:
            starts = generator.random(length) < 0.4
            starts[[0, 1, -1]] = True
            examples[-1]["word_starts"] = starts.astype(np.uint8)
    return examples


def targets_of(batch: dict[str, torch.Tensor], row: int) -> list[int]:
    """The positions of an example's targets."""
    targets, labels = batch["targets"][row], batch["labels"][row]
    assert torch.equal(targets >= 0, labels != -100)
    assert torch.equal(batch["order"][row] >= 0, torch.isin(torch.arange(batch["order"].size(1)), targets))
    return targets[targets >= 0].tolist()


def is_hidden(batch: dict[str, torch.Tensor], row: int) -> torch.Tensor:
    """The definition in plain Python: bool (length, length), whether token j is hidden from token i."""
    order = batch["order"][row].tolist()
    return torch.tensor([[j >= 0 and (i < 0 or i <= j) for j in order] for i in order])
