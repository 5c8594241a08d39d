"""What a run must have in common with the checkpoint that it resumes from, and what may differ."""

import json
import logging
from pathlib import Path

import yaml
from transformers import PretrainedConfig, Trainer

from utils.config.parser import RunArguments
from utils.errors import UsageError
from utils.training.checkpoint_files import read_metadata


logger = logging.getLogger(__name__)

RUN_ARGS = "run_args.yaml"  # in each checkpoint and in the output folder: the flags that were given

# Flags that decide which weights a training ends with: a run that resumes must give them the same values. The text,
# the global batch size and the model are compared as the trainer finds them, whatever flags they come from. All other
# flags may change. --max_steps and --num_train_epochs then move the end of the schedule.
FIXED_FLAGS = (
    # model and adapter
    "model_type", "config_overrides", "train_tokenizer", "vocab_size",
    "train_adapter", "adapter_config", "train_embeddings", "lang_adapter_config",
    # examples
    "block_size", "document_by", "text_column", "keep_linebreaks", "line_by_line", "append_eos", "add_special_tokens",
    "validation_split_percentage", "max_train_samples", "segment_by", "sentence_language", "streaming",
    "shuffle_buffer_size", "group_by_length", "train_sampling_strategy", "dataloader_drop_last",
    # objective
    "mlm_probability", "mask_replace_prob", "random_replace_prob", "whole_word_mask", "plm_probability",
    "max_span_length", "sentence_task", "nsp_probability", "short_seq_probability", "label_smoothing_factor",
    # optimizer and schedule
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "optim", "optim_args",
    "optim_target_modules", "adafactor", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm",
    "neftune_noise_alpha", "seed", "data_seed",
)  # fmt: skip

# Flags that say where a run is, not what it does: no change of them is worth a line.
PLACES = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint")

# Keys of a configuration that differ between versions and folders, not between models.
NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


def check_flags(checkpoint: Path, run_args: RunArguments) -> None:
    """Compare the flags with those of the run that wrote the checkpoint, and log what is different.

    A checkpoint of another program does not have them; then nothing is compared.

    Raises:
        UsageError: a flag that decides what is learned has another value, so this would continue another run.
    """
    path = checkpoint / RUN_ARGS
    if not path.is_file():
        return
    given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    changed = {}
    for flag in sorted({*given, *run_args} - {*PLACES}):
        values = tuple(args.get(flag, run_args.defaults.get(flag)) for args in (given, run_args))
        if values[0] != values[1]:
            changed[flag] = values
    fixed = [flag for flag in changed if flag in FIXED_FLAGS]
    if fixed:
        then, now = (", ".join(_as_text(flag, changed[flag][time]) for flag in fixed) for time in (0, 1))
        raise UsageError(
            f"{checkpoint} was trained with {then}, this run has {now}; to continue it, give the same; for a new run, "
            f"choose another --output_dir (and --model_name_or_path {checkpoint} for its weights), or "
            "--overwrite_output_dir"
        )
    if changed:
        differences = ", ".join(f"{flag} {old} -> {new}" for flag, (old, new) in changed.items())
        logger.info("resuming with other flags than before: %s", differences)


def _as_text(flag: str, value) -> str:
    return f"no --{flag}" if value is None else f"--{flag} {value}"


def run_metadata(trainer: Trainer) -> dict:
    """What a checkpoint records of the run, besides its flags: what determines the examples that are left."""
    dataset = trainer.train_dataset
    metadata = {
        "global_batch_size": trainer.batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size,
        "seed": trainer.order_seed,
        "block_size": dataset.block_size,
        "kind_of_examples": type(dataset).__name__,
    }
    if dataset.num_examples is not None:  # a stream compares its text itself; see BlockStream.load_state
        metadata |= {"examples": dataset.num_examples, "tokens": dataset.checksum}
    return metadata


def check_same_run(checkpoint: Path, metadata: dict, config: PretrainedConfig) -> None:
    """Refuse to resume from a checkpoint of another model, or of a run with other examples or another order of them.

    Args:
        metadata: of this run, from `run_metadata`.
        config: of this run's model.

    Raises:
        UsageError: something is different; the message names it.
    """
    saved = read_metadata(checkpoint)
    way_out = (
        f"give the same text and flags, or start from its weights with --model_name_or_path {checkpoint} and another "
        "--output_dir"
    )
    for name, value in metadata.items():
        if saved.get(name, value) == value:
            continue
        if name == "tokens":
            raise UsageError(f"{checkpoint} was trained on another text, or on other tokens of it; {way_out}")
        raise UsageError(
            f"{checkpoint} is from a run with {name.replace('_', ' ')} {saved[name]}, this one has {value}: it would "
            f"not continue with the examples that are left; {way_out}"
        )
    path = checkpoint / "config.json"
    if path.is_file():  # an adapter has none
        _check_same_model(path, config)


def _check_same_model(path: Path, config: PretrainedConfig) -> None:
    saved, this = json.loads(path.read_text(encoding="utf-8")), config.to_dict()
    if saved["model_type"] == config.model_type:
        saved = config.from_json_file(path).to_dict()  # with the defaults of what the file leaves out
    for name in ["model_type", *sorted(saved.keys() & this.keys() - {*NOT_OF_THE_MODEL})]:
        if saved[name] != this[name]:
            raise UsageError(
                f"{path.parent} has another model: {name} is {saved[name]} there and {this[name]} here; give the same "
                "model, or another --output_dir"
            )
