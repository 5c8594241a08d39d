"""Exact sums over a training run, and the figures made of them."""

import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from transformers.trainer_callback import ExportableState, TrainerCallback, TrainerState

from utils.training.dataloaders import FILLERS
from utils.training.evaluation import count_tokens, named_losses
from utils.training.utilization import ModelFlops


class TrainingTotals(TrainerCallback, ExportableState):
    """Exact sums over the whole training run: over all processes, and over all sessions of a resumed run.

    It is a callback because transformers saves the state of such callbacks in a checkpoint's trainer_state.json.

    Args:
        nll: for each loss, the negative log-likelihood in nats, summed over its targets.
        targets: for each loss, the number of its targets.
        samples: examples trained on, counted again in each epoch. None after resuming from a checkpoint written
            before they were counted: then they are not known.
        tokens: tokens that the model read, without padding.
        seconds: time spent training, without evaluation and saving.
        balance: the loss that balances a mixture of experts, summed over the targets of the first loss; None if the
            model has none.
    """

    def __init__(
        self,
        nll: Sequence[float] = (),
        targets: Sequence[int] = (),
        samples: int | None = None,
        tokens: int = 0,
        seconds: float = 0.0,
        balance: float | None = None,
    ):
        self.nll = list(nll)
        self.targets = list(targets)
        self.samples = samples
        self.tokens = tokens
        self.seconds = seconds
        self.balance = balance

    @classmethod
    def zeros(cls, num_losses: int) -> "TrainingTotals":
        return cls([0.0] * num_losses, [0] * num_losses, samples=0)

    def means(self, since: "TrainingTotals") -> list[float]:
        """Each loss in nats per target, over what was added after `since`."""
        sums = zip(self.nll, since.nll, self.targets, since.targets, strict=True)
        return [(nll - old_nll) / max(targets - old_targets, 1) for nll, old_nll, targets, old_targets in sums]

    def mean_balance(self, since: "TrainingTotals") -> float | None:
        """The loss that balances the experts, over what was added after `since`."""
        if self.balance is None:
            return None
        return (self.balance - (since.balance or 0.0)) / max(self.targets[0] - since.targets[0], 1)

    def copy(self) -> "TrainingTotals":
        return TrainingTotals(**vars(self))

    def replace(self, other: "TrainingTotals") -> None:
        """Take over the sums of `other`, in place: the callback handler keeps this object."""
        vars(self).update(vars(other.copy()))

    def state(self) -> dict:
        return {"args": vars(self).copy(), "attributes": {}}


