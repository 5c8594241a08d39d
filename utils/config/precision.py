"""The precision of the training: which devices compute bfloat16, and when it is the default."""

import logging

import torch
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from utils.errors import UsageError


logger = logging.getLogger(__name__)


def has_tpu(use_cpu: bool) -> bool:
    return is_torch_xla_available() and not use_cpu


def has_accelerator(use_cpu: bool) -> bool:
    """Whether the run has a GPU, TPU or the like."""
    return has_tpu(use_cpu) or (torch.accelerator.is_available() and not use_cpu)


def computes_bf16(use_cpu: bool) -> bool:
    """Whether the device has bfloat16 arithmetic: NVIDIA GPUs since Ampere, CPUs with AVX512-BF16 or AMX."""
    if has_accelerator(use_cpu):
        return is_torch_bf16_gpu_available()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_bf16(bf16: bool | None, fp16: bool, use_cpu: bool, launcher_precision: str | None) -> bool:
    """Whether to train in mixed bfloat16; by default where the hardware computes it.

    Args:
        bf16: the value of --bf16; None if it was not given.
        launcher_precision: the choice of `accelerate launch`, which has priority over our default.

    Raises:
        UsageError: the hardware does not compute bfloat16, and --use_cpu was not given.
    """
    if bf16 is None:
        return computes_bf16(use_cpu) and not fp16 and launcher_precision is None
    if bf16 and not (computes_bf16(use_cpu) or has_tpu(use_cpu)):
        if not use_cpu:
            raise UsageError(
                "--bf16: this machine does not compute bfloat16; leave it out, or add --use_cpu, which emulates it"
            )
        logger.warning("--bf16: this CPU emulates bfloat16, which is slower than float32")
    return bf16
