"""What can be found wrong with the flags of adapters before there is a model."""

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
) -> None:
    """Find wrong what can be found without the model. Adapters of the hub are fetched, into `adapter_args.folders`.

    Raises:
        UsageError: an unknown kind of adapter, one that cannot be merged, an adapter of another kind of model, or one
            that is to be loaded without being trained or evaluated.
    """
    if adapter_args.load_adapter and training_args.do_train and not adapter_args.train_adapter:
        raise UsageError("--load_adapter without --train_adapter: give it, or --do_eval alone to evaluate the adapter")
    if not adapter_args.train_adapter and not adapter_args.load_adapter:
        return
    adapter_config = parse_adapter_config(adapter_args.adapter_config)
    for flag in ("load_adapter", "load_lang_adapter"):
        name = getattr(adapter_args, flag)
        if not name:
            continue
        folder = adapter_args.folders[flag] = _fetch(name, flag, adapter_args, model_args)
        if Path(folder).is_dir():
            saved = _saved_config(folder, flag)
            theirs, ours = saved.get("model_type"), model_type
            if theirs != ours:
                base = model_args.model_name_or_path or f"--model_type {model_args.model_type}"
                raise UsageError(
                    f"--{flag} {name} fits {saved.get('model_name')}, a model of type {theirs}; {base} is a model of "
                    f"type {ours}"
                )
    lang_config, lang_adapter = adapter_args.lang_adapter_config, adapter_args.load_lang_adapter
    if lang_config and not lang_adapter:
        raise UsageError("--lang_adapter_config goes with --load_lang_adapter")
    if lang_config:
        parse_adapter_config(lang_config, "lang_adapter_config")
    if adapter_args.merge_adapter and training_args.is_sharded:
        raise UsageError("--merge_adapter: no process has the whole of a sharded model; leave it out")
    if adapter_args.merge_adapter and not _can_be_merged(adapter_config):
        raise UsageError(
            f"--merge_adapter: {adapter_args.adapter_config} cannot be merged into a model's weights; lora and ia3 can"
        )


def _fetch(name: str, flag: str, adapter_args: AdapterArguments, model_args: ModelArguments) -> str:
    """The folder of an adapter that is one or is on the hub; other names are left to the library as they are.

    All that `save_adapter` writes is fetched, of which the library itself would miss the model's weights.
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
    except Exception as error:  # of many types: the name, the access, the network
        raise UsageError(f"--{flag} {name}: {explain_hub_error(error, name)}") from error
    if not (Path(folder) / "adapter_config.json").is_file():
        raise UsageError(f"--{flag} {name}: the hub has {name}, but no adapter in it (adapter_config.json)")
    return folder


def parse_adapter_config(text: str, flag: str = "adapter_config"):
    """The configuration that a name, a string or a JSON file stands for."""
    from adapters import ADAPTER_CONFIG_MAP, AdapterConfig

    try:
        return AdapterConfig.load(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        known = ", ".join(ADAPTER_CONFIG_MAP)
        raise UsageError(f"--{flag} {text}: {error} Known are {known}, and JSON files") from error


def _can_be_merged(config) -> bool:
    return config.architecture == "lora" and not getattr(config, "use_gating", False)


def _saved_config(folder: str, flag: str) -> dict:
    path = Path(folder) / "adapter_config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--{flag}: no adapter in {folder}: {error}") from error
