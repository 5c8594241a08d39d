"""The model: from a checkpoint or from scratch, fitted to the tokenizer."""

import inspect
import logging
import pickle

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import NewGELUActivation

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.hub.errors import explain_hub_error
from utils.models.config import hub_options, max_positions


logger = logging.getLogger(__name__)


def load_model(
    auto_class: type, config: PretrainedConfig, model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, list[str]]:
    """Load `--model_name_or_path`, or build the model from `config` with new weights, to fit the tokenizer.

    From scratch, the vocabulary's size and the special tokens' ids follow the tokenizer unless `--config_overrides`
    names them, and a tokenizer that was trained for the model gives only what its `forward` takes. A checkpoint's
    embeddings grow when the tokenizer has more tokens; they never shrink.

    Args:
        auto_class: for instance AutoModelForCausalLM.
        config: from `load_config`, which checked it.

    Returns:
        The model, and the names of the parameters that the checkpoint does not have, or not in this size; none for a
        model from scratch.

    Raises:
        UsageError: no weights, weights that do not fit or are not plain tensors, or a vocabulary that is too small.
    """
    dtype = model_args.dtype if model_args.dtype == "auto" else getattr(torch, model_args.dtype)
    options, attention = {}, ""
    if model_args.attn_implementation is not None:
        options["attn_implementation"] = model_args.attn_implementation
        attention = f" --attn_implementation {model_args.attn_implementation}"
    num_tokens = max(tokenizer.get_vocab().values()) + 1
    if model_args.model_name_or_path:
        try:
            model, loading_info = auto_class.from_pretrained(
                model_args.model_name_or_path,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                **options,
                **hub_options(model_args),
            )
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
            name = model_args.model_name_or_path
            raise UsageError(f"--model_name_or_path {name}{attention}: {explain_hub_error(error, name)}") from error
        new_weights = sorted(loading_info["missing_keys"])
        if new_weights:
            untrained = sorted({name.split(".")[0] for name in new_weights})
            logger.info(
                "model: %s has no weights for %s of %s, which start untrained",
                model_args.model_name_or_path, ", ".join(untrained), type(model).__name__,
            )  # fmt: skip
        if num_tokens > model.get_input_embeddings().num_embeddings:
            logger.info(
                "model: embeddings grow from %s to %s", model.get_input_embeddings().num_embeddings, num_tokens
            )
            model.resize_token_embeddings(num_tokens)
            ends = filter(None, (model.get_input_embeddings(), model.get_output_embeddings()))
            grown = {id(weight) for module in ends for weight in module.parameters()}
            new_weights += [name for name, weight in model.named_parameters() if id(weight) in grown]
    else:
        new_weights = []
        fit_config_to_tokenizer(config, tokenizer, num_tokens, model_args.config_overrides)
        if dtype != "auto":
            options["dtype"] = dtype
        try:
            model = auto_class.from_config(config, trust_remote_code=model_args.trust_remote_code, **options)
        except (ValueError, ImportError) as error:
            raise UsageError(f"--model_type {config.model_type}{attention}: {error}") from error
    if model_args.train_tokenizer:  # DistilBERT, for one, takes no token_type_ids
        accepted = inspect.signature(type(model).forward).parameters
        names = [name for name in tokenizer.model_input_names if name in accepted]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    _use_fast_gelu(model)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "model: %s, %s parameters, %s, attention %s",
        type(model).__name__, f"{num_parameters:,}", model.dtype, model.config._attn_implementation,
    )  # fmt: skip
    return model, new_weights


def fit_config_to_tokenizer(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, num_tokens: int, overrides: str | None
) -> None:
    """Give the configuration the tokenizer's vocabulary size and special ids, but for those that the user set."""
    overridden = {item.split("=")[0].strip() for item in (overrides or "").split(",")}
    if "vocab_size" not in overridden:
        config.vocab_size = num_tokens
    elif config.vocab_size < num_tokens:
        raise UsageError(
            f"--config_overrides vocab_size={config.vocab_size}: the tokenizer has {num_tokens} tokens; leave it out"
        )
    usable_positions = max_positions(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if name not in overridden:
            setattr(config, name, getattr(tokenizer, name))
    for name in ("cls_token_id", "sep_token_id", "mask_token_id"):
        if name not in overridden and getattr(config, name, None) is not None:
            setattr(config, name, getattr(tokenizer, name))
    num_lost = usable_positions - max_positions(config) if usable_positions else 0  # below the padding token's id
    if num_lost > 0 and "max_position_embeddings" in overridden:
        raise UsageError(
            f"--config_overrides max_position_embeddings={config.max_position_embeddings}: the positions start after "
            f"the tokenizer's padding token, {config.pad_token_id}: give {config.max_position_embeddings + num_lost}"
        )
    if num_lost:
        config.max_position_embeddings += num_lost


def _use_fast_gelu(model: nn.Module) -> None:
    """GPT-2's GELU as one kernel: the same formula (differences of 2e-7), 1.07x on a whole training step of GPT-2."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
