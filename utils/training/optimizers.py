"""Optimizers that transformers does not have."""

import torch


def lamb(args) -> tuple[type[torch.optim.Optimizer], dict]:
    """LAMB with the options of TrainingArguments, for `--optim lamb`.

    As in the paper (You et al. 2020, algorithm 2), weight decay is part of the update whose norm is compared with that
    of the weights.
    """
    from pytorch_optimizer import Lamb  # imported here because it takes a second and few runs need it

    # Without `adam_debias` this library would multiply the learning rate by up to 10 in the first steps.
    options = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return Lamb, {"lr": args.learning_rate, "weight_decouple": False, "adam_debias": True} | options