class TrainingCounter:
    """Counts losses, targets, examples, tokens and time of a training run, exactly.

    The sums of this process are kept on the device and are added to `totals`, with those of the other processes, only
    when a figure is asked for.

    Args:
        losses: the name of each loss of the model, with the key of its labels in a batch.
        accelerator: sums over the processes.
    """

    def __init__(self, losses: dict[str, str], accelerator: Accelerator):
        self.losses = losses
        self.accelerator = accelerator
        self.totals = TrainingTotals.zeros(len(losses))
        self.flops: ModelFlops | None = None  # to report the utilization of the devices, where that is known
        self.reset()

    def reset(self, totals: TrainingTotals | None = None) -> None:
        """Start from zero, or from the totals of a checkpoint."""
        self.totals.replace(totals or TrainingTotals.zeros(len(self.losses)))
        self._at_last_log = self.totals.copy()
        device = self.accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # Of this process and not yet in the totals: nll and targets of each loss, examples, tokens, and balance.
        self._sums = torch.zeros(2 * len(self.losses) + 3, dtype=dtype, device=device)
        self._has_balance = False
        self._clock: float | None = None  # start of the training time not yet in the totals; None while not training

    def count(self, micro_batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Count the targets, examples and tokens of an update, and remove the number of fillers.

        Returns:
            The targets over all processes, int64 of shape (losses,).
        """
        if self._clock is None:
            self._clock = time.monotonic()
        labels = self.losses.values()
        targets = torch.stack([sum(batch[name].ne(-100).sum() for batch in micro_batches) for name in labels])
        self._sums[len(self.losses) : -3] += targets
        for batch in micro_batches:
            num_examples = len(batch["input_ids"]) - batch.pop(FILLERS, 0)
            self._sums[-3] += num_examples
            self._sums[-2] += count_tokens({name: values[:num_examples] for name, values in batch.items()})
        return self.accelerator.reduce(targets, "sum")

    def add_losses(self, nll: torch.Tensor, balance: torch.Tensor | None = None) -> None:
        """Count the summed losses of a micro-batch, in nats, of shape () or (losses,), and that of its experts."""
        self._sums[: len(self.losses)] += nll.detach()
        if balance is not None:
            self._has_balance = True
            self._sums[-1] += balance.detach()

    def update(self) -> None:
        """Bring `totals` up to date. All processes call this together."""
        *sums, samples, tokens, balance = self.accelerator.reduce(self._sums, "sum").tolist()
        self._sums = torch.zeros_like(self._sums)
        for loss in range(len(self.losses)):
            self.totals.nll[loss] += sums[loss]
            self.totals.targets[loss] += round(sums[len(self.losses) + loss])
        if self.totals.samples is not None:
            self.totals.samples += round(samples)
        self.totals.tokens += round(tokens)
        if self._has_balance:
            self.totals.balance = (self.totals.balance or 0.0) + balance
        if self._clock is not None:
            now = time.monotonic()
            self.totals.seconds += now - self._clock
            self._clock = now

    def pause(self) -> None:
        """Do not count the time from now to the next batch as training time."""
        if self._clock is not None:
            self.totals.seconds += time.monotonic() - self._clock
            self._clock = None

    def log(self, grad_norm: torch.Tensor | float | None, learning_rate: float, state: TrainerState) -> dict:
        """The figures since the last log. All processes call this together."""
        self.update()
        totals, since = self.totals, self._at_last_log
        self._at_last_log = totals.copy()
        means = totals.means(since)
        logs = {"loss": sum(means)} | _named_balance("aux_loss", totals.mean_balance(since))
        if grad_norm is not None:
            logs["grad_norm"] = float(grad_norm)
        logs["learning_rate"] = learning_rate
        logs |= named_losses("train_{}_loss", list(self.losses), means)
        tokens, seconds = totals.tokens - since.tokens, totals.seconds - since.seconds
        logs["tokens_per_second"] = round(tokens / seconds, 1)
        if self.flops is not None:
            logs["mfu"] = round(self.flops.utilization(tokens, totals.targets[0] - since.targets[0], seconds), 4)
        steps_left = state.max_steps - state.global_step
        logs["eta_seconds"] = round(totals.seconds / state.global_step * steps_left, 1)
        return logs

    def summary(self, state: TrainerState) -> dict[str, float]:
        """The figures of the whole run. All processes call this together."""
        self.update()
        totals = self.totals
        start = TrainingTotals.zeros(len(self.losses))
        means = totals.means(start)
        metrics = {"train_loss": sum(means)} | named_losses("train_{}_loss", list(self.losses), means)
        metrics |= _named_balance("train_aux_loss", totals.mean_balance(start))
        logged = [log["loss"] for log in state.log_history if "loss" in log]
        if logged:
            metrics["final_train_loss"] = logged[-1]
        if totals.samples is not None:
            metrics["train_samples"] = totals.samples
        metrics["train_tokens"] = totals.tokens
        metrics["train_runtime"] = round(totals.seconds, 3)
        seconds = max(totals.seconds, 1e-9)
        metrics["train_tokens_per_second"] = round(totals.tokens / seconds, 1)
        if self.flops is not None:
            metrics["train_mfu"] = round(self.flops.utilization(totals.tokens, totals.targets[0], seconds), 4)
        if state.best_global_step:
            metrics["best_step"] = state.best_global_step
        metrics["epoch"] = state.epoch
        return metrics


def _named_balance(name: str, balance: float | None) -> dict[str, float]:
    return {} if balance is None else {name: balance}
