"""The four scripts, each with a small model, for the tests of what they have in common."""

from pathlib import Path

import torch
from conftest import MASKED_SIZES, make_lines, make_masked_model, make_model, make_xlnet
from transformers import AutoConfig, AutoModelForPreTraining

import run_clm
import run_mlm
import run_plm
import run_pretraining
from utils.tokens.tokenizer_training import train_tokenizer


SCRIPTS = {"clm": run_clm, "mlm": run_mlm, "plm": run_plm, "pretraining": run_pretraining}

# A new model of one layer with its own tokenizer; with dropout, whose random numbers must continue after a resumption.
BERT = [
    "--model_type", "bert", "--train_tokenizer", "wordpiece", "--vocab_size", 100,
    "--config_overrides", "num_hidden_layers=1,hidden_size=16,intermediate_size=32,num_attention_heads=2",
]  # fmt: skip
FROM_SCRATCH = {
    "clm": [
        "--model_type", "gpt2", "--train_tokenizer", "bpe", "--vocab_size", 300,
        "--config_overrides", "n_layer=1,n_embd=16,n_head=2,n_positions=64",
    ],
    "mlm": BERT,
    "plm": [
        "--model_type", "xlnet", "--train_tokenizer", "unigram", "--vocab_size", 100,
        "--config_overrides", "n_layer=1,d_model=16,n_head=2,d_inner=32",
    ],
    "pretraining": BERT,
}  # fmt: skip
ADAPTER = ["--train_adapter", "--adapter_config", "seq_bn", "--adapter_name", "a"]


def write_documents(path: Path, num_lines: int, seed: int = 0, lines_per_document: int = 5) -> Path:
    """Documents with a sentence per line and an empty line between them, as run_pretraining wants them."""
    lines = make_lines(num_lines, seed)
    starts = range(0, num_lines, lines_per_document)
    path.write_text("\n\n".join("\n".join(lines[start : start + lines_per_document]) for start in starts) + "\n")
    return path


def save_checkpoints(folder: Path) -> None:
    """In `folder / name` of each script, a random model of two layers without dropout and its tokenizer."""
    for name in SCRIPTS:
        tokenizer = train_tokenizer(
            "bpe", [make_lines(200)], 300, add_special_tokens=name != "clm", for_pairs=name == "pretraining"
        )
        if name == "clm":
            model = make_model("gpt2", len(tokenizer))
        elif name == "mlm":
            model = make_masked_model("bert", len(tokenizer))
        elif name == "plm":
            model = make_xlnet(len(tokenizer))
        else:
            torch.manual_seed(0)
            config = AutoConfig.for_model("bert", **MASKED_SIZES, vocab_size=len(tokenizer))
            model = AutoModelForPreTraining.from_config(config)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def flags_of(folder: Path, name: str, *more) -> list[str]:
    """Two epochs of 13 examples with the checkpoint in `folder / name`, and an evaluation.

    Plain gradient descent without clipping, so that the weights change by the gradient; and 13 examples fill neither
    the last update nor each process's part of it.
    """
    flags = [
        "--model_name_or_path", folder / name, "--train_file", folder / "train.txt", "--validation_file",
        folder / "validation.txt", "--max_seq_length", 32, "--max_train_samples", 13, "--num_train_epochs", 2,
        "--learning_rate", "1e-2", "--optim", "sgd", "--max_grad_norm", 0, "--per_device_eval_batch_size", 7,
        "--logging_steps", 1, "--do_train", "--do_eval", "--use_cpu", "--bf16", "false", "--report_to", "none",
        "--disable_tqdm", "true", "--save_strategy", "no", "--cache_dir", folder / "cache", *more,
    ]  # fmt: skip
    return [str(flag) for flag in flags]
