"""--config_overrides: changes to a model's configuration."""

import ast
import difflib
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from utils.errors import UsageError


def override_config(config: PretrainedConfig, overrides: str | None) -> None:
    """Set `key=value,key=value` in the configuration.

    Values that the configuration's constructor derives from others, such as the size of a head, are derived again.

    Raises:
        UsageError: text of another form, a key that the configuration does not have, or a value of another type.
    """
    head_size = _head_size(config)
    derived_sizes = {name for name in ("d_head", "head_dim") if vars(config).get(name) == head_size}
    overridden = set()
    for item in filter(None, (overrides or "").split(",")):
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise UsageError(f"--config_overrides {item}: expected key=value,key=value")
        known = [name for name in config.to_dict() if not name.startswith("_")]
        if key not in known and key not in config.attribute_map:
            similar = difflib.get_close_matches(key, known, n=3, cutoff=0.4) or known
            raise UsageError(
                f"--config_overrides {item}: {config.model_type} has no {key}; it has {', '.join(similar)}"
            )
        value = _parse_value(key, text, getattr(config, key))
        try:
            setattr(config, key, value)
        except StrictDataclassError as error:  # transformers 5 checks types here, 4.57 when the model is built
            raise UsageError(
                f"--config_overrides {overrides}: cannot build a {config.model_type} model: {error}"
            ) from error
        overridden.add(key)
    for name in derived_sizes - overridden:
        setattr(config, name, _head_size(config))
    layer_types = getattr(config, "layer_types", None)
    if layer_types and "layer_types" not in overridden and len(layer_types) != config.num_hidden_layers:
        values = {name: value for name, value in config.to_dict().items() if name != "layer_types"}
        config.layer_types = type(config).from_dict(values).layer_types


def _head_size(config: PretrainedConfig) -> int | None:
    hidden_size, num_heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    is_known = isinstance(hidden_size, int) and isinstance(num_heads, int) and num_heads
    return hidden_size // num_heads if is_known else None


def _parse_value(key: str, text: str, old: Any) -> Any:
    """The value that the text stands for, in the type of the old one."""
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
