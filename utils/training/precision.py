"""Mixed precision in training: weights that are cast once per update, and what dropout costs on a CPU."""

import contextlib
import logging

import torch
from transformers import PretrainedConfig

from utils.config.training_arguments import LMTrainingArguments


logger = logging.getLogger(__name__)

ATTENTION_DROPOUTS = ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob")


def weights_cast_once(args: LMTrainingArguments) -> contextlib.AbstractContextManager:
    """Within the block, autocast casts each weight once, and not again in every forward of an accumulation.

    Autocast forgets its casts when the outermost context ends. This one is around all forwards of an update and, being
    disabled, changes nothing else. Not with gradient checkpointing, which computes a forward again within the backward
    pass and must find the same casts as the first time.
    """
    if args.gradient_accumulation_steps == 1 or args.gradient_checkpointing or not (args.bf16 or args.fp16):
        return contextlib.nullcontext()
    return torch.autocast(args.device.type, enabled=False)


def log_cost_of_dropout(config: PretrainedConfig, args: LMTrainingArguments) -> None:
    """Say once, on a CPU, that attention with dropout has no fast kernel there."""
    dropouts = {name: getattr(config, name, 0) for name in ATTENTION_DROPOUTS}
    used = [f"{name}={value}" for name, value in dropouts.items() if isinstance(value, float) and value]
    if args.device.type == "cpu" and used:
        logger.info(
            "attention: dropout (%s) rules out the flash kernel on a CPU, which costs about a tenth of a step; a "
            "model from scratch can do without it (--config_overrides)",
            used[0],
        )
