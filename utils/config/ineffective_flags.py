"""Flags that have no effect, or only together with others: one table, checked when the command line is read."""

import logging
from pathlib import Path
from types import SimpleNamespace

from utils.config.precision import has_accelerator
from utils.environment import world_size
from utils.errors import UsageError


logger = logging.getLogger(__name__)

STRUCTURED_TEXT = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
COMPRESSED = ("", ".gz", ".zst", ".xz", ".bz2")
ADAPTIVE_OPTIMIZERS = ("adam", "adem", "lamb", "lion", "galore", "apollo")  # parts of names: these have Adam's betas
LOW_RANK_OPTIMIZERS = ("galore", "apollo")

# Rows of flags, what they need or why they have no effect, and from the values of all flags, whether they have one.
# These are refused: who gives them wants something that would not happen.
REFUSED = (
    (
        ("adapter_config", "train_embeddings", "merge_adapter", "load_lang_adapter", "adapter_name"),
        "goes with --train_adapter",
        lambda args: args.train_adapter,
    ),
    (("adapter_revision",), "goes with --load_adapter", lambda args: args.load_adapter),
    (("lang_adapter_config",), "goes with --load_lang_adapter", lambda args: args.load_lang_adapter),
    (("dataset_config_name", "dataset_revision"), "goes with --dataset_name", lambda args: args.dataset_name),
    (
        ("shuffle_buffer_size",),
        "goes with --streaming: without it all blocks are shuffled",
        lambda args: args.streaming,
    ),
    (("vocab_size",), "goes with --train_tokenizer", lambda args: args.train_tokenizer),
    (
        ("fp16",),
        "needs a GPU: a CPU trains in float32, or in bfloat16 with --bf16",
        lambda args: has_accelerator(args.use_cpu),
    ),
    (
        ("gradient_checkpointing_kwargs",),
        "goes with --gradient_checkpointing",
        lambda args: args.gradient_checkpointing,
    ),
    (
        ("activation_checkpointing_kwargs",),
        "goes with --activation_checkpointing",
        lambda args: args.activation_checkpointing,
    ),
    (("liger_kernel_config",), "goes with --use_liger_kernel", lambda args: args.use_liger_kernel),
    (
        ("fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"),
        "goes with --fsdp",
        lambda args: args.fsdp,
    ),
)  # fmt: skip

