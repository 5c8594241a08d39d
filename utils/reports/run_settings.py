"""What a training run really used, as the objects that ran say it, and not the flags."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.training.trainer import LMTrainer


NOT_SETTINGS = {"params", "param_names", "lr", "initial_lr"}  # of an optimizer's groups


def run_settings(trainer: LMTrainer) -> dict:
    """The hyperparameters that all objectives have, by name, for the model card."""
    args, state = trainer.args, trainer.state
    stopped = state.global_step < state.max_steps
    settings = {
        "block_size": trainer.train_dataset.block_size,
        "steps": f"{state.global_step} of {state.max_steps}" if stopped else state.global_step,
        "epochs": state.epoch,
    }
    if trainer.best_state is not None:
        settings["weights"] = f"those of step {trainer.best_state.global_step}"
    return settings | {
        "batch_size": f"{trainer.batch_size} x {args.gradient_accumulation_steps} x {args.world_size} (examples, "
        "accumulation steps, processes)",
        **optimizer_settings(trainer.optimizer),
        **schedule_settings(trainer.lr_scheduler),
        "max_grad_norm": args.max_grad_norm,
        "precision": precision(trainer),
        "seed": args.seed,
    }


def optimizer_settings(optimizer: Optimizer) -> dict:
    """The class of an optimizer, its learning rate before the schedule, and its other settings that are not off.

    A setting with several values has them in the order of the optimizer's groups of parameters.
    """
    while hasattr(optimizer, "optimizer"):  # wrapped by accelerate
        optimizer = optimizer.optimizer
    groups = optimizer.param_groups
    default_rate = optimizer.defaults.get("lr")
    settings = {
        "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
        "learning_rate": _distinct([group.get("initial_lr", default_rate) for group in groups]),
    }
    for name in groups[0]:
        values = [group.get(name) for group in groups]
        if name not in NOT_SETTINGS and any(value is not None and value is not False for value in values):
            settings[name] = _distinct(values)
    return settings


def schedule_settings(scheduler: LRScheduler) -> dict:
    """The name of a learning rate schedule: its class, or for one of transformers' the function that computes it."""
    name = f"{type(scheduler).__module__}.{type(scheduler).__qualname__}"
    schedule = getattr(scheduler, "lr_lambdas", [None])[0]
    function = getattr(schedule, "func", schedule)  # most are a functools.partial of one
    if getattr(function, "__module__", None) != "transformers.optimization":
        return {"learning_rate_schedule": name}
    name = function.__name__.removeprefix("_get_").removesuffix("_lambda").removesuffix("_lr")
    keywords = getattr(schedule, "keywords", {})
    warmup = {"warmup_steps": keywords["num_warmup_steps"]} if "num_warmup_steps" in keywords else {}
    return {"learning_rate_schedule": "constant" if name == "<lambda>" else name} | warmup


def precision(trainer: LMTrainer) -> str:
    """In what the model computed in training, and the type of its weights."""
    accelerator = trainer.accelerator
    weights = str(trainer.model.dtype).removeprefix("torch.")
    mixed = accelerator.native_amp or trainer.is_sharded
    if mixed and accelerator.mixed_precision != "no":
        return f"mixed {accelerator.mixed_precision}, weights in {weights}"
    return weights


def _distinct(values: list):
    """The value, if all are equal; otherwise all different ones, in order."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else ", ".join(map(str, distinct))
