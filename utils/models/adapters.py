"""Adapters of the `adapters` library: add a new one to a model, or load a saved one."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from utils.config.adapter_arguments import LANGUAGE_FOLDER, MODEL_WEIGHTS, AdapterArguments, safe_name
from utils.config.data_arguments import DataArguments
from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.models.adapter_checks import parse_adapter_config
from utils.models.xlnet_adapters import init_xlnet


logger = logging.getLogger(__name__)


@dataclass
class Adapter:
    """An adapter in a model.

    Attributes:
        name: its name.
        language: the name of the language adapter below it, if any.
        base: the checkpoint it was added to; None for a model from scratch, which is saved with the adapter.
        base_weights: names of the model's tensors without adapters, as in its state dict.
        saved_weights: names of the model's own parameters that are saved with the adapter.
    """

    name: str
    language: str | None
    base: str | None
    base_weights: set[str]
    saved_weights: list[str]


def add_adapter(
    model: PreTrainedModel,
    new_weights: list[str],
    adapter_args: AdapterArguments,
    adapter_folders: dict[str, str],
    model_args: ModelArguments,
    data_args: DataArguments,
) -> Adapter | None:
    """Add or load the adapter that the flags specify, and freeze all other parameters of the model.

    The model keeps its own head. These parameters of the model are trained and saved along with the adapter: a head
    that the checkpoint does not have, and with `--train_embeddings` the embeddings. Embeddings that were resized are
    saved even if they are not trained.

    Args:
        new_weights: names of the parameters that the checkpoint does not have, from `load_model`.
        adapter_folders: the folders of the adapters to load, from `check_adapter_arguments`.

    Returns:
        The adapter; None without `--train_adapter` and `--load_adapter`.

    Raises:
        UsageError: an adapter that the library cannot add to this model, or a saved one that does not fit it.
    """
    if not adapter_args.train_adapter and not adapter_args.load_adapter:
        return None
    import adapters

    base_weights = set(model.state_dict())
    base_parameters = dict(model.named_parameters())
    new_parameters = [base_parameters[name] for name in new_weights if name in base_parameters]
    try:
        (init_xlnet if model.config.model_type == "xlnet" else adapters.init)(model)
    except ValueError as error:
        raise UsageError(
            f"--train_adapter: the adapters library does not support {model.config.model_type}"
        ) from error

    language = _load_language_adapter(model, adapter_args, adapter_folders)
    if adapter_args.load_adapter:
        flag = f"--load_adapter {adapter_args.load_adapter}"
        name = _load(model, adapter_folders["load_adapter"], "load_adapter", load_as=adapter_args.adapter_name)
    else:
        flag = f"--adapter_config {adapter_args.adapter_config}"
        name = adapter_args.adapter_name or safe_name(_corpus_name(data_args))
        _add_new(model, name, adapter_args.adapter_config)
    for each in filter(None, (language, name)):
        model.adapter_to(each, dtype=model.dtype)

    setup = adapters.Stack(language, name) if language else name
    with adapters.AdapterSetup(setup):  # without it, the library would warn on the way that no adapter is active
        # train_adapter makes the adapter trainable and freezes the base model, but not the head.
        model.train_adapter(name)
        model.set_active_adapters(setup)
    adapter_ids = _ids(_trainable(model).values()) - _ids(base_parameters.values())
    embedding_modules = filter(None, (model.get_input_embeddings(), model.get_output_embeddings()))
    embeddings = [parameter for module in embedding_modules for parameter in module.parameters()]
    saved_ids = _ids(new_parameters)
    if adapter_args.train_embeddings:
        saved_ids |= _ids(embeddings)
    trained_ids = adapter_ids | saved_ids
    if not adapter_args.train_embeddings and id(embeddings[0]) in saved_ids:
        trained_ids -= _ids(embeddings)
        logger.warning("adapter: the tokenizer has tokens that the model lacks; --train_embeddings trains them")
    for parameter in model.parameters():
        parameter.requires_grad_(adapter_args.train_adapter and id(parameter) in trained_ids)
    saved_weights = [key for key, parameter in model.named_parameters() if id(parameter) in saved_ids]

    if has_prefixes(model) and model.config._attn_implementation != "eager":
        # The library's SDPA attention aligns the causal mask with the prefixes, which gives wrong results.
        model.set_attn_implementation("eager")
        logger.info("adapter: using eager attention, which prefixes require")
    _try_forward(model, flag)
    if adapter_args.load_adapter:
        load_weight_file(model, Path(adapter_folders["load_adapter"]) / MODEL_WEIGHTS)
    num_trained = sum(parameter.numel() for parameter in _trainable(model).values())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        'adapter "%s": training %s of %s parameters (%.3g%%)',
        name, f"{num_trained:,}", f"{num_parameters:,}", 100 * num_trained / num_parameters,
    )  # fmt: skip
    return Adapter(name, language, model_args.model_name_or_path, base_weights, saved_weights)


def load_weight_file(model: PreTrainedModel, path: Path) -> None:
    """Load a file with some of the model's weights, if there is one.

    Raises:
        UsageError: a damaged file, or weights that the model does not have or has in another shape.
    """
    if not path.is_file():
        return
    try:
        unexpected = model.load_state_dict(load_file(path), strict=False).unexpected_keys
    except (RuntimeError, OSError) as error:
        raise UsageError(f"{path} does not fit the model: {error}") from error
    if unexpected:
        raise UsageError(f"{path} does not fit the model, which has no {', '.join(unexpected[:3])}")


def has_prefixes(model: nn.Module) -> bool:
    """Whether prefix tuning was added to the model."""
    return any(getattr(module, "prefix_tunings", None) for module in model.modules())


class GradientCheck(TrainerCallback):
    """Ends training after the first backward pass if a trainable parameter has no gradient."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == 0:
            missing = [name for name, parameter in _trainable(model).items() if parameter.grad is None]
            if missing:
                raise UsageError(
                    f"--train_adapter: no gradient reaches {', '.join(missing[:5])}; choose another --adapter_config"
                )


