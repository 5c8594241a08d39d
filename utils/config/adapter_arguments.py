"""The flags of adapters, and what can be found wrong with them before there is a model."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import snapshot_download
from torch import nn

from utils.compat import WHY_NO_ADAPTERS
from utils.config.arguments import LMTrainingArguments, ModelArguments
from utils.config.parser import UsageError
from utils.hub.errors import explain


MERGED_FOLDER = "merged"
# What of the model itself is saved with an adapter: a head or embeddings that no checkpoint has.
MODEL_WEIGHTS = "model_weights.safetensors"
LANGUAGE_FOLDER = "language_adapter"


@dataclass
class AdapterArguments:
    """The flags of adapters, as AdapterHub's scripts name them."""

    train_adapter: bool = field(
        default=False, metadata={"help": "Train an adapter (of the library `adapters`) instead of the whole model."}
    )
    adapter_config: str = field(
        default="seq_bn",
        metadata={
            "help": "The kind of adapter: a name that the library knows, such as seq_bn, double_seq_bn, par_bn, lora, "
            "ia3, prefix_tuning or loreft, with settings as in 'seq_bn[reduction_factor=8]', several joined by |, or "
            "a JSON file. Default: seq_bn, a bottleneck after each layer."
        },
    )
    adapter_name: str | None = field(
        default=None,
        metadata={"help": "What the adapter is called. Default: made from the name of the data set or file."},
    )
    load_adapter: str | None = field(
        default=None,
        metadata={
            "help": "An adapter to start from, or with --do_eval alone to evaluate: a folder, or a name on the hub. "
            "Its kind is what its own configuration says."
        },
    )
    adapter_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of --load_adapter on the hub. Default: the newest."}
    )
    load_lang_adapter: str | None = field(
        default=None,
        metadata={"help": "A language adapter to put under the one that is trained; it is not trained further."},
    )
    lang_adapter_config: str | None = field(
        default=None,
        metadata={"help": "The kind of the language adapter. It must be what its own configuration says, and can go."},
    )
    train_embeddings: bool = field(
        default=False, metadata={"help": "With --train_adapter: train the token embeddings too, for new tokens."}
    )
    merge_adapter: bool = field(
        default=False,
        metadata={
            "help": "With --train_adapter and lora or ia3: also save a model with the adapter merged into its "
            f"weights, in the folder {MERGED_FOLDER} of the output, for use without the library."
        },
    )
    folders: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # of what is loaded, by the flag

    def __post_init__(self):
        for name in ("load_adapter", "load_lang_adapter", "lang_adapter_config", "adapter_name"):
            setattr(self, name, getattr(self, name) or None)  # AdapterHub's scripts have "" for none
        for flag in ("train_adapter", "load_adapter"):
            if getattr(self, flag) and WHY_NO_ADAPTERS:
                raise UsageError(f"--{flag}: {WHY_NO_ADAPTERS}")
        for flag in ("train_embeddings", "merge_adapter", "load_lang_adapter", "adapter_name"):
            if getattr(self, flag) and not self.train_adapter:
                raise UsageError(f"--{flag} goes with --train_adapter")
        if self.adapter_revision and not self.load_adapter:
            raise UsageError("--adapter_revision goes with --load_adapter")
        if self.adapter_name and safe_name(self.adapter_name) != self.adapter_name:
            raise UsageError(
                f"--adapter_name {self.adapter_name}: it names files and modules, so letters, digits, - and _ only; "
                f"for instance {safe_name(self.adapter_name)}"
            )


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
        raise UsageError(f"--{flag} {name}: {explain(error, name)}") from error
    if not (Path(folder) / "adapter_config.json").is_file():
        raise UsageError(f"--{flag} {name}: the hub has {name}, but no adapter in it (adapter_config.json)")
    return folder


def safe_name(name: str) -> str:
    """The name with _ for whatever would not do in the name of a file and of a module."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "adapter"
    return f"{safe}_adapter" if hasattr(nn.ModuleDict(), safe) else safe


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
