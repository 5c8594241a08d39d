"""Flags: adapters, and the names of the files they are saved in."""

import re
from dataclasses import dataclass, field

from torch import nn

from utils.compat import NO_ADAPTERS_REASON
from utils.errors import UsageError


MERGED_FOLDER = "merged"
LANGUAGE_FOLDER = "language_adapter"
# Weights of the model itself that are saved with an adapter: a head or embeddings that are in no checkpoint.
MODEL_WEIGHTS = "model_weights.safetensors"


@dataclass
class AdapterArguments:
    """How an adapter is trained and loaded, with the flags of AdapterHub's scripts."""

    train_adapter: bool = field(
        default=False, metadata={"help": "Train an adapter (library `adapters`) instead of the whole model."}
    )
    adapter_config: str = field(
        default="seq_bn",
        metadata={
            "help": "Kind of adapter, e.g. seq_bn, lora or prefix_tuning, with settings as in "
            "'seq_bn[reduction_factor=8]', several joined by |; or a JSON file."
        },
    )
    adapter_name: str | None = field(
        default=None,
        metadata={"help": "Name of the adapter. Default: derived from the name of the dataset or file."},
    )
    load_adapter: str | None = field(
        default=None,
        metadata={"help": "Adapter to start from, or to evaluate: a folder or a Hub name."},
    )
    adapter_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of --load_adapter on the Hub. Default: the newest."}
    )
    load_lang_adapter: str | None = field(
        default=None,
        metadata={"help": "Language adapter below the trained one; it is not trained further."},
    )
    lang_adapter_config: str | None = field(
        default=None,
        metadata={"help": "Kind of the language adapter; must agree with its own configuration."},
    )
    train_embeddings: bool = field(
        default=False, metadata={"help": "Also train the token embeddings, for new tokens."}
    )
    merge_adapter: bool = field(
        default=False,
        metadata={
            "help": "For lora and ia3: also save the model with the adapter merged into its weights, in "
            f"{MERGED_FOLDER}/ of the output folder."
        },
    )

    def __post_init__(self):
        for name in ("load_adapter", "load_lang_adapter", "lang_adapter_config", "adapter_name"):
            setattr(self, name, getattr(self, name) or None)  # commands for AdapterHub's scripts use "" for none
        for flag in ("train_adapter", "load_adapter"):
            if getattr(self, flag) and NO_ADAPTERS_REASON:
                raise UsageError(f"--{flag}: {NO_ADAPTERS_REASON}")
        if self.adapter_name and safe_name(self.adapter_name) != self.adapter_name:
            raise UsageError(
                f"--adapter_name {self.adapter_name}: files and modules get this name; use letters, digits, - and _ "
                f"only, for instance {safe_name(self.adapter_name)}"
            )


def safe_name(name: str) -> str:
    """The name with _ in place of characters that are not allowed in the names of files and modules."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "adapter"
    return f"{safe}_adapter" if hasattr(nn.ModuleDict(), safe) else safe