def _load_language_adapter(
    model: PreTrainedModel, adapter_args: AdapterArguments, adapter_folders: dict[str, str]
) -> str | None:
    """Load the language adapter of the flags, or else the one that the loaded adapter was trained with, if any."""
    if adapter_args.load_lang_adapter:
        return _load(model, adapter_folders["load_lang_adapter"], "load_lang_adapter")
    if adapter_args.load_adapter:
        folder = Path(adapter_folders["load_adapter"]) / LANGUAGE_FOLDER
        if folder.is_dir():
            return _load(model, str(folder), "load_adapter")
    return None


def _load(model: PreTrainedModel, name: str, flag: str, load_as: str | None = None) -> str:
    try:
        return model.load_adapter(name, load_as=load_as, with_head=False, use_safetensors=True)
    except Exception as error:  # of many types: name, network, files, shapes
        raise UsageError(f"--{flag} {name}: cannot be loaded into this model: {error}") from error


def _add_new(model: PreTrainedModel, name: str, config_text: str) -> None:
    config = parse_adapter_config(config_text)
    if model.config.model_type == "xlnet":
        supported = "seq_bn, double_seq_bn, par_bn and their settings"
    else:
        supported = "seq_bn, double_seq_bn, par_bn, lora, ia3, loreft and prefix_tuning"
    if not model.base_model.supports_adapter(config):
        raise UsageError(
            f"--adapter_config {config_text} does not work with {model.config.model_type}; choose one of {supported}"
        )
    try:
        model.add_adapter(name, config=config)
    except Exception as error:  # each adapter method raises its own types for sizes that do not fit
        raise UsageError(f"--adapter_config {config_text}: cannot be added to this model: {error}") from error


def _try_forward(model: PreTrainedModel, flag: str) -> None:
    """Run the model on four tokens, so that combinations the library does not support fail now and not in training."""
    was_training = model.training
    input_ids = torch.zeros((1, 4), dtype=torch.int64, device=model.device)
    try:
        with torch.no_grad():
            model.eval()(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
    except Exception as error:  # of many types: the library does not check what it supports
        raise UsageError(f"{flag}: the adapters library does not support it for {model.config.model_type}") from error
    model.train(was_training)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _ids(parameters) -> set[int]:
    return {id(parameter) for parameter in parameters}


def _corpus_name(data_args: DataArguments) -> str:
    """The name of the dataset, or of the first text file without its extensions."""
    if data_args.dataset_name:
        return data_args.dataset_name
    if data_args.dataset_path:
        return Path(data_args.dataset_path).name
    files = data_args.train_file or data_args.validation_file
    return re.sub(r"\.(txt|csv|tsv|json|jsonl|parquet)(\.\w+)?$", "", Path(files[0]).name)
