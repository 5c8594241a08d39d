"""Models whose weights are shared out among processes (FSDP): exact sums, and whole weights to save."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy
from transformers import PreTrainedModel

from utils.errors import UsageError


def prepare_sharding(accelerator: Accelerator, model: PreTrainedModel) -> None:
    """Make accelerate's FSDP fit our models and sums; does nothing without FSDP.

    - In mixed precision, gradients are added up in float32, and what a model returns is left alone: accelerate would
      add up in bfloat16, and under FSDP2 also round each returned loss to bfloat16, which is a sum over a whole batch
      here. The layers still compute in bfloat16, in evaluation too.
    - A unit that is gathered at once is a layer of the model's stack, unless the launcher names a class. The names in
      a model's `_no_split_modules` may be missing in it, or be embeddings that share weights with the head.
    - Where the head shares more with other modules than its matrix with the embeddings (BERT: a bias), all that is no
      layer is one unit under FSDP2, which refuses weights that belong to two.

    Raises:
        UsageError: tensor, context or sequence parallelism, where the gradients' mean is one over fewer processes.
    """
    config = getattr(accelerator, "parallelism_config", None)
    if config is not None and config.non_data_parallel_size > 1:
        raise UsageError("parallelism_config: losses are exact here with dp_replicate_size and dp_shard_size alone")
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layer_classes(model)
    if plugin.mixed_precision_policy is not None:
        dtypes = {"param_dtype": plugin.mixed_precision_policy.param_dtype, "reduce_dtype": torch.float32}
        if plugin.fsdp_version == 2:
            plugin.mixed_precision_policy = MixedPrecisionPolicy(**dtypes)
        else:
            plugin.mixed_precision_policy = MixedPrecision(**dtypes, buffer_dtype=torch.float32)
    shared = {name for name, _ in model.named_parameters(remove_duplicate=False)} - weight_names(model)
    if plugin.fsdp_version == 2 and len(shared) > 1:
        accelerator.prepare = functools.partial(_prepare_without_ends, accelerator.prepare, model)


def _prepare_without_ends(prepare: Callable, model: PreTrainedModel, *args, **kwargs):
    """Call `accelerator.prepare` while the model does not tell its embeddings and its head, to make units of them."""
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    try:
        return prepare(*args, **kwargs)
    finally:
        del model.get_input_embeddings, model.get_output_embeddings


def prepare_alone(accelerator: Accelerator, model: PreTrainedModel) -> nn.Module:
    """`accelerator.prepare` of a model that is not trained."""
    if not accelerator.is_fsdp2:
        return accelerator.prepare(model)
    # FSDP2 wants an optimizer beside the model; this one has no state.
    return accelerator.prepare(model, torch.optim.SGD(model.parameters()))[0]


def layer_classes(model: nn.Module) -> list[str]:
    """The names of the classes in the model's largest list of modules, its stack of layers."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    largest = max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))
    return sorted({type(layer).__name__ for layer in largest})


def gather_full_state_dict(accelerator: Accelerator, model: nn.Module, names: set[str]) -> dict[str, torch.Tensor]:
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
