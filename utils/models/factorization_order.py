"""XLNet's permutation and target masks, made on the model's device."""

import torch
from transformers import PreTrainedModel


def use_factorization_order(model: PreTrainedModel) -> None:
    """Let an XLNet take `order` and `targets`, as PermutationLMCollator makes them, for perm_mask and target_mapping.

    These two hold (batch, length, length) and (batch, targets, length) floats, and are made on the model's device just
    before `forward`. `target_mapping` has a row for each target and not for each token, so that the query stream runs
    for the targets alone; rows of -1 in `targets` are rows of zeros in it.
    """

    def make_masks(module: PreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        kwargs = dict(kwargs)
        order, targets = kwargs.pop("order", None), kwargs.pop("targets", None)
        if order is not None:
            is_hidden = (order >= 0)[:, None, :] & (order[:, :, None] <= order[:, None, :])
            kwargs["perm_mask"] = is_hidden.to(module.dtype)
            places = torch.arange(order.size(1), device=order.device)
            kwargs["target_mapping"] = (targets[:, :, None] == places).to(module.dtype)
        return args, kwargs

    model.register_forward_pre_hook(make_masks, with_kwargs=True)
