"""The model's configuration: read and checked as data before a class is built from it, changed, given to the model."""

import ast
import difflib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.hub.errors import explain_hub_error


logger = logging.getLogger(__name__)

# What an attention implementation may be in a checkpoint's config.json. Anything else could be a hub repository,
# whose code transformers before 5.3 fetches and runs where the package `kernels` is installed (CVE-2026-4372).
KNOWN_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")

# Models whose positions are numbered from pad_token_id + 1 on, as in fairseq.
POSITIONS_AFTER_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def load_config(
    model_args: ModelArguments, auto_class: type, model_types: Iterable[str], block_size: int | None
) -> PretrainedConfig:
    """Read the configuration of the model to train, from a checkpoint or made from scratch.

    Args:
        auto_class: builds the model, e.g. AutoModelForCausalLM.
        model_types: the kinds of model that the script trains.
        block_size: the `--block_size` that was given, if any.

    Raises:
        UsageError: a missing or malformed config.json, one that asks for foreign code without
            `--trust_remote_code`, a model type that the script does not train, a wrong `--config_overrides`, or a
            block longer than the model has positions.
    """
    known = sorted(model_types)
    name = model_args.model_name_or_path or model_args.config_name
    if name:
        raw_config = read_raw_config(name, model_args)
        model_type = raw_config.get("model_type")
        origin = f"{name}/config.json"
    else:
        model_type = model_args.model_type
        origin = f"--model_type {model_type}"
    if model_type not in known and not (name and model_args.trust_remote_code and "auto_map" in raw_config):
        close = difflib.get_close_matches(str(model_type), known, n=3, cutoff=0.5) or known
        raise UsageError(f"{origin}: this script trains no model of type {model_type}; it does {', '.join(close)}")
    if not name:
        config = CONFIG_MAPPING[model_type]()
    else:
        try:
            config = AutoConfig.from_pretrained(name, **hub_options(model_args))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
            raise UsageError(
                f"{origin}: no configuration can be made of it: {explain_hub_error(error, name)}"
            ) from error
    if not model_args.trust_remote_code:
        _refuse_foreign_attention(config, origin)
    if not model_args.model_name_or_path:
        if not name:
            _keep_all_positions(config)
        override_config(config, model_args.config_overrides)
        _try_config(config, auto_class, model_args, origin)
    limit = max_positions(config)
    if block_size and limit and block_size > limit:
        field = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
        needed = block_size + _first_position(config)
        more = "" if model_args.model_name_or_path else f", or make more: --config_overrides {field}={needed}"
        raise UsageError(
            f"--block_size {block_size} is more than the {limit} positions of the model: give {limit} or less{more}"
        )
    return config


def read_raw_config(name: str, model_args: ModelArguments) -> dict:
    """The values of a checkpoint's config.json, as data, refused if they would make transformers run foreign code."""
    options = hub_options(model_args)
    del options["trust_remote_code"]
    try:
        raw_config, _ = PretrainedConfig.get_config_dict(name, **options)
    except (OSError, ValueError, TypeError) as error:
        raise _NoConfig(f"{name}: no configuration to be had: {explain_hub_error(error, name)}") from error
    if not isinstance(raw_config, dict):
        raise _NoConfig(f"{name}: no configuration to be had: its config.json holds no object")
    _refuse_foreign_code(raw_config, name, model_args.trust_remote_code)
    return raw_config


class _NoConfig(UsageError):
    """There is no config.json, or none that can be read."""


def check_config_files(name: str, model_args: ModelArguments) -> Exception | None:
    """Check the config.json of a tokenizer's repository or folder; without one, no class can be built from it.

    Returns:
        Why there is none that can be read.
    """
    try:
        read_raw_config(name, model_args)
    except _NoConfig as error:
        return error
    return None


def hub_options(model_args: ModelArguments) -> dict[str, Any]:
    """What every `from_pretrained` is told about where to look and whom to trust."""
    return {
        "cache_dir": model_args.cache_dir,
        "revision": model_args.model_revision,
        "token": model_args.token,
        "trust_remote_code": model_args.trust_remote_code,
    }


def _refuse_foreign_code(raw_config: dict, name: str, trust_remote_code: bool) -> None:
    if trust_remote_code:
        return
    for key, value in _all_values(raw_config):
        if key in ATTENTION_KEYS and value not in KNOWN_ATTENTION:
            reason = f"names an attention implementation, {value!r}, that may be a repository whose code is run"
        elif key == "trust_remote_code" and value not in (None, False):
            reason = "switches trust_remote_code on by itself"
        else:
            continue
        raise UsageError(f"{name}/config.json {reason}: remove {key} from it, or give --trust_remote_code")


def _refuse_foreign_attention(config: PretrainedConfig, origin: str) -> None:
    """What the configuration made of its file, whatever the keys were called there."""
    if config._attn_implementation not in KNOWN_ATTENTION:
        raise UsageError(
            f"{origin} names an attention implementation, {config._attn_implementation!r}, that may be a repository "
            "whose code is run: give --trust_remote_code"
        )
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            _refuse_foreign_attention(value, origin)


