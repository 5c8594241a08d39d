"""What differs between the two lines of transformers that this suite runs on, 4.57 and 5; and nothing else does.

Each half has the same names. The day line 4.57 is given up, its half is deleted.
"""

import contextlib
import math
import os
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback


TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5

if TRANSFORMERS_5:
    from transformers.integrations.integration_utils import default_logdir

    # The newest `adapters`, 1.3.0, cannot be imported beside transformers 5.
    NO_ADAPTERS_REASON = (
        f"the library `adapters` needs transformers 4.57.6, this is {transformers.__version__}; in an environment of "
        "its own: pip install -r requirements.txt"
    )

    # Flags of 4.57 that 5 has no more, and no other way to say the same in this suite than the one named here.
    FLAGS_OF_OTHER_VERSION = {
        "--no_cuda": "use --use_cpu",
        "--use_mps_device": "leave it out, mps is used where there is one",
        "--per_gpu_train_batch_size": "use --per_device_train_batch_size",
        "--per_gpu_eval_batch_size": "use --per_device_eval_batch_size",
        "--adafactor": "use --optim adafactor",
        "--torchdynamo": "use --torch_compile_backend",
        "--fp16_backend": "leave it out, it is torch's own",
        "--half_precision_backend": "leave it out, it is torch's own",
        "--fp16_opt_level": "leave it out, it was apex's",
        "--push_to_hub_model_id": "use --hub_model_id",
        "--push_to_hub_organization": "use --hub_model_id organization/name",
        "--push_to_hub_token": "use --hub_token",
        "--fsdp_min_num_params": "use --fsdp_config",
        "--fsdp_transformer_layer_cls_to_wrap": "use --fsdp_config",
        "--tpu_num_cores": "leave it out, the launcher says so",
        "--tpu_metrics_debug": "leave it out",
        "--mp_parameters": "leave it out",
        "--ray_scope": "leave it out",
        "--include_inputs_for_metrics": "leave it out, it has no effect in this suite",
        "--include_tokens_per_second": "leave it out, tokens a second are always there",
        "--jit_mode_eval": "leave it out, it has no effect in this suite",
        "--past_index": "leave it out, it has no effect in this suite",
        "--use_legacy_prediction_loop": "leave it out, it has no effect in this suite",
    }

    @dataclass
    class CompatTrainingArguments(TrainingArguments):
        """5 has lost these flags, which known commands have, and mostly has another way to say the same."""

        warmup_ratio: float = field(
            default=0.0,
            metadata={
                "help": "Share of all steps in which the learning rate rises from 0. --warmup_steps goes before it."
            },
        )
        group_by_length: bool = field(
            default=False,
            metadata={
                "help": "Put examples of similar lengths into one batch, which saves padding; the same as "
                "--train_sampling_strategy group_by_length."
            },
        )
        logging_dir: str | None = field(
            default=None, metadata={"help": "Where TensorBoard's logs go. Default: in runs/ of the output folder."}
        )
        save_safetensors: bool = field(
            default=True, metadata={"help": "Weights are always saved as safetensors; false is refused."}
        )

        def __post_init__(self):
            if self.fsdp_config is not None and not self.fsdp:
                raise ValueError("--fsdp_config goes with --fsdp")  # 5 would not even read it
            super().__post_init__()
            if not 0 <= self.warmup_ratio <= 1:
                raise ValueError("warmup_ratio must lie in range [0,1]")
            if self.group_by_length:
                self.train_sampling_strategy = "group_by_length"
            self.group_by_length = self.train_sampling_strategy == "group_by_length"
            self.logging_dir = os.path.expanduser(self.logging_dir or os.path.join(self.output_dir, default_logdir()))

        def get_warmup_steps(self, num_training_steps: int) -> int:
            if self.warmup_steps == 0:
                return math.ceil(num_training_steps * self.warmup_ratio)
            return super().get_warmup_steps(num_training_steps)

    class CompatTrainer(Trainer):
        """5 has functions where 4.57 has methods of Trainer, and has defaults that this suite does without."""

        def __init__(self, model, args: TrainingArguments, **kwargs):
            config = vars(model.config)
            of_cache = {name: config[name] for name in config.keys() & {"use_cache"}}  # not all models have one
            super().__init__(model=model, args=args, **kwargs)
            del config["use_cache"]  # 5 switches it off, also in the config.json that is saved
            config |= of_cache
            self.state.epoch = None  # 5 would put "epoch 0" into the results of an evaluation alone
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, TensorBoardCallback):
                    callback.logging_dir = args.logging_dir  # 5 without a training: runs/ of the current folder

        def train(self, *args, **kwargs):
            """With the methods that LMTrainer overrides in the place of the functions that 5 has for them."""
            align = {"align_special_tokens": lambda model, processing_class: self._align_special_tokens()}
            sort = {"sort_checkpoints": lambda output_dir, *args, **kwargs: self._sorted_checkpoints(output_dir)}
            with _replaced(transformers.trainer, align | sort), _replaced(transformers.trainer_utils, sort):
                return super().train(*args, **kwargs)

        def _run_epoch(self, *, epoch: int, train_dataloader, **kwargs):
            """5 skips what a resumed run has seen before it tells the epoch, which then misses the data set."""
            if hasattr(train_dataloader, "set_epoch"):  # a stream counts its epochs itself
                train_dataloader.set_epoch(epoch)
            super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    @contextlib.contextmanager
    def _replaced(module: types.ModuleType, functions: dict[str, Callable]) -> Iterator[None]:
        originals = {name: getattr(module, name) for name in functions}
        vars(module).update(functions)
        try:
            yield
        finally:
            vars(module).update(originals)

else:
    NO_ADAPTERS_REASON = None

    FLAGS_OF_OTHER_VERSION = {
        "--activation_checkpointing": "use --gradient_checkpointing",
        "--activation_checkpointing_kwargs": "use --gradient_checkpointing_kwargs",
        "--train_sampling_strategy": "use --group_by_length, or leave it out",
        "--use_cache": "leave it out, nothing is cached in training",
    }
    CompatTrainingArguments = TrainingArguments
    CompatTrainer = Trainer

    class TokenizersBackend(PreTrainedTokenizerFast):
        """The name that 5 has, and saves, for this class."""

    AutoTokenizer.register(PretrainedConfig, fast_tokenizer_class=TokenizersBackend)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str) -> None:
    """Save it so that transformers of either line loads it: under 4.57's name for its class, which 5 knows too."""
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'), encoding="utf-8")
