"""Model FLOPs utilization (MFU): the share of a device's peak that the arithmetic of the model itself takes."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from utils.config.training_arguments import LMTrainingArguments


# Dense bfloat16 or float16 products with float32 sums, in FLOP/s, by a part of the name that CUDA gives a device: the
# first that fits. From NVIDIA's data sheets and architecture papers; half of the figure for sparse matrices.
PEAKS = {
    "B200": 2250e12,  # Blackwell architecture brief, 2024
    "H200": 989e12,  # H200 data sheet, 2024
    "H100 NVL": 835e12,  # H100 data sheet, 2024
    "H100 PCIe": 756e12,  # H100 architecture paper, 2022
    "H100": 989e12,  # the same, SXM5
    "A100": 312e12,  # A100 data sheet, 2020
    "A40": 149.7e12,  # A40 data sheet, 2021
    "A30": 165e12,  # A30 data sheet, 2021
    "A10G": 70e12,  # AWS G5: 35 TFLOP/s in float32, twice that in tensor cores
    "L40S": 362e12,  # L40S data sheet, 2023
    "L4": 121e12,  # L4 data sheet, 2023
    "RTX 4090": 165.2e12,  # Ada architecture paper, 2022
    "RTX 3090": 71e12,  # GA102 architecture paper, 2020
}
FLOAT16_PEAKS = {"V100": 125e12, "T4": 65e12}  # V100 and T4 data sheets; these have no bfloat16


def peak_flops(device_name: str, is_float16: bool) -> float | None:
    """The peak of a device in 16-bit products, in FLOP/s; None if it is not in the table."""
    peaks = PEAKS | FLOAT16_PEAKS if is_float16 else PEAKS
    words = device_name.replace("-", " ")
    return next((peak for name, peak in peaks.items() if f" {name} " in f" {words} "), None)


@dataclass(frozen=True)
class ModelFlops:
    """What forward and backward pass compute, and the most that the devices could compute.

    Attributes:
        per_token: FLOPs of the body, 6 N + 12 L d T: N parameters, L layers of width d, blocks of T tokens.
        per_target: FLOPs of the output layer, 6 times its parameters.
        peak: FLOP/s of all devices.
    """

    per_token: float
    per_target: float
    peak: float

    def utilization(self, tokens: int, targets: int, seconds: float) -> float:
        """The share of the peak; tokens without padding."""
        return (self.per_token * tokens + self.per_target * targets) / (self.peak * seconds)


def model_flops(model: PreTrainedModel, block_size: int, args: LMTrainingArguments) -> ModelFlops | None:
    """The convention of PaLM (Chowdhery et al., 2022) and nanoGPT: attention counts as a whole, embeddings do not.

    None where the peak is not known or the convention does not hold: in float32, for mixtures of experts, of which a
    token passes only some, for XLNet's two streams, and with frozen parameters.
    """
    config, output = model.config, model.get_output_embeddings()
    if args.device.type != "cuda" or not (args.bf16 or args.fp16):
        return None
    peak = peak_flops(torch.cuda.get_device_name(args.device), args.fp16)
    num_layers, width = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    has_experts = any("expert" in name for name in config.to_dict())
    is_frozen = not all(parameter.requires_grad for parameter in model.parameters())
    if not (peak and num_layers and width and output) or has_experts or is_frozen or config.model_type == "xlnet":
        return None
    tables = {module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)} | {output.weight}
    body = sum(parameter.numel() for parameter in model.parameters()) - sum(table.numel() for table in tables)
    per_token = 6 * body + 12 * num_layers * width * block_size
    return ModelFlops(per_token, 6 * output.weight.numel(), peak * args.world_size)
