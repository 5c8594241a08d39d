"""XLNet's masks for permutation language modeling, built on the model's device."""

import torch
from transformers import PreTrainedModel


def use_factorization_order(model: PreTrainedModel) -> None:
    """Let an XLNet's `forward` take `order` and `targets` instead of `perm_mask` and `target_mapping`.

    Both come from PermutationLMCollator: `order` is int64 (batch, length): the targets sort by it in the
    factorization order, and other tokens have -1. `targets` is int64 (batch, targets): the targets' positions, padded
    with -1. The masks that XLNet expects hold (batch, length, length) and (batch, targets, length) floats, so they are
    built on the model's device just before `forward`. `target_mapping` has a row per target, not per token, so that
    the query stream runs for the targets only; padding in `targets` becomes rows of zeros.

    Source: XLNet (Yang et al., 2019).
    """

    def build_masks(module: PreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        kwargs = dict(kwargs)
        order, targets = kwargs.pop("order", None), kwargs.pop("targets", None)
        if order is not None:
            is_hidden = (order >= 0)[:, None, :] & (order[:, :, None] <= order[:, None, :])
            kwargs["perm_mask"] = is_hidden.to(module.dtype)
            positions = torch.arange(order.size(1), device=order.device)
            kwargs["target_mapping"] = (targets[:, :, None] == positions).to(module.dtype)
        return args, kwargs

    model.register_forward_pre_hook(build_masks, with_kwargs=True)
