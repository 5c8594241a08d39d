"""Models whose weights are sharded over processes (FSDP): exact sums, and full weights for saving."""

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
    """Adapt accelerate's FSDP settings to our models and summed losses; does nothing without FSDP.

    - In mixed precision, gradients are reduced in float32 and outputs keep their dtype. By default accelerate would
      reduce in bfloat16, and FSDP2 would also round each returned loss, a sum over a whole batch, to bfloat16. The
      layers still compute in bfloat16, in evaluation too.
    - Each layer of the model's stack is one FSDP unit, unless the launcher names a class. The names in a model's
      `_no_split_modules` may not exist in it, or be embeddings that share weights with the head.
    - If the head shares more weights than its matrix (BERT: a bias), everything outside the layers is one unit under
      FSDP2, which refuses weights that belong to two units.

    Raises:
        UsageError: tensor, context or sequence parallelism, which average gradients over fewer processes.
    """
    config = getattr(accelerator, "parallelism_config", None)
    if config is not None and config.non_data_parallel_size > 1:
        raise UsageError(
            "parallelism_config: losses are exact only with dp_replicate_size and dp_shard_size; leave the others out"
        )
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
        accelerator.prepare = functools.partial(_prepare_without_embeddings_and_head, accelerator.prepare, model)


def _prepare_without_embeddings_and_head(prepare: Callable, model: PreTrainedModel, *args, **kwargs):
    """Call `accelerator.prepare` with the embeddings and the head hidden, so that they do not become units."""
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    try:
        return prepare(*args, **kwargs)
    finally:
        del model.get_input_embeddings, model.get_output_embeddings


def prepare_for_evaluation(accelerator: Accelerator, model: PreTrainedModel) -> nn.Module:
    """`accelerator.prepare` for a model that is only evaluated."""
    if not accelerator.is_fsdp2:
        return accelerator.prepare(model)
    # FSDP2 needs an optimizer besides the model; this one has no state.
    return accelerator.prepare(model, torch.optim.SGD(model.parameters()))[0]


def layer_classes(model: nn.Module) -> list[str]:
    """The class names in the model's largest list of modules, its stack of layers."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    largest = max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))
    return sorted({type(layer).__name__ for layer in largest})


def gather_full_state_dict(accelerator: Accelerator, model: nn.Module, names: set[str]) -> dict[str, torch.Tensor]:
    """The weights of a sharded model by name, on the CPU. All processes call this; the first one gets them.

    Args:
        names: the weights to keep; a weight that several modules share has several names.
    """
    weights = accelerator.get_state_dict(model)
    return {name: weight for name, weight in weights.items() if name in names}


def weight_names(model: nn.Module) -> set[str]:
    """The names of a model's weights in its state_dict, one name per weight."""
    shared = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return set(model.state_dict()) - shared | {name for name, _ in model.named_parameters()}


@contextlib.contextmanager
def state_dict_replaced(model: nn.Module, weights: dict[str, torch.Tensor] | None) -> Iterator[None]:
    """Within the block, `model.state_dict()` returns `weights`, for code that saves the state_dict."""
    if weights is None:
        yield
        return
    model.state_dict = lambda *args, **kwargs: dict(weights)
    try:
        yield
    finally:
        del model.state_dict
