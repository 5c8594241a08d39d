"""Models with random weights, as this suite loads them and as transformers builds them, with or without an adapter."""

import copy
from collections.abc import Callable

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.models.adapters import Adapter, add_adapter
from utils.models.loading import load_model


def model_builders(
    auto_class: type, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> dict[str, Callable[[], PreTrainedModel]]:
    """Functions that build "ours" with `load_model`, and the "baseline"; each call gives the same random weights."""
    set_seed(seed)
    ours, _ = load_model(auto_class, copy.deepcopy(config), _model_arguments(config.model_type), tokenizer)

    def baseline() -> PreTrainedModel:
        model = auto_class.from_config(copy.deepcopy(ours.config))
        model.load_state_dict(ours.state_dict())
        return model

    return {"ours": lambda: copy.deepcopy(ours), "baseline": baseline}


def add_our_adapter(model: PreTrainedModel, adapter_config: str | None, seed: int) -> Adapter | None:
    """Add an adapter as the scripts do with `--train_adapter`; without `adapter_config`, none."""
    if adapter_config is None:
        return None
    set_seed(seed)
    adapter_args = AdapterArguments(train_adapter=True, adapter_config=adapter_config, adapter_name="benchmark")
    model_args = _model_arguments(model.config.model_type)
    return add_adapter(model, [], adapter_args, {}, model_args, DataArguments(dataset_name="none"))


def add_baseline_adapter(model: PreTrainedModel, adapter_config: str | None, seed: int) -> PreTrainedModel:
    """Add an adapter with the same weights as the library's documentation does, and freeze the head as ours is."""
    if adapter_config is None:
        return model
    import adapters  # not installed with transformers 5

    set_seed(seed)
    adapters.init(model)
    model.add_adapter("benchmark", config=adapter_config)
    model.train_adapter("benchmark")
    for name, parameter in model.named_parameters():
        if not name.startswith(model.base_model_prefix):
            parameter.requires_grad_(False)
    return model


def _model_arguments(model_type: str) -> ModelArguments:
    return ModelArguments(model_type=model_type, tokenizer_name="numbered")
