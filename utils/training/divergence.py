"""Detects training whose numbers are no longer finite, without making the CPU wait for the GPU."""

from collections.abc import Iterable

import torch

from utils.config.training_arguments import LMTrainingArguments
from utils.training.endings import diverged
from utils.training.signals import StopRequests


BAD_UPDATES = 3  # consecutive updates with NaN or infinite numbers that end the run
# float16 starts with loss scales that overflow on purpose: such updates are skipped, and the scale is halved.
BAD_UPDATES_FP16 = 25
DIVERGED = 1000  # a reason to stop, larger than any signal number


class DivergenceWatch:
    """Ends a run whose losses, gradients or weights are NaN or infinite, in all processes at the same update.

    Args:
        args: TrainingArguments.
        stop_requests: through which all processes agree.
    """

    def __init__(self, args: LMTrainingArguments, stop_requests: StopRequests):
        self.args = args
        self.stop_requests = stop_requests
        self._bad_updates = BadUpdates(args.device)

    def add(self, value: torch.Tensor | float) -> None:
        """Include a loss or a norm in this update."""
        self._bad_updates.add(value)

    def end_update(self, step: int, grad_norm: torch.Tensor | float | None, learning_rate: float) -> int:
        """End an update: exchange in one step, between all processes, what ends the run.

        Returns:
            Why the run is asked to stop (see StopRequests), or 0.

        Raises:
            EarlyEnd: the last BAD_UPDATES updates were not finite.
        """
        if grad_norm is not None:
            self._bad_updates.add(grad_norm)
        limit = BAD_UPDATES_FP16 if self.args.fp16 else BAD_UPDATES
        is_diverged = self._bad_updates.end_update() >= limit
        request = self.stop_requests.all_reduce_max(DIVERGED if is_diverged else self.stop_requests.requested())
        if request == DIVERGED:
            what = f"loss or gradients are NaN or infinite, {limit} updates in a row"
            raise diverged(self.args, step, what, learning_rate)
        return request

    def check_weights(self, model: torch.nn.Module, step: int, learning_rate: float) -> None:
        """Raises EarlyEnd if a trained weight is not finite. All processes call this together."""
        if self.stop_requests.all_reduce_max(int(not are_finite(model.parameters()))):
            raise diverged(self.args, step, "weights are NaN or infinite", learning_rate)


class BadUpdates:
    """Counts consecutive updates whose loss or gradient norm is NaN or infinite.

    The count is kept on the device. Reading it on a GPU would wait for all queued work, so it is copied
    asynchronously, and `end_update` returns the count of the previous update: it waits for that one only.
    """

    def __init__(self, device: torch.device):
        self._in_a_row = torch.zeros((), dtype=torch.int32, device=device)
        self._is_bad = torch.zeros((), dtype=torch.bool, device=device)
        self._last: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def add(self, value: torch.Tensor | float) -> None:
        """Include a loss or a norm in this update."""
        if hasattr(value, "full_tensor"):  # a DTensor, of a sharded model
            value = value.full_tensor()
        value = torch.as_tensor(value, device=self._is_bad.device)
        self._is_bad |= ~value.detach().isfinite().all()

    def end_update(self) -> int:
        """End an update: the number of consecutive bad ones, up to this one, or on a GPU up to the previous one."""
        self._in_a_row = (self._in_a_row + 1) * self._is_bad
        self._is_bad.zero_()
        if self._in_a_row.device.type != "cuda":
            return self.in_a_row()
        last = self._last
        copy = torch.empty((), dtype=torch.int32, pin_memory=True).copy_(self._in_a_row, non_blocking=True)
        self._last = (copy, torch.cuda.Event())
        self._last[1].record()
        if last is None:
            return 0
        last[1].synchronize()
        return int(last[0])

    def in_a_row(self) -> int:
        """The count up to the last update. Waits for the device."""
        return int(self._in_a_row)


def are_finite(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Whether all trained parameters are finite; of sharded parameters, the part of this process."""
    parts = (
        parameter.to_local() if hasattr(parameter, "to_local") else parameter
        for parameter in parameters
        if parameter.requires_grad
    )
    checks = [part.detach().isfinite().all() for part in parts]
    return not checks or bool(torch.stack(checks).all())
