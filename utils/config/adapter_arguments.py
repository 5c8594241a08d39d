"""Flags: adapters."""

import re
from dataclasses import dataclass, field

from torch import nn

from utils.compat import NO_ADAPTERS_REASON
from utils.errors import UsageError


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

    def __post_init__(self):
        for name in ("load_adapter", "load_lang_adapter", "lang_adapter_config", "adapter_name"):
            setattr(self, name, getattr(self, name) or None)  # AdapterHub's scripts have "" for none
        for flag in ("train_adapter", "load_adapter"):
            if getattr(self, flag) and NO_ADAPTERS_REASON:
                raise UsageError(f"--{flag}: {NO_ADAPTERS_REASON}")
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


def safe_name(name: str) -> str:
    """The name with _ for whatever would not do in the name of a file and of a module."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "adapter"
    return f"{safe}_adapter" if hasattr(nn.ModuleDict(), safe) else safe
