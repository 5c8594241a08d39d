"""Flags without effect: each is refused or warned of, and neither with what it goes with."""

import dataclasses
import logging

import pytest
from scripts import SCRIPTS

from utils.config import ineffective_flags
from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.ineffective_flags import REFUSED, WARNED
from utils.config.model_arguments import ModelArguments
from utils.config.objective_arguments import LineByLineArguments, MaskingArguments, PermutationArguments
from utils.config.parser import parse_arguments
from utils.config.sentence_pair_arguments import SentencePairArguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.training.resumption import FIXED_FLAGS, PLACES


CLASSES = (ModelArguments, DataArguments, AdapterArguments, LMTrainingArguments)
SCRATCH = ["--model_type", "gpt2", "--train_tokenizer", "bpe", "--train_file", "a.txt", "--output_dir", "out"]
FINE_TUNED = ["--model_name_or_path", "gpt2", "--train_file", "a.txt", "--output_dir", "out"]
FLAGS = {field.name for arguments in CLASSES for field in dataclasses.fields(arguments)}


def parse(*words) -> None:
    parse_arguments(*CLASSES, args=[str(word) for word in words])


@pytest.fixture
def warnings(caplog):
    def of(*words) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            parse(*words)
        return "\n".join(record.getMessage() for record in caplog.records if "utils" in record.name)

    return of


@pytest.mark.parametrize(
    ("flag", "value", "needs"),
    [
        ("adapter_config", "lora", ["--train_adapter"]),
        ("train_embeddings", "true", ["--train_adapter"]),
        ("merge_adapter", "true", ["--train_adapter"]),
        ("adapter_name", "a", ["--train_adapter"]),
        ("load_lang_adapter", "l", ["--train_adapter"]),
        ("lang_adapter_config", "seq_bn", ["--train_adapter", "--load_lang_adapter", "l"]),
        ("adapter_revision", "r", ["--load_adapter", "a"]),
        ("dataset_revision", "r", None),
        ("dataset_config_name", "c", None),
        ("shuffle_buffer_size", 5, ["--streaming"]),
        ("vocab_size", 100, None),
        ("fp16", "true", None),
        ("gradient_checkpointing_kwargs", '{"use_reentrant": false}', ["--gradient_checkpointing"]),
        ("fsdp_config", '{"xla": false}', None),
    ],
)
def test_refused_without_what_it_goes_with(flag, value, needs, monkeypatch):
    with pytest.raises(UsageError, match=f"--{flag} (goes with|needs) "):
        parse(*FINE_TUNED, f"--{flag}", value)
    if needs is not None:
        monkeypatch.setattr("utils.config.adapter_arguments.NO_ADAPTERS_REASON", None)
        parse(*FINE_TUNED, f"--{flag}", value, *needs)


def test_a_vocabulary_size_goes_with_a_new_tokenizer():
    parse(*SCRATCH, "--vocab_size", 100)


def test_fp16_on_a_gpu(monkeypatch):
    monkeypatch.setattr(ineffective_flags, "has_accelerator", lambda use_cpu: True)
    parse(*FINE_TUNED, "--fp16")