def _all_values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each (key, plain value) at any depth; a dict or list counts under the nearest key above it."""
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            yield from _all_values(inner, key if key in (*ATTENTION_KEYS, "trust_remote_code") else inner_key)
    elif isinstance(value, list):
        for inner in value:
            yield from _all_values(inner, key)
    else:
        yield key, value


def override_config(config: PretrainedConfig, overrides: str | None) -> None:
    """Set `key=value,key=value` in the configuration; the keys must be there and the values of their kind."""
    heads_share_width = {name for name in ("d_head", "head_dim") if vars(config).get(name) == _width_of_a_head(config)}
    overridden = set()
    for item in filter(None, (overrides or "").split(",")):
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise UsageError(f"--config_overrides {item}: expected key=value,key=value")
        known = [name for name in config.to_dict() if not name.startswith("_")]
        if key not in known and key not in config.attribute_map:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.4) or known
            raise UsageError(
                f"--config_overrides {item}: a {config.model_type} has no {key}; it has {', '.join(near)}"
            )
        value = _convert(key, text, getattr(config, key))
        try:
            setattr(config, key, value)
        except StrictDataclassError as error:  # transformers 5 checks types at once, 4.57 when a model is built
            raise UsageError(
                f"--config_overrides {overrides}: no {config.model_type} can be built: {error}"
            ) from error
        overridden.add(key)
    for name in heads_share_width - overridden:  # as the configuration's constructor would have it
        setattr(config, name, _width_of_a_head(config))
    layer_types = getattr(config, "layer_types", None)
    if layer_types and "layer_types" not in overridden and len(layer_types) != config.num_hidden_layers:
        values = {name: value for name, value in config.to_dict().items() if name != "layer_types"}
        config.layer_types = type(config).from_dict(values).layer_types


def _width_of_a_head(config: PretrainedConfig) -> int | None:
    width, num_heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    return width // num_heads if isinstance(width, int) and isinstance(num_heads, int) and num_heads else None


def _convert(key: str, text: str, old: Any) -> Any:
    if text.lower() in ("true", "false"):
        value = text.lower() == "true"
    elif text.lower() in ("none", "null"):
        value = None
    else:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, str) and not isinstance(value, str):
        value = text
    if not (old is None or value is None or type(value) is type(old)):
        raise UsageError(f"--config_overrides {key}={text}: expected {type(old).__name__}, as in {key}={old}")
    return value


def _try_config(config: PretrainedConfig, auto_class: type, model_args: ModelArguments, origin: str) -> None:
    """Build the model without memory for its weights: sizes that do not go together are found now, not later."""
    try:
        with torch.device("meta"):
            auto_class.from_config(config, trust_remote_code=model_args.trust_remote_code)
    except Exception as error:  # each model class has its own way to refuse
        if model_args.config_overrides:
            origin = f"--config_overrides {model_args.config_overrides}"
        raise UsageError(f"{origin}: no {config.model_type} can be built: {error}") from error


def model_type_from_checkpoint_name(name: str | None, model_types: Iterable[str]) -> str | None:
    """The `--model_type` that was meant where the name of a checkpoint was given, as old manuals have it: bert for
    bert-base-uncased, with a warning. Other names are returned as they are.
    """
    if name is None or name in CONFIG_MAPPING:
        return name
    checkpoint = name.split("/")[-1]
    fitting = [model_type for model_type in model_types if checkpoint.startswith(f"{model_type}-")]
    if not fitting:
        return name
    model_type = max(fitting, key=len)
    logger.warning(
        "--model_type %s: understood as %s, with that type's default configuration; --config_name %s takes the "
        "checkpoint's", name, model_type, name,
    )  # fmt: skip
    return model_type


def max_positions(config: PretrainedConfig) -> int | None:
    """The longest sequence that the model has positions for; None where it has no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    return positions - _first_position(config) if positions and positions > 0 else None


def _first_position(config: PretrainedConfig) -> int:
    """The number of the first token's position."""
    if config.model_type not in POSITIONS_AFTER_PADDING:
        return 0
    return 2 if config.model_type == "mpnet" else (config.pad_token_id or 0) + 1  # MPNet's 1 is fixed in its code


def _keep_all_positions(config: PretrainedConfig) -> None:
    """A new RoBERTa has as many positions for tokens as its configuration says, beside those below the first."""
    if max_positions(config):
        config.max_position_embeddings += _first_position(config)


def default_block_size(config: PretrainedConfig, tokenizer_limit: int, most: int = 1024) -> int:
    """min(tokenizer's limit, model's positions, most), with a log line."""
    limits = {"the tokenizer's limit": tokenizer_limit, "the model's positions": max_positions(config)}
    limits["the script's default"] = most
    reason, block_size = min(((key, value) for key, value in limits.items() if value), key=lambda item: item[1])
    logger.info("block_size: %s, from %s (--block_size changes it)", block_size, reason)
    return block_size
