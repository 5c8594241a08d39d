"""Models whose weights are shared out among processes (FSDP): exact sums, and whole weights to save."""

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy

from utils.command_line import UsageError


def keep_sums_exact(accelerator: Accelerator) -> None:
    """Under FSDP, add gradients up in float32, and leave alone what a model returns.

    In mixed precision accelerate would add them up in bfloat16, and under FSDP2 also round each returned loss to
    bfloat16, which is a sum over a whole batch here. The layers still compute in bfloat16, in evaluation too.

    Raises:
        UsageError: tensor, context or sequence parallelism, where the gradients' mean is one over fewer processes.
    """
    config = getattr(accelerator, "parallelism_config", None)
    if config is not None and config.non_data_parallel_size > 1:
        raise UsageError("parallelism_config: this suite's sums are right for dp_replicate_size and dp_shard_size alone")
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or plugin.mixed_precision_policy is None:
        return
    dtype = plugin.mixed_precision_policy.param_dtype
    if plugin.fsdp_version == 2:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    else:
        plugin.mixed_precision_policy = MixedPrecision(
            param_dtype=dtype, reduce_dtype=torch.float32, buffer_dtype=torch.float32
        )


def whole_weights(accelerator: Accelerator, model: nn.Module, names: set[str]) -> dict[str, torch.Tensor]:
    """The weights of a sharded model by name, on the CPU; all processes call this, the first one gets them.

    Args:
        names: those to keep; a weight that several modules share has several names.
    """
    weights = accelerator.get_state_dict(model)
    return {name: weight for name, weight in weights.items() if name in names}


def weight_names(model: nn.Module) -> set[str]:
    """The names of a model's weights as its state_dict has them, one for each."""
    shared = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return set(model.state_dict()) - shared | {name for name, _ in model.named_parameters()}


@contextlib.contextmanager
def with_weights(model: nn.Module, weights: dict[str, torch.Tensor] | None) -> Iterator[None]:
    """Within the block, `model.state_dict()` returns `weights`, for code that saves what it finds there."""
    if weights is None:
        yield
        return
    model.state_dict = lambda *args, **kwargs: dict(weights)
    try:
        yield
    finally:
        del model.state_dict