# These are warned of, since old commands contain them, or since one file of flags serves several runs.
WARNED = (
    # Logits that are never kept, numbers that are exact here anyway, parts of transformers' own training loop, and
    # launchers that this suite does not know.
    (
        (
            "batch_eval_metrics", "dataloader_in_order", "dataloader_multiprocessing_context", "do_predict",
            "enable_jit_checkpoint", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object",
            "fp16_backend", "fp16_opt_level", "half_precision_backend", "include_for_metrics",
            "include_inputs_for_metrics", "include_num_input_tokens_seen", "include_tokens_per_second",
            "jit_mode_eval", "label_names", "length_column_name", "logging_nan_inf_filter", "low_cpu_mem_usage",
            "mp_parameters", "past_index", "prediction_loss_only", "ray_scope", "remove_unused_columns",
            "skip_memory_metrics", "tpu_metrics_debug", "tpu_num_cores", "use_cache", "use_legacy_prediction_loop",
        ),
        "this suite does not need it",
        None,
    ),
    (
        (
            "num_train_epochs", "max_steps", "max_train_hours", "max_train_samples", "learning_rate",
            "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "optim", "optim_args",
            "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "label_smoothing_factor",
            "neftune_noise_alpha",
            "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
            "auto_find_batch_size", "group_by_length", "dataloader_drop_last", "bf16", "fp16", "save_strategy",
            "save_steps", "save_total_limit", "save_only_model", "logging_strategy", "logging_steps",
            "logging_first_step", "eval_on_start", "load_best_model_at_end", "metric_for_best_model",
            "ignore_data_skip", "streaming",
        ),
        "nothing is trained",
        lambda args: args.do_train,
    ),
    (
        (
            "validation_file", "validation_split_percentage", "max_eval_samples", "per_device_eval_batch_size",
            "bf16_full_eval", "fp16_full_eval", "metric",
        ),
        "nothing is evaluated",
        lambda args: args.do_eval,
    ),
    (("num_train_epochs",), "--max_steps sets the length of the training", lambda args: args.max_steps <= 0),
    (("warmup_ratio",), "--warmup_steps has priority", lambda args: not args.warmup_steps),
    (
        ("warmup_steps", "warmup_ratio"),
        "--lr_scheduler_type constant has no warmup (constant_with_warmup has)",
        lambda args: args.lr_scheduler_type != "constant",
    ),
    (
        ("adam_beta1", "adam_beta2", "adam_epsilon"),
        "the optimizer is not a kind of Adam",
        lambda args: _is_any_of(ADAPTIVE_OPTIMIZERS, args.optim),
    ),
    (
        ("optim_target_modules",),
        "it goes with --optim galore_* and apollo_*",
        lambda args: _is_any_of(LOW_RANK_OPTIMIZERS, args.optim),
    ),
    (("eval_steps",), "it goes with --eval_strategy steps", lambda args: args.eval_strategy == "steps"),
    (("eval_delay",), "it goes with --eval_strategy steps or epoch", lambda args: args.eval_strategy != "no"),
    (("save_steps",), "it goes with --save_strategy steps", lambda args: args.save_strategy == "steps"),
    (
        ("save_total_limit", "save_only_model", "save_on_each_node"),
        "no checkpoint is saved with --save_strategy no",
        lambda args: args.save_strategy != "no",
    ),
    (("logging_steps",), "it goes with --logging_strategy steps", lambda args: args.logging_strategy == "steps"),
    (("greater_is_better",), "it goes with --metric_for_best_model", lambda args: args.metric_for_best_model),
    (
        ("dataloader_prefetch_factor", "dataloader_persistent_workers"),
        "it goes with --dataloader_num_workers",
        lambda args: args.dataloader_num_workers,
    ),
    (
        ("dataloader_pin_memory", "torch_empty_cache_steps"),
        "there is no GPU",
        lambda args: has_accelerator(args.use_cpu),
    ),
    (
        (
            "ddp_backend", "ddp_timeout", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
            "ddp_static_graph",
        ),
        "there is a single process",
        lambda args: world_size() > 1,
    ),
    (
        (
            "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision",
        ),
        "it goes with --push_to_hub",
        lambda args: args.push_to_hub,
    ),
    (
        ("run_name", "project"),
        "TensorBoard has no such name; it goes with --report_to wandb, trackio, ...",
        lambda args: {*args.report_to} - {"tensorboard"},
    ),
    (
        ("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "it goes with --report_to trackio",
        lambda args: "trackio" in args.report_to,
    ),
    (("logging_dir",), "it goes with --report_to", lambda args: args.report_to),
    (
        ("model_revision",),
        "it is about the Hub, and all names are folders here",
        lambda args: any(
            name and not Path(name).exists()
            for name in (args.model_name_or_path, args.config_name, args.tokenizer_name)
        ),
    ),
    (("use_fast_tokenizer",), "a new tokenizer is always a fast one", lambda args: not args.train_tokenizer),
    (
        ("document_by", "keep_linebreaks"),
        "it is about .txt files",
        lambda args: _may_read_lines(args.train_file, args.validation_file),
    ),
)  # fmt: skip


def check_effects(given: dict, defaults: dict, values: SimpleNamespace) -> None:
    """Refuse flags that were given without what they go with; warn of others without effect, a line for each reason.

    A flag whose given value is its default has the effect that was asked for.

    Args:
        given: the flags of the command line.
        defaults: of all flags.
        values: of all flags, as the dataclasses hold them.

    Raises:
        UsageError: a flag that makes no sense without another one.
    """
    warned = set()
    for flags, reason, has_effect in (*REFUSED, *WARNED):
        idle = [flag for flag in flags if flag in given and given[flag] not in (defaults.get(flag), "", None)]
        idle = [flag for flag in idle if flag not in warned]
        if not idle or (has_effect is not None and has_effect(values)):
            continue
        if (flags, reason, has_effect) in REFUSED:
            raise UsageError(f"--{idle[0]} {reason}")
        warned |= {*idle}
        logger.warning("%s: no effect: %s", ", ".join(f"--{flag}" for flag in idle), reason)


def _is_any_of(kinds: tuple[str, ...], optimizer: str) -> bool:
    return any(kind in str(getattr(optimizer, "value", optimizer)) for kind in kinds)


def _may_read_lines(*paths: list[str] | None) -> bool:
    """Whether any of the paths may be, or contain, a .txt file."""
    structured = tuple(f"{kind}{compression}" for kind in STRUCTURED_TEXT for compression in COMPRESSED)
    return any(not path.endswith(structured) for some in paths for path in some or ())
