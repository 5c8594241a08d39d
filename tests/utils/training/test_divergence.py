"""Detecting training whose numbers are not finite."""

import math

import pytest
import torch

from utils.training.divergence import BadUpdates, are_finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_updates_in_a_row_are_counted(bad):
    watch = BadUpdates(torch.device("cpu"))
    counts = []
    for losses in ([1.0, 2.0], [bad, 2.0], [1.0, bad], [1.0, 1.0], [1.0, bad], [bad, bad], [3.0, bad]):
        for loss in losses:
            watch.add(torch.tensor(loss))
        counts.append(watch.end_update())
    assert counts == [0, 1, 2, 0, 1, 2, 3]
    assert watch.in_a_row() == 3


def test_norm_as_a_number():
    watch = BadUpdates(torch.device("cpu"))
    watch.add(math.inf)
    assert watch.end_update() == 1


def test_weights():
    layer = torch.nn.Linear(3, 3)
    assert are_finite(layer.parameters())
    layer.bias.data[1] = math.nan
    assert not are_finite(layer.parameters())
    layer.bias.requires_grad = False  # frozen: not checked
    assert are_finite(layer.parameters())
    assert are_finite([])
