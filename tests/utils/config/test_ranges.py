"""Numbers out of range are refused when the flags are read."""

import dataclasses
import math

import pytest

from utils.config.ranges import RANGES
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError


FLAGS = {flag.name: flag for flag in dataclasses.fields(LMTrainingArguments)}


@pytest.mark.parametrize("name", RANGES)
def test_out_of_range(name):
    """Below, above, not a number and infinite, each with the flag and the value in the message."""
    least, most = RANGES[name]
    wrong = [least - 1, math.nan, math.inf, -math.inf] + ([most + 1] if most < math.inf else [])
    for value in wrong:
        with pytest.raises(UsageError, match=rf"--{name} {value}: give a number "):
            LMTrainingArguments(report_to=[], **{name: value})


@pytest.mark.parametrize("name", RANGES)
def test_defaults_are_in_range(name):
    default = FLAGS[name].default
    assert default is None or RANGES[name][0] <= default <= RANGES[name][1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_steps": -5}, "--max_steps -5: give 1 or more"),
        ({"max_steps": 0}, "--max_steps 0: give 1 or more"),
        ({"label_smoothing_factor": 1.0}, "--label_smoothing_factor 1.0: give a number from 0 to 1, but not 1"),
        ({"learning_rate": -1e-3}, "--learning_rate -0.001: give a number 0 or more"),
        ({"save_steps": 0}, "--save_steps 0: give a number above 0"),
        ({"warmup_ratio": 1.5}, "--warmup_ratio 1.5: give a number from 0 to 1"),
        ({"save_strategy": "best"}, "--save_strategy best saves after an evaluation"),
    ],
)
def test_messages(flags, message):
    with pytest.raises(UsageError) as error:
        LMTrainingArguments(report_to=[], **flags)
    assert message in str(error.value)


def test_the_best_is_the_lowest_loss():
    training_args = LMTrainingArguments(report_to=[], save_strategy="best", eval_strategy="epoch")
    assert training_args.metric_for_best_model == "loss" and training_args.greater_is_better is False


def test_limits_are_allowed():
    LMTrainingArguments(report_to=[], learning_rate=0, weight_decay=0, warmup_ratio=1, seed=2**32 - 1, max_steps=1)
