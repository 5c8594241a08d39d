"""python -m benchmarks.train_causal [--n_embd 256] [--vocab_size 50257] [--block_size 256] [--batch_size 8]

Compares training and evaluating a GPT-2 with LMTrainer, as run_clm.py does, with the plain Trainer and model. Both
train in float32, without dropout, from the same random weights on the same random tokens in the same order.

Prints the time per step and tokens per second of both. Exits with 1 if their losses or accuracies differ.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, EvalPrediction, GPT2Config, Trainer, TrainingArguments

from benchmarks.comparison import (
    Comparison,
    add_flags,
    check_flags,
    compare_training,
    make_parser,
    plain_trainer,
    training_options,
)
from benchmarks.measurement import interleaved, print_ratio, silence_libraries, synchronize, verdict
from benchmarks.models import add_baseline_adapter, add_our_adapter, model_builders
from benchmarks.synthetic import CAUSAL_SPECIAL_TOKENS, causal_dataset, numbered_tokenizer, random_tokens
from utils.config.training_arguments import LMTrainingArguments
from utils.examples.causal_collator import CausalLMCollator
from utils.examples.packed import PackedBlocks
from utils.models.attention import use_maskless_attention
from utils.models.losses import use_summed_loss
from utils.training.trainer import LMTrainer


DEFAULTS = {
    "n_layer": 4, "n_embd": 256, "vocab_size": 50257, "block_size": 256, "batch_size": 8, "steps": 12,
    "warm_up_steps": 3, "eval_blocks": 64, "repetitions": 5, "learning_rate": 1e-3, "seed": 0,
}  # fmt: skip
TARGET_TRAINING_RATIO = 1.0
TARGET_EVALUATION_RATIO = 1.3
LOSS_TOLERANCE = 1e-4  # relative; a wrong scale, a lost token or another order changes the loss far more
ACCURACY_TOLERANCE = 1e-3  # rounding may decide between two tokens that are equally likely


def main() -> int:
    parser = make_parser(__doc__)
    add_flags(parser, DEFAULTS)
    flags = parser.parse_args()
    check_flags(parser, flags)
    check_causal_flags(parser, flags)
    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        comparison = causal_comparison(flags, Path(folder))
        trains_equally = compare_training(flags, comparison)
        evaluates_equally = compare_evaluation(flags, comparison)
    return 0 if trains_equally and evaluates_equally else 1


def check_causal_flags(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    if flags.n_embd % 64:
        parser.error("--n_embd: give a multiple of 64")
    if flags.eval_blocks % flags.batch_size:
        parser.error("--eval_blocks: give a multiple of --batch_size; the plain Trainer averages the means of batches")


def causal_comparison(flags: argparse.Namespace, folder: Path, adapter_config: str | None = None) -> Comparison:
    """A GPT-2, or an adapter in it."""
    num_train_tokens = flags.steps * flags.batch_size * flags.block_size
    train_tokens = random_tokens(num_train_tokens, flags.vocab_size, flags.seed, folder / "train.bin")
    train_blocks = PackedBlocks(train_tokens, flags.block_size)
    num_eval_tokens = flags.eval_blocks * flags.block_size
    eval_tokens = random_tokens(num_eval_tokens, flags.vocab_size, flags.seed + 1, folder / "eval.bin")
    eval_blocks = PackedBlocks(eval_tokens, flags.block_size)
    config = GPT2Config(
        n_layer=flags.n_layer,
        n_embd=flags.n_embd,
        n_head=flags.n_embd // 64,
        n_positions=flags.block_size,
        vocab_size=flags.vocab_size,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    tokenizer = numbered_tokenizer(flags.vocab_size, CAUSAL_SPECIAL_TOKENS)
    build_model = model_builders(AutoModelForCausalLM, config, tokenizer, flags.seed)
    options = training_options(flags, folder)

    def ours() -> LMTrainer:
        model = build_model["ours"]()
        adapter = add_our_adapter(model, adapter_config, flags.seed)
        use_summed_loss(model, shift=True)
        use_maskless_attention(model)
        return LMTrainer(
            model=model,
            args=LMTrainingArguments(do_train=True, do_eval=True, **options),
            train_dataset=train_blocks,
            eval_dataset=eval_blocks,
            data_collator=CausalLMCollator(tokenizer),
            processing_class=tokenizer,
            adapter=adapter,
        )

    def baseline() -> Trainer:
        return plain_trainer(
            add_baseline_adapter(build_model["baseline"](), adapter_config, flags.seed),
            TrainingArguments(**options),
            train_dataset=causal_dataset(train_blocks),
            eval_dataset=causal_dataset(eval_blocks),
            processing_class=tokenizer,
            compute_metrics=shifted_accuracy,
            preprocess_logits_for_metrics=most_likely,
        )

    return Comparison(
        trainers={"ours": ours, "baseline": baseline},
        title="training gpt2",
        target_ratio=TARGET_TRAINING_RATIO,
        loss_tolerance=LOSS_TOLERANCE,
        # transformers (4.57 for all models, 5 still for GPT-2) divides the summed loss by the number of labels before
        # the shift, which includes the first of each block, which nothing predicts.
        baseline_loss_scale=flags.block_size / (flags.block_size - 1),
    )


def most_likely(logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
    """What transformers' run_clm.py keeps of the logits."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits.argmax(dim=-1)


def shifted_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    labels = prediction.label_ids[:, 1:].reshape(-1)
    predictions = prediction.predictions[:, :-1].reshape(-1)
    return {"accuracy": float((predictions == labels).mean())}


def compare_evaluation(flags: argparse.Namespace, comparison: Comparison) -> bool:
    """Evaluate the same trained weights both ways, print the times, and return whether the results agree."""
    trainers = {name: make_trainer() for name, make_trainer in comparison.trainers.items()}
    trainers["baseline"].train()  # so that some predictions are right
    trainers["ours"].model.load_state_dict(trainers["baseline"].model.state_dict())
    for trainer in trainers.values():
        trainer.evaluate()  # warm-up
    seconds = {name: [] for name in trainers}
    metrics = {}
    for _, name in interleaved(trainers, flags.repetitions):
        synchronize()
        start = time.perf_counter()
        metrics[name] = trainers[name].evaluate()
        synchronize()
        seconds[name].append(time.perf_counter() - start)

    num_targets = flags.eval_blocks * (flags.block_size - 1)
    print(f"evaluation: medians of {flags.repetitions} evaluations of {num_targets:,} targets")
    for name in trainers:
        median = statistics.median(seconds[name])
        bounds = f"{min(seconds[name]):.3f} to {max(seconds[name]):.3f}"
        print(f"  {name}: {median:.3f} s ({bounds}), {num_targets / median:,.0f} tokens/s")
    print_ratio("evaluation", seconds, TARGET_EVALUATION_RATIO)

    loss, accuracy = metrics["ours"]["eval_loss"], metrics["ours"]["eval_accuracy"]
    baseline_loss = metrics["baseline"]["eval_loss"] * comparison.baseline_loss_scale
    baseline_accuracy = metrics["baseline"]["eval_accuracy"]
    is_equal = (
        math.isclose(loss, baseline_loss, rel_tol=LOSS_TOLERANCE)
        and abs(accuracy - baseline_accuracy) <= ACCURACY_TOLERANCE
    )
    print(
        f"{verdict(is_equal)} equal results: loss {loss:.6f} and {baseline_loss:.6f}, accuracy {accuracy:.6f} and "
        f"{baseline_accuracy:.6f}"
    )
    return is_equal


if __name__ == "__main__":
    sys.exit(main())
