"""The range of each number among the flags of transformers. Outside of it, a run would fail late, or do otherwise."""

import math
from dataclasses import fields

from utils.errors import UsageError


ABOVE_0 = math.ulp(0)  # the least number that is positive
BELOW_1 = 1 - math.ulp(0.5)  # the greatest one below 1

# From each flag to the least and the most that it may be. NaN is never in a range, and neither is infinity.
RANGES = {
    "adam_beta1": (0, BELOW_1),
    "adam_beta2": (0, BELOW_1),
    "adam_epsilon": (ABOVE_0, math.inf),
    "data_seed": (0, 2**64 - 1),
    "dataloader_num_workers": (0, math.inf),
    "dataloader_prefetch_factor": (1, math.inf),
    "ddp_bucket_cap_mb": (1, math.inf),
    "ddp_timeout": (1, math.inf),
    "eval_delay": (0, math.inf),
    "eval_steps": (ABOVE_0, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "label_smoothing_factor": (0, BELOW_1),
    "learning_rate": (0, math.inf),
    "logging_steps": (ABOVE_0, math.inf),
    "max_grad_norm": (0, math.inf),
    "max_train_hours": (ABOVE_0, math.inf),
    "neftune_noise_alpha": (0, math.inf),
    "num_train_epochs": (ABOVE_0, math.inf),
    "per_device_eval_batch_size": (1, math.inf),
    "per_device_train_batch_size": (1, math.inf),
    "save_steps": (ABOVE_0, math.inf),
    "save_total_limit": (0, math.inf),
    "seed": (0, 2**32 - 1),
    "torch_empty_cache_steps": (1, math.inf),
    "warmup_ratio": (0, 1),
    "warmup_steps": (0, math.inf),
    "weight_decay": (0, math.inf),
}


def check_ranges(arguments) -> None:
    """Raise UsageError for a number out of its range.

    Args:
        arguments: a dataclass, which need not have all flags of the table.
    """
    if arguments.max_steps != -1 and arguments.max_steps < 1:
        raise UsageError(f"--max_steps {arguments.max_steps}: give 1 or more, or leave it out")
    for name in RANGES.keys() & {flag.name for flag in fields(arguments)}:
        value, (least, most) = getattr(arguments, name), RANGES[name]
        if isinstance(value, (int, float)) and not (least <= value <= most and math.isfinite(value)):
            raise UsageError(f"--{name} {value}: {_describe(least, most)}")


def _describe(least: float, most: float) -> str:
    if least == 0 and most == BELOW_1:
        return "give a number from 0 to 1, but not 1"
    low = "above 0" if least == ABOVE_0 else f"{least} or more"
    return f"give a number from {least} to {most}" if most < math.inf else f"give a number {low}"
