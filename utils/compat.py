"""Everything that differs between transformers 4.57 and 5, the two versions that this suite runs on.

Both halves define the same names. When support for 4.57 ends, its half is deleted.
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from accelerate.utils import DistributedDataParallelKwargs
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
    from transformers.integrations.liger import apply_liger_kernel

    # The newest `adapters`, 1.3.0, cannot be imported together with transformers 5.
    NO_ADAPTERS_REASON = (
        f"the library `adapters` needs transformers 4.57.6, this is {transformers.__version__}; in an environment of "
        "its own: pip install -r requirements.txt"
    )

    # Flags of 4.57 that 5 removed, each with what to use in its place.
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
        "--include_tokens_per_second": "leave it out, tokens per second are always reported",
        "--jit_mode_eval": "leave it out, it has no effect in this suite",
        "--past_index": "leave it out, it has no effect in this suite",
        "--use_legacy_prediction_loop": "leave it out, it has no effect in this suite",
    }

    @dataclass
    class CompatTrainingArguments(TrainingArguments):
        """TrainingArguments of 5 with the flags of 4.57 that it removed and that existing commands use."""

        warmup_ratio: float = field(
            default=0.0,
            metadata={
                "help": "Fraction of all steps over which the learning rate rises from 0. --warmup_steps takes "
                "precedence. Default: 0."
            },
        )
        group_by_length: bool = field(
            default=False,
            metadata={
                "help": "Batch examples of similar lengths together, which saves padding. Same as "
                "--train_sampling_strategy group_by_length."
            },
        )
        logging_dir: str | None = field(
            default=None, metadata={"help": "Folder for TensorBoard logs. Default: runs/ in the output folder."}
        )
        save_safetensors: bool = field(
            default=True, metadata={"help": "Weights are always saved as safetensors; false is refused."}
        )

        def __post_init__(self):
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
        """A Trainer whose constructor and preparation differ between the versions."""

        def __init__(self, model, args: TrainingArguments, **kwargs):
            config = vars(model.config)
            use_cache = {name: config[name] for name in config.keys() & {"use_cache"}}  # not all models have it
            super().__init__(model=model, args=args, **kwargs)
            del config["use_cache"]  # 5 turns it off, also in the config.json that is saved
            config |= use_cache
            self.state.epoch = None  # 5 would put "epoch 0" into the results of an evaluation without training
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, TensorBoardCallback):
                    callback.logging_dir = args.logging_dir  # without training, 5 would write to ./runs

        def prepare_for_training(self) -> None:
            """Apply the flags that change the model before it is trained."""
            args = self.args
            if args.use_liger_kernel:
                apply_liger_kernel(self.model, args.liger_kernel_config)
            if args.activation_checkpointing:
                options = dict(args.activation_checkpointing_kwargs or {})
                self.model.activation_checkpointing_enable(
                    every_n_layers=options.pop("every_n_layers", 1),
                    offload=options.pop("offload", False),
                    activation_checkpointing_kwargs=options or None,
                )

    def register_tokenizer_classes() -> None:
        """Nothing to register."""

else:
    NO_ADAPTERS_REASON = None

    FLAGS_OF_OTHER_VERSION = {
        "--activation_checkpointing": "use --gradient_checkpointing",
        "--activation_checkpointing_kwargs": "use --gradient_checkpointing_kwargs",
        "--train_sampling_strategy": "use --group_by_length, or leave it out",
        "--use_cache": "leave it out, nothing is cached in training",
    }
    CompatTrainingArguments = TrainingArguments

    class CompatTrainer(Trainer):
        """A Trainer whose constructor and preparation differ between the versions."""

        def prepare_for_training(self) -> None:
            """Apply the flags that change the model before it is trained, and pass on those about DDP."""
            args = self.args
            if args.gradient_checkpointing:
                self.model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
            options = {
                "find_unused_parameters": args.ddp_find_unused_parameters,
                "bucket_cap_mb": args.ddp_bucket_cap_mb,
                "broadcast_buffers": args.ddp_broadcast_buffers,
            }
            if options["find_unused_parameters"] is None:  # searching for them breaks gradient checkpointing
                options["find_unused_parameters"] = not self.model.is_gradient_checkpointing
            options = {name: value for name, value in options.items() if value is not None}
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(**options)

    class TokenizersBackend(PreTrainedTokenizerFast):
        """5's name for this class, found in tokenizers that 5 saved."""

    def register_tokenizer_classes() -> None:
        """Let AutoTokenizer load tokenizers that 5 saved."""
        AutoTokenizer.register(PretrainedConfig, fast_tokenizer_class=TokenizersBackend, exist_ok=True)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str) -> None:
    """Save it so that both versions load it: with 4.57's name for its class, which 5 knows too."""
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'), encoding="utf-8")