@pytest.mark.parametrize(
    ("words", "expected", "effective"),
    [
        (["--eval_steps", 5], "eval_steps: no effect: it goes with --eval_strategy", ["--eval_strategy", "steps"]),
        (["--eval_delay", 5], "eval_delay: no effect", ["--eval_strategy", "epoch"]),
        (["--save_strategy", "epoch", "--save_steps", 5], "save_steps: no effect", ["--save_strategy", "steps"]),
        (["--save_strategy", "no", "--save_total_limit", 3], "save_total_limit: no", ["--save_strategy", "epoch"]),
        (["--max_steps", 5, "--num_train_epochs", 2], "num_train_epochs: no effect: --max_steps", ["--max_steps", -1]),
        (["--warmup_steps", 5, "--warmup_ratio", 0.1], "warmup_ratio: no effect: --warmup", ["--warmup_steps", 0]),
        (
            ["--lr_scheduler_type", "constant", "--warmup_steps", 5],
            "warmup_steps: no effect: --lr_scheduler_type constant",
            ["--lr_scheduler_type", "linear"],
        ),
        (["--optim", "adafactor", "--adam_beta2", 0.9], "adam_beta2: no effect", ["--optim", "lamb"]),
        (["--greater_is_better", "true"], "greater_is_better: no effect", ["--metric_for_best_model", "loss"]),
        (["--hub_model_id", "me/it"], "hub_model_id: no effect: it goes with --push_to_hub", ["--push_to_hub"]),
        (["--run_name", "first"], "run_name: no effect", None),
        (["--ddp_backend", "gloo"], "ddp_backend: no effect: there is a single process", None),
        (["--dataloader_persistent_workers"], "workers: no effect", ["--dataloader_num_workers", 2]),
        (["--torch_empty_cache_steps", 5], "torch_empty_cache_steps: no effect: there is no GPU", None),
        (["--label_names", "labels"], "label_names: no effect: this suite does not need it", None),
        (["--low_cpu_mem_usage"], "low_cpu_mem_usage: no effect", None),
        (["--do_eval", "--learning_rate", 0.1], "learning_rate: no effect: nothing is trained", ["--do_train"]),
        (["--do_train", "--max_eval_samples", 3], "samples: no effect: nothing is evaluated", ["--do_eval"]),
        (["--train_file", "a.jsonl", "--document_by", "file"], "document_by: no effect", ["--train_file", "a.txt"]),
    ],
)  # fmt: skip
def test_warned_of(words, expected, effective, warnings):
    assert expected in warnings(*FINE_TUNED, *words)
    if effective is not None:
        assert "no effect" not in warnings(*FINE_TUNED, *words, *effective)


def test_the_default_needs_nothing(warnings):
    """A recipe may spell out what holds anyway."""
    assert warnings(*FINE_TUNED, "--adapter_config", "seq_bn", "--vocab_size", 32000, "--fp16", "false") == ""


def test_flags_of_one_reason_share_a_line(warnings):
    lines = warnings(*FINE_TUNED, "--do_eval", "--weight_decay", 0.1, "--max_steps", 5).splitlines()
    assert lines == ["--max_steps, --weight_decay: no effect: nothing is trained"]


def test_the_table_names_flags_that_exist():
    """On one version of transformers or the other; those that are missing here are flags of the other one."""
    named = {flag for flags, *_ in (*REFUSED, *WARNED) for flag in flags}
    missing = named - FLAGS
    assert all(flag in OF_ONE_VERSION for flag in missing), missing


def test_every_flag_of_the_examples_and_the_objective_is_fixed_on_resumption():
    """A new flag is either compared, or named here as one that may change."""
    may_change = {
        "dataset_name", "dataset_config_name", "dataset_revision", "dataset_path", "train_file", "validation_file",
        "pad_to_max_length", "max_eval_samples", "preprocessing_num_workers", "fast_encoder", "overwrite_cache",
        "preprocess_only",
        "is_already_preprocessed", "is_already_masked", "text_column_a", "text_column_b", "sample_tokens",
    }  # fmt: skip
    classes = [DataArguments, MaskingArguments, PermutationArguments, LineByLineArguments, SentencePairArguments]
    classes.append(SCRIPTS["clm"].CausalLMArguments)
    flags = {field.name for arguments in classes for field in dataclasses.fields(arguments)}
    assert flags - {*FIXED_FLAGS} == may_change


def test_flags_compared_on_resumption_exist():
    classes = [LMTrainingArguments, ModelArguments, AdapterArguments, DataArguments, SentencePairArguments]
    classes += [PermutationArguments, LineByLineArguments, SCRIPTS["clm"].CausalLMArguments]
    flags = {field.name for arguments in classes for field in dataclasses.fields(arguments)}
    assert {*FIXED_FLAGS} - flags <= OF_ONE_VERSION | {"add_special_tokens"}
    assert {*PLACES} <= flags


OF_ONE_VERSION = {
    "activation_checkpointing_kwargs", "adafactor", "dataloader_in_order", "dataloader_multiprocessing_context",
    "ddp_static_graph", "enable_jit_checkpoint", "fp16_backend", "fp16_opt_level", "fsdp_min_num_params",
    "fsdp_transformer_layer_cls_to_wrap", "half_precision_backend", "include_inputs_for_metrics",
    "include_tokens_per_second", "jit_mode_eval", "mp_parameters", "past_index", "ray_scope", "tpu_metrics_debug",
    "tpu_num_cores", "train_sampling_strategy", "trackio_bucket_id", "trackio_static_space_id", "use_cache",
    "use_legacy_prediction_loop",
}  # fmt: skip
