"""What an evaluation sums up over its targets."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from utils.models.linear_cross_entropy import cached_rows


def score(logits: Tensor, labels: Tensor, return_predictions: bool = False) -> dict[str, Tensor]:
    """`sum_scores` of logits (..., vocabulary) of any float type, and labels (...)."""
    rows, targets = logits.reshape(-1, logits.size(-1)), labels.reshape(-1)
    chunks = ((rows[part].float(), targets[part]) for part in cached_rows(rows))
    return sum_scores(chunks, logits.device, return_predictions)


def sum_scores(
    chunks: Iterable[tuple[Tensor, Tensor]], device: torch.device, return_predictions: bool = False
) -> dict[str, Tensor]:
    """Sum the negative log-likelihood and count correct predictions, chunk by chunk.

    Args:
        chunks: logits, float32 (rows, vocabulary), and labels, int64 (rows,), -100 where there is no target.

    Returns:
        loss: float64 scalar in nats (float32 on MPS, which has no float64).
        num_correct: int64 scalar, targets with the highest logit (the first one if several logits are equal).
        num_targets: int64 scalar.
        predictions, references: int64 (targets,), the predicted and the true tokens; with `return_predictions` only.
    """
    float64 = torch.float32 if device.type == "mps" else torch.float64
    loss = torch.zeros((), dtype=float64, device=device)
    num_correct, num_targets = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
    predictions, references = [], []
    for logits, labels in chunks:
        is_target = labels != -100
        loss += cross_entropy(logits, labels, reduction="none").sum(dtype=float64)
        num_targets += is_target.sum()
        if return_predictions or device.type != "cpu":
            best = logits.argmax(dim=1)
            is_best = is_target & (best == labels)
        else:  # argmax is slow on a CPU: it runs only where the target's logit is the highest, in case others equal it
            at_target = logits.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
            is_best = is_target & (at_target == logits.amax(dim=1))
            first_best = torch.from_numpy(logits[is_best].detach().numpy().argmax(axis=1))  # 4 times torch's speed
            is_best[is_best.clone()] = first_best == labels[is_best]
        num_correct += is_best.sum()
        if return_predictions:
            predictions.append(best[is_target])
            references.append(labels[is_target])
    scores = {"loss": loss, "num_correct": num_correct, "num_targets": num_targets}
    if return_predictions:
        empty = num_targets.new_empty(0)
        scores |= {"predictions": torch.cat([empty, *predictions]), "references": torch.cat([empty, *references])}
    return scores
