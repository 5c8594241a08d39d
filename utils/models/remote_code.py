"""Checks that a configuration does not make transformers run code from a repository."""

from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

from utils.errors import UsageError


# The attention implementations that a checkpoint's config.json may name. Any other value may be a repository on the
# Hub. transformers before 5.3 downloads and runs its code if the package `kernels` is installed (CVE-2026-4372).
KNOWN_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def refuse_remote_code(raw_config: dict, name: str) -> None:
    """Check the values of a config.json, before transformers builds a configuration from them.

    Raises:
        UsageError: an attention implementation from a repository, or `trust_remote_code` set in the file.
    """
    for key, value in _all_values(raw_config):
        if key in ATTENTION_KEYS and value not in KNOWN_ATTENTION:
            reason = f"names an attention implementation, {value!r}, that may be a repository with code to run"
        elif key == "trust_remote_code" and value not in (None, False):
            reason = "turns on trust_remote_code"
        else:
            continue
        raise UsageError(f"{name}/config.json {reason}: remove {key} from it, or give --trust_remote_code")


def refuse_remote_attention(config: PretrainedConfig, origin: str) -> None:
    """Check a configuration built from a config.json, since `attribute_map` can give the attention another key there.

    Raises:
        UsageError: an attention implementation from a repository.
    """
    if config._attn_implementation not in KNOWN_ATTENTION:
        raise UsageError(
            f"{origin} names an attention implementation, {config._attn_implementation!r}, that may be a repository "
            "with code to run: give --trust_remote_code if you trust it"
        )
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            refuse_remote_attention(value, origin)


def _all_values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each plain value at any depth, with its key. Everything below one of the checked keys counts as its value."""
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            yield from _all_values(inner, key if key in (*ATTENTION_KEYS, "trust_remote_code") else inner_key)
    elif isinstance(value, list):
        for inner in value:
            yield from _all_values(inner, key)
    else:
        yield key, value
