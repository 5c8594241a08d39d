"""Flags of Graphcore's scripts about its machines: accepted without effect, so that old commands run."""

import logging
from dataclasses import dataclass, field, fields

from utils.errors import UsageError


logger = logging.getLogger(__name__)


def _ignored():
    return field(
        default=None,
        metadata={"nargs": "?", "const": "true", "help": "For Graphcore's IPUs; accepted without effect."},
    )


@dataclass
class IPUArguments:
    """Flags of optimum-graphcore's IPUTrainingArguments that transformers' TrainingArguments does not have."""

    ipu_config_name: str | None = _ignored()
    ipu_config_overrides: str | None = _ignored()
    n_ipu: str | None = _ignored()
    pod_type: str | None = _ignored()
    instrument: str | None = _ignored()
    compile_only: str | None = _ignored()
    executable_cache_dir: str | None = _ignored()
    dataloader_mode: str | None = _ignored()
    pad_on_batch_axis: str | None = _ignored()
    loss_scaling: str | None = _ignored()
    auto_loss_scaling: str | None = _ignored()
    fp32: str | None = _ignored()
    lamb: str | None = field(
        default=None, metadata={"nargs": "?", "const": "true", "help": "Refused: use --optim lamb."}
    )
    lamb_no_bias_correction: str | None = _ignored()

    def __post_init__(self):
        if self.lamb not in (None, "false", "False"):
            raise UsageError("--lamb: the optimizer is named --optim lamb here")
        given = [f"--{flag.name}" for flag in fields(IPUArguments) if getattr(self, flag.name) is not None]
        if given:
            logger.warning("%s: for Graphcore's IPUs, no effect here", ", ".join(given))
