"""The model, from a checkpoint or from scratch, with embeddings for all tokens of the tokenizer."""

import inspect
import logging
import pickle

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.hub.errors import explain_hub_error
from utils.models.config import fit_config_to_tokenizer, hub_options
from utils.models.fast_gelu import use_fast_gelu


logger = logging.getLogger(__name__)


def load_model(
    auto_class: type, config: PretrainedConfig, model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, list[str]]:
    """Load `--model_name_or_path`, or build the model from `config` with random weights, to match the tokenizer.

    From scratch, vocabulary size and special token ids follow the tokenizer unless `--config_overrides` sets them. A
    tokenizer trained for the model returns only the inputs that the model's `forward` accepts. A checkpoint's
    embeddings grow if the tokenizer has more tokens; they never shrink.

    Args:
        auto_class: for instance AutoModelForCausalLM.
        config: from `load_config`, which checked it.

    Returns:
        The model, and the names of the parameters that the checkpoint does not have or has in another size. A model
        from scratch has none.

    Raises:
        UsageError: missing weights, weights that do not fit or are not plain tensors, or a vocabulary that is too
            small.
    """
    num_tokens = max(tokenizer.get_vocab().values()) + 1
    if model_args.model_name_or_path:
        model, new_weights = _load_checkpoint(auto_class, config, model_args)
        new_weights += _grow_embeddings(model, num_tokens)
    else:
        fit_config_to_tokenizer(config, tokenizer, num_tokens, model_args.config_overrides)
        model, new_weights = _build_model(auto_class, config, model_args), []
    if model_args.train_tokenizer:
        _drop_unused_inputs(tokenizer, model)
    use_fast_gelu(model)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "model: %s, %s parameters, %s, attention %s",
        type(model).__name__, f"{num_parameters:,}", model.dtype, model.config._attn_implementation,
    )  # fmt: skip
    return model, new_weights


def _load_checkpoint(
    auto_class: type, config: PretrainedConfig, model_args: ModelArguments
) -> tuple[PreTrainedModel, list[str]]:
    name = model_args.model_name_or_path
    try:
        model, loading_info = auto_class.from_pretrained(
            name,
            config=config,
            dtype=_dtype(model_args),
            output_loading_info=True,
            **_attention_options(model_args),
            **hub_options(model_args),
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        flags = f"--model_name_or_path {name}{_attention_flag(model_args)}"
        raise UsageError(f"{flags}: {explain_hub_error(error, name)}") from error
    new_weights = sorted(loading_info["missing_keys"])
    if new_weights:
        modules = sorted({weight.split(".")[0] for weight in new_weights})
        logger.info(
            "model: %s has no weights for %s of %s, which start untrained",
            name, ", ".join(modules), type(model).__name__,
        )  # fmt: skip
    return model, new_weights


def _grow_embeddings(model: PreTrainedModel, num_tokens: int) -> list[str]:
    """Resize the embeddings if they have fewer rows than there are tokens; returns the names of resized parameters."""
    num_embeddings = model.get_input_embeddings().num_embeddings
    if num_tokens <= num_embeddings:
        return []
    logger.info("model: resizing embeddings from %s to %s tokens", num_embeddings, num_tokens)
    model.resize_token_embeddings(num_tokens)
    modules = filter(None, (model.get_input_embeddings(), model.get_output_embeddings()))
    resized = {id(parameter) for module in modules for parameter in module.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in resized]


def _build_model(auto_class: type, config: PretrainedConfig, model_args: ModelArguments) -> PreTrainedModel:
    options = _attention_options(model_args)
    if model_args.dtype != "auto":
        options["dtype"] = _dtype(model_args)
    try:
        return auto_class.from_config(config, trust_remote_code=model_args.trust_remote_code, **options)
    except (ValueError, ImportError) as error:
        raise UsageError(f"--model_type {config.model_type}{_attention_flag(model_args)}: {error}") from error


def _drop_unused_inputs(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Make the tokenizer return only what the model accepts: DistilBERT, for example, takes no token_type_ids."""
    accepted = inspect.signature(type(model).forward).parameters
    names = [name for name in tokenizer.model_input_names if name in accepted]
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names


def _dtype(model_args: ModelArguments) -> torch.dtype | str:
    return model_args.dtype if model_args.dtype == "auto" else getattr(torch, model_args.dtype)


def _attention_options(model_args: ModelArguments) -> dict[str, str]:
    name = model_args.attn_implementation
    return {} if name is None else {"attn_implementation": name}


def _attention_flag(model_args: ModelArguments) -> str:
    name = model_args.attn_implementation
    return "" if name is None else f" --attn_implementation {name}"
