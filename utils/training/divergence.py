"""Notices a training whose numbers are no longer finite, without making the GPU wait."""

from collections.abc import Iterable

import torch


class DivergenceWatch:
    """Counts updates in a row whose loss or gradient norm is NaN or infinite.

    The count is kept on the device. On a GPU, reading it would wait for all work that is queued, so it is copied
    beside that work, and what `end_update` returns is the count of the update before: it waits only for that one.
    """

    def __init__(self, device: torch.device):
        self._in_a_row = torch.zeros((), dtype=torch.int32, device=device)
        self._is_bad = torch.zeros((), dtype=torch.bool, device=device)
        self._last: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def add(self, value: torch.Tensor | float) -> None:
        """Take a loss or a norm into account."""
        if hasattr(value, "full_tensor"):  # a DTensor, of a sharded model
            value = value.full_tensor()
        value = torch.as_tensor(value, device=self._is_bad.device)
        self._is_bad |= ~value.detach().isfinite().all()

    def end_update(self) -> int:
        """Close an update: the number of bad ones in a row, up to this one, or on a GPU up to the one before."""
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
    """Whether no parameter that is trained has a NaN or infinite element (of sharded ones, in this process's part)."""
    parts = (
        parameter.to_local() if hasattr(parameter, "to_local") else parameter
        for parameter in parameters
        if parameter.requires_grad
    )
    checks = [part.detach().isfinite().all() for part in parts]
    return not checks or bool(torch.stack(checks).all())
