"""The model's configuration: load it, check it, and match it to the tokenizer."""

import difflib
import logging
from collections.abc import Iterable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.hub.errors import explain_hub_error
from utils.models.config_overrides import override_config
from utils.models.positions import first_position, max_positions
from utils.models.remote_code import refuse_remote_attention, refuse_remote_code


logger = logging.getLogger(__name__)


class _ConfigFileError(UsageError):
    """The config.json is missing or cannot be read."""


def load_config(
    model_args: ModelArguments, auto_class: type, model_types: Iterable[str], block_size: int | None
) -> PretrainedConfig:
    """Load the model's configuration from a checkpoint, or create it for a model from scratch.

    Args:
        auto_class: builds the model, e.g. AutoModelForCausalLM.
        model_types: the model types that the script trains.
        block_size: the value of `--block_size`, if it was given.

    Raises:
        UsageError: a missing or malformed config.json, one that would run remote code without `--trust_remote_code`, a
            model type that the script does not train, invalid `--config_overrides`, or a block size larger than the
            number of positions.
    """
    known_types = sorted(model_types)
    name = model_args.model_name_or_path or model_args.config_name
    if name:
        raw_config = read_raw_config(name, model_args)
        model_type = raw_config.get("model_type")
        origin = f"{name}/config.json"
    else:
        model_type = model_args.model_type
        origin = f"--model_type {model_type}"
    has_own_code = bool(name) and model_args.trust_remote_code and "auto_map" in raw_config
    if model_type not in known_types and not has_own_code:
        similar = difflib.get_close_matches(str(model_type), known_types, n=3, cutoff=0.5) or known_types
        raise UsageError(
            f"{origin}: this script does not train models of type {model_type}; it trains {', '.join(similar)}"
        )
    if not name:
        config = CONFIG_MAPPING[model_type]()
    else:
        try:
            config = AutoConfig.from_pretrained(name, **hub_options(model_args))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
            raise UsageError(f"{origin}: not a valid configuration: {explain_hub_error(error, name)}") from error
    if not model_args.trust_remote_code:
        refuse_remote_attention(config, origin)
    if not model_args.model_name_or_path:
        if not name and max_positions(config):  # the default configuration counts positions that tokens cannot use
            config.max_position_embeddings += first_position(config)
        override_config(config, model_args.config_overrides)
        _check_config(config, auto_class, model_args, origin)
    _check_block_size(block_size, config, model_args)
    return config


def read_raw_config(name: str, model_args: ModelArguments) -> dict:
    """Read the values of a checkpoint's config.json without building a configuration from them.

    Raises:
        UsageError: a missing or malformed file, or one that would run remote code without `--trust_remote_code`.
    """
    options = hub_options(model_args)
    del options["trust_remote_code"]
    try:
        raw_config, _ = PretrainedConfig.get_config_dict(name, **options)
    except (OSError, ValueError, TypeError) as error:
        raise _ConfigFileError(f"{name}: cannot load config.json: {explain_hub_error(error, name)}") from error
    if not isinstance(raw_config, dict):
        raise _ConfigFileError(f"{name}: cannot load config.json: it is not a JSON object")
    if not model_args.trust_remote_code:
        refuse_remote_code(raw_config, name)
    return raw_config


def check_config_files(name: str, model_args: ModelArguments) -> Exception | None:
    """Check the config.json of a tokenizer's repository or folder for remote code.

    Returns:
        The error if the file is missing or unreadable, since it cannot run code then; otherwise None.

    Raises:
        UsageError: the file would run remote code without `--trust_remote_code`.
    """
    try:
        read_raw_config(name, model_args)
    except _ConfigFileError as error:
        return error
    return None


def hub_options(model_args: ModelArguments) -> dict[str, Any]:
    """The arguments that every call of `from_pretrained` gets."""
    return {
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.token,
        "trust_remote_code": model_args.trust_remote_code,
    }


def _check_config(config: PretrainedConfig, auto_class: type, model_args: ModelArguments, origin: str) -> None:
    """Build the model on the meta device, which takes no memory, to find invalid sizes early."""
    try:
        with torch.device("meta"):
            auto_class.from_config(config, trust_remote_code=model_args.trust_remote_code)
    except Exception as error:  # of many types: each model class checks its sizes in its own way
        if isinstance(error, NotImplementedError) and "meta tensor" in str(error):
            return  # Apertus, for one, reads values of its tensors while it is built
        if model_args.config_overrides:
            origin = f"--config_overrides {model_args.config_overrides}"
        raise UsageError(f"{origin}: cannot build a {config.model_type} model: {error}") from error


def _check_block_size(block_size: int | None, config: PretrainedConfig, model_args: ModelArguments) -> None:
    limit = max_positions(config)
    if not (block_size and limit and block_size > limit):
        return
    key = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    override = f"--config_overrides {key}={block_size + first_position(config)}"
    or_override = "" if model_args.model_name_or_path else f", or add positions with {override}"
    raise UsageError(
        f"--block_size {block_size} is more than the {limit} positions of the model: give {limit} or less{or_override}"
    )


def model_type_from_checkpoint_name(name: str | None, model_types: Iterable[str]) -> str | None:
    """Accept a checkpoint's name as `--model_type`, as older manuals use it: bert for bert-base-uncased.

    Logs a warning in that case. Returns other names unchanged.
    """
    if name is None or name in CONFIG_MAPPING:
        return name
    checkpoint = name.split("/")[-1]
    matching = [model_type for model_type in model_types if checkpoint.startswith(f"{model_type}-")]
    if not matching:
        return name
    model_type = max(matching, key=len)
    logger.warning(
        "--model_type %s: understood as %s, with the default configuration of that type; for the checkpoint's "
        "configuration, use --config_name %s", name, model_type, name,
    )  # fmt: skip
    return model_type


def default_block_size(config: PretrainedConfig, tokenizer_limit: int, most: int = 1024) -> int:
    """The smallest of the tokenizer's limit, the model's number of positions and `most`. Logs which one it is."""
    limits = {"the tokenizer's limit": tokenizer_limit, "the model's positions": max_positions(config)}
    limits["the script's default"] = most
    reason, block_size = min(((key, value) for key, value in limits.items() if value), key=lambda item: item[1])
    logger.info("block_size: %s, from %s (change it with --block_size)", block_size, reason)
    return block_size


def fit_config_to_tokenizer(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, num_tokens: int, overrides: str | None
) -> None:
    """Set the vocabulary size and the special token ids to those of the tokenizer, except values in `overrides`.

    A model that numbers positions from its padding token keeps its number of usable positions.

    Args:
        num_tokens: the largest token id plus 1.
        overrides: the value of `--config_overrides`.

    Raises:
        UsageError: an overridden vocabulary size below `num_tokens`, or an overridden number of positions that is too
            small because of the tokenizer's padding token id.
    """
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
    num_lost = usable_positions - max_positions(config) if usable_positions else 0
    if num_lost > 0 and "max_position_embeddings" in overridden:
        raise UsageError(
            f"--config_overrides max_position_embeddings={config.max_position_embeddings}: positions start after the "
            f"tokenizer's padding token, {config.pad_token_id}: give {config.max_position_embeddings + num_lost}"
        )
    if num_lost:
        config.max_position_embeddings += num_lost
