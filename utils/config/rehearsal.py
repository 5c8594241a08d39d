"""Settings that go to other libraries are tried when the flags are read, not when the training starts."""

import copy
import inspect
import json
from dataclasses import fields
from pathlib import Path

import torch
from accelerate.utils import DynamoBackend, is_deepspeed_available
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.training_args import OptimizerNames
from transformers.utils import is_liger_kernel_available

from utils.errors import UsageError


NUM_STEPS = 100  # of the schedule that is tried


def try_accelerator_config(accelerator_config: str | dict | None) -> None:
    """Raise UsageError for `--accelerator_config` that is neither JSON nor a file of it, or has unknown settings."""
    settings, flag = accelerator_config, f"--accelerator_config {accelerator_config}"
    if isinstance(settings, str):
        if not settings.startswith("{"):
            if not Path(settings).is_file():
                raise UsageError(f"{flag}: neither JSON nor a file")
            settings = Path(settings).read_text(encoding="utf-8")
        settings = json.loads(settings)
    if isinstance(settings, dict):
        _require_known(flag, settings, [each.name for each in fields(AcceleratorConfig)])


def try_settings(args) -> None:
    """Build optimizer, schedule and reporters with the settings of the flags, on a model of one weight.

    Args:
        args: LMTrainingArguments.

    Raises:
        UsageError: a package is missing, or a setting is unknown, missing or of the wrong kind.
    """
    for name in args.report_to:
        if name != "tensorboard":
            _try(f"--report_to {name}", lambda name=name: get_reporting_integration_callbacks([name])[0]())
    _try_compilation(args.torch_compile_backend, args.torch_compile_mode)
    parameters = inspect.signature(checkpoint).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind == inspect.Parameter.KEYWORD_ONLY]
    _require_known("--gradient_checkpointing_kwargs", args.gradient_checkpointing_kwargs, known)
    if args.do_train:
        _try_optimizer(args)
        _try_schedule(args)


def require_packages(args) -> None:
    """Raise UsageError for a flag whose package is missing."""
    if args.deepspeed and not is_deepspeed_available():
        raise UsageError("--deepspeed: the package is missing; pip install deepspeed")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise UsageError("--use_liger_kernel: the package is missing; pip install liger-kernel")


def require_optimizer(name: str) -> None:
    """Raise UsageError for an optimizer that transformers does not have."""
    names = [optimizer.value for optimizer in OptimizerNames]
    if str(getattr(name, "value", name)) not in names:
        raise UsageError(f"--optim {name}: choose one of {', '.join([*names, 'lamb'])}")


def _try_optimizer(args) -> None:
    if args.optim == "lamb":
        return
    optim_args = args.optim_args or ""
    pairs = [pair.split("=") for pair in optim_args.replace(" ", "").split(",") if pair]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"--optim_args {optim_args}: give settings as name=value, separated by commas")
    flag = f"--optim {args.optim.value}" + (f" --optim_args {optim_args}" if optim_args else "")
    model = nn.Linear(1, 1, bias=False)
    optimizer_class, options = _try(flag, lambda: Trainer.get_optimizer_cls_and_kwargs(args, model))
    for name, value in pairs:
        others = copy.copy(args)
        others.optim_args = ",".join("=".join(pair) for pair in pairs if pair[0] != name)
        if Trainer.get_optimizer_cls_and_kwargs(others, model) == (optimizer_class, options):
            raise UsageError(f"--optim_args {name}={value} has no effect on {args.optim.value}: leave it out")
    if not args.optim_target_modules:  # such an optimizer needs the modules of the model
        _try(flag, lambda: optimizer_class(model.parameters(), **options))


def _try_schedule(args) -> None:
    kind = args.lr_scheduler_type.value
    flag = f"--lr_scheduler_type {kind}"
    if args.lr_scheduler_kwargs:
        flag += f" --lr_scheduler_kwargs {args.lr_scheduler_kwargs}"
        if not isinstance(args.lr_scheduler_kwargs, dict):
            raise UsageError(f'{flag}: give JSON, such as {{"num_cycles": 2}}')
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=args.learning_rate)

    def run() -> None:
        schedule = get_scheduler(
            kind, optimizer, args.get_warmup_steps(NUM_STEPS), NUM_STEPS, args.lr_scheduler_kwargs
        )
        if kind != "reduce_lr_on_plateau":
            optimizer.step()
            schedule.step()

    _try(flag, run)


def _try_compilation(backend: str | None, mode: str | None) -> None:
    backends = [member.value.lower() for member in DynamoBackend]
    if backend is not None and backend.lower() not in backends:
        raise UsageError(f"--torch_compile_backend {backend}: choose one of {', '.join(backends)}")
    if mode is not None:
        modes = ["default", *torch._inductor.list_mode_options()]
        if mode not in modes:
            raise UsageError(f"--torch_compile_mode {mode}: choose one of {', '.join(dict.fromkeys(modes))}")


def _require_known(flag: str, settings: dict | None, known: list[str]) -> None:
    if settings is not None and not isinstance(settings, dict):
        raise UsageError(f'{flag}: give JSON, such as {{"{known[0]}": ...}}')
    for name in settings or ():
        if name not in known:
            raise UsageError(f"{flag}: there is no setting {name}; there are {', '.join(known)}")


def _try(flag: str, build):
    try:
        return build()
    except Exception as error:  # of many types: each library has its own for missing packages and wrong settings
        raise UsageError(f"{flag}: {' '.join(str(error).split())}") from error
