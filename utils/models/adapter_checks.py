"""Checks of the adapter flags that do not need the model."""

import json
from pathlib import Path

from huggingface_hub import snapshot_download

from utils.config.adapter_arguments import LANGUAGE_FOLDER, MODEL_WEIGHTS, AdapterArguments
from utils.config.model_arguments import ModelArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.hub.errors import explain_hub_error


def check_adapter_arguments(
    adapter_args: AdapterArguments,
    model_args: ModelArguments,
    training_args: LMTrainingArguments,
    model_type: str,
) -> dict[str, str]:
    """Check the adapter flags as far as possible without the model, and download adapters that are on the Hub.

    Args:
        model_type: the model type of the base model, e.g. gpt2.

    Returns:
        The folders of the adapters to load, by flag: `load_adapter` and `load_lang_adapter`.

    Raises:
        UsageError: an unknown adapter configuration, an adapter that cannot be merged, an adapter for another model
            type, or `--load_adapter` with training but without `--train_adapter`.
    """
    if adapter_args.load_adapter and training_args.do_train and not adapter_args.train_adapter:
        raise UsageError("--load_adapter requires --train_adapter, or --do_eval alone to evaluate the adapter")
    if not adapter_args.train_adapter and not adapter_args.load_adapter:
        return {}
    adapter_config = parse_adapter_config(adapter_args.adapter_config)
    folders = {}
    for flag in ("load_adapter", "load_lang_adapter"):
        name = getattr(adapter_args, flag)
        if name:
            folders[flag] = _adapter_folder(name, flag, adapter_args, model_args)
            _check_model_type(name, folders[flag], flag, model_args, model_type)
    if adapter_args.lang_adapter_config:
        parse_adapter_config(adapter_args.lang_adapter_config, "lang_adapter_config")
    if adapter_args.merge_adapter and training_args.is_sharded:
        raise UsageError(
            "--merge_adapter does not work with a sharded model: no process has all weights; leave it out"
        )
    if adapter_args.merge_adapter and not _can_be_merged(adapter_config):
        raise UsageError(
            f"--merge_adapter: {adapter_args.adapter_config} cannot be merged into a model's weights; lora and ia3 can"
        )
    return folders


def parse_adapter_config(text: str, flag: str = "adapter_config"):
    """Build the adapter configuration from its name, a configuration string or a JSON file.

    Raises:
        UsageError: the library does not know it, or not with these settings.
    """
    from adapters import ADAPTER_CONFIG_MAP, AdapterConfig

    try:
        return AdapterConfig.load(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        known = ", ".join(ADAPTER_CONFIG_MAP)
        raise UsageError(f"--{flag} {text}: {error} Choose one of {known}, or a JSON file") from error


def _adapter_folder(name: str, flag: str, adapter_args: AdapterArguments, model_args: ModelArguments) -> str:
    """The folder of the adapter, downloaded if it is on the Hub; names of other forms are returned for the library.

    Downloads all files that `save_adapter` writes. The library itself would not download the model's weights.
    """
    if Path(name).exists() or "://" in name or "@" in name:  # addresses, and names in AdapterHub's old index
        return name
    try:
        folder = snapshot_download(
            name,
            revision=adapter_args.adapter_revision if flag == "load_adapter" else None,
            cache_dir=model_args.cache_dir,
            token=model_args.token,
            allow_patterns=["adapter*", "pytorch_adapter.bin", MODEL_WEIGHTS, f"{LANGUAGE_FOLDER}/*"],
        )
    except Exception as error:  # of many types: name, access, network
        raise UsageError(f"--{flag} {name}: {explain_hub_error(error, name)}") from error
    if not (Path(folder) / "adapter_config.json").is_file():
        raise UsageError(f"--{flag} {name}: {name} is on the Hub, but has no adapter (adapter_config.json)")
    return folder


def _check_model_type(name: str, folder: str, flag: str, model_args: ModelArguments, model_type: str) -> None:
    if not Path(folder).is_dir():
        return
    saved = _saved_config(folder, flag)
    if saved.get("model_type") != model_type:
        base = model_args.model_name_or_path or f"--model_type {model_args.model_type}"
        raise UsageError(
            f"--{flag} {name} was trained for {saved.get('model_name')}, a model of type {saved.get('model_type')}; "
            f"{base} is a model of type {model_type}"
        )


def _saved_config(folder: str, flag: str) -> dict:
    path = Path(folder) / "adapter_config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--{flag}: there is no adapter in {folder}: {error}") from error


def _can_be_merged(config) -> bool:
    return config.architecture == "lora" and not getattr(config, "use_gating", False)
