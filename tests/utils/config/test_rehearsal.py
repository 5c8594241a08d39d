"""Settings that go to other libraries fail when the flags are read, with the flag in the message."""

import pytest

from utils.compat import TRANSFORMERS_5
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({"optim": "nonsense"}, ["--optim nonsense", "adamw_torch", "lamb"]),
        ({"optim": "adamw_8bit"}, ["--optim adamw_8bit", "bitsandbytes"]),
        ({"optim": "galore_adamw"}, ["--optim galore_adamw", "galore_torch"]),
        ({"optim": "schedule_free_adamw"}, ["--optim schedule_free_adamw", "schedulefree"]),
        ({"optim_args": "nonsense"}, ["--optim_args nonsense", "name=value"]),
        ({"optim_args": "a=1"}, ["--optim_args a=1", "no effect on adamw"]),
        ({"lr_scheduler_type": "warmup_stable_decay"}, ["--lr_scheduler_type warmup_stable_decay", "num_decay_steps"]),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ["--lr_scheduler_type cosine_with_min_lr", "min_lr"]),
        ({"lr_scheduler_kwargs": '{"a": 1}'}, ["--lr_scheduler_type linear --lr_scheduler_kwargs {'a': 1}", "'a'"]),
        ({"lr_scheduler_kwargs": "nonsense"}, ["--lr_scheduler_kwargs nonsense", "give JSON"]),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "x"}},
            ["--lr_scheduler_type polynomial", "power"],
        ),
        ({"gradient_checkpointing_kwargs": {"a": 1}}, ["--gradient_checkpointing_kwargs", "a", "use_reentrant"]),
        ({"accelerator_config": {"a": 1}}, ["--accelerator_config", "no setting a", "split_batches"]),
        ({"accelerator_config": "nonsense"}, ["--accelerator_config nonsense: neither JSON nor a file"]),
        ({"torch_compile_backend": "nonsense"}, ["--torch_compile_backend nonsense", "inductor"]),
        ({"torch_compile_mode": "nonsense"}, ["--torch_compile_mode nonsense", "max-autotune"]),
        ({"report_to": ["wandb"]}, ["--report_to wandb", "pip install wandb"]),
        ({"report_to": ["nonsense"]}, ["--report_to nonsense", "tensorboard"]),
        ({"deepspeed": "x.json"}, ["--deepspeed", "pip install deepspeed"]),
        ({"use_liger_kernel": True}, ["--use_liger_kernel", "pip install liger-kernel"]),
        ({"output_dir": ""}, ["--output_dir is empty"]),
    ],
)
def test_wrong_settings(flags, parts):
    with pytest.raises(UsageError) as error:
        LMTrainingArguments(**({"report_to": []} | flags))
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        {"optim": "adafactor"},
        {"optim": "lamb"},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": '{"num_decay_steps": 5}'},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        {"lr_scheduler_type": "polynomial", "warmup_ratio": 0.1},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"accelerator_config": {"even_batches": False}},
        {"torch_compile_backend": "eager"},
        {"do_eval": True, "lr_scheduler_type": "warmup_stable_decay"},
    ],
)
def test_right_settings(flags):
    LMTrainingArguments(report_to=[], **flags)


@pytest.mark.skipif(not TRANSFORMERS_5, reason="transformers 4.57 has no optimizer with such settings and no package")
def test_settings_of_an_optimizer():
    LMTrainingArguments(report_to=[], optim="sgd", optim_args="momentum=0.9, nesterov=True")
    with pytest.raises(UsageError, match="--optim_args momentun=0.9"):
        LMTrainingArguments(report_to=[], optim="sgd", optim_args="momentun=0.9")
