"""python -m benchmarks.train_masked [--models bert-base roberta-base bert-small] [--block_size 128] [--batch_size 8]

Compares training a masked model with LMTrainer, as run_mlm.py does, with the plain Trainer and model, and
MaskedLMCollator with DataCollatorForLanguageModeling. Both train in float32, without dropout, from the same random
weights on the same masked tokens in the same order.

Prints the time per step and per batch of both. Exits with 1 if their losses differ or a collator's targets are wrong.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    RobertaConfig,
    Trainer,
    TrainingArguments,
)

from benchmarks.collating import SHARE_TOLERANCE, compare_collating
from benchmarks.comparison import (
    Comparison,
    add_flags,
    check_flags,
    compare_training,
    make_parser,
    plain_trainer,
    training_options,
)
from benchmarks.measurement import silence_libraries
from benchmarks.models import add_baseline_adapter, add_our_adapter, model_builders
from benchmarks.synthetic import MASKED_SPECIAL_TOKENS, as_dataset, blocks_with_special_tokens, numbered_tokenizer
from utils.config.training_arguments import LMTrainingArguments
from utils.examples.masked_collator import MaskedLMCollator
from utils.models.losses import use_summed_loss
from utils.training.trainer import LMTrainer


DEFAULTS = {
    "block_size": 128, "batch_size": 8, "steps": 5, "warm_up_steps": 2, "repetitions": 3, "learning_rate": 1e-4,
    "seed": 0,
}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
SMALL = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
MODELS = {
    "bert-base": BertConfig(vocab_size=30522, **NO_DROPOUT),
    "roberta-base": RobertaConfig(vocab_size=50265, max_position_embeddings=514, **NO_DROPOUT),
    "bert-small": BertConfig(vocab_size=30522, **SMALL, **NO_DROPOUT),
}
TARGET_RATIOS = {"bert-base": 1.15, "roberta-base": 1.3, "bert-small": 4.0}
LOSS_TOLERANCE = 1e-5  # relative
COLLATED_SHAPE = (32, 128)
TARGET_COLLATING_RATIO = 3.0


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: all")
    add_flags(parser, DEFAULTS)
    flags = parser.parse_args()
    check_flags(parser, flags)
    check_masked_flags(parser, flags)
    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        are_equal = [
            compare_training(flags, masked_comparison(flags, Path(folder), name))
            for name in dict.fromkeys(flags.models)
        ]
        collates_correctly = compare_collating(
            lambda tokenizer: {
                "ours": MaskedLMCollator(tokenizer, seed=flags.seed),
                "baseline": DataCollatorForLanguageModeling(tokenizer),
            },
            is_correct=is_masked_correctly,
            shape=COLLATED_SHAPE,
            target_ratio=TARGET_COLLATING_RATIO,
            repetitions=flags.repetitions,
            seed=flags.seed,
            folder=Path(folder),
        )
    return 0 if all(are_equal) and collates_correctly else 1


def check_masked_flags(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    if not 3 <= flags.block_size <= 512:
        parser.error("--block_size: give 3 to 512, the positions of these models")


def masked_comparison(
    flags: argparse.Namespace, folder: Path, name: str, adapter_config: str | None = None
) -> Comparison:
    """The masked model `name`, or an adapter in it. Both sides train on what MaskedLMCollator masked."""
    tokenizer = numbered_tokenizer(MODELS[name].vocab_size, MASKED_SPECIAL_TOKENS)
    num_examples = flags.steps * flags.batch_size
    blocks = blocks_with_special_tokens(tokenizer, num_examples, flags.block_size, flags.seed, folder / f"{name}.bin")
    data_collator = MaskedLMCollator(tokenizer, seed=flags.seed)
    masked = data_collator(blocks.__getitems__(range(num_examples)))
    build_model = model_builders(AutoModelForMaskedLM, MODELS[name], tokenizer, flags.seed)
    options = training_options(flags, folder)

    def ours() -> LMTrainer:
        model = build_model["ours"]()
        adapter = add_our_adapter(model, adapter_config, flags.seed)
        use_summed_loss(model, shift=False)
        return LMTrainer(
            model=model,
            args=LMTrainingArguments(do_train=True, **options),
            train_dataset=blocks,
            data_collator=data_collator,
            processing_class=tokenizer,
            adapter=adapter,
            target_name="masked_tokens",
        )

    def baseline() -> Trainer:
        return plain_trainer(
            add_baseline_adapter(build_model["baseline"](), adapter_config, flags.seed),
            TrainingArguments(**options),
            train_dataset=as_dataset(masked["input_ids"].tolist(), masked["labels"].tolist()),
            processing_class=tokenizer,
        )

    return Comparison({"ours": ours, "baseline": baseline}, f"training {name}", TARGET_RATIOS[name], LOSS_TOLERANCE)


def is_masked_correctly(
    collated: list[dict[str, torch.Tensor]], batches: list[list[dict[str, Any]]], tokenizer: PreTrainedTokenizerFast
) -> bool:
    """Whether the labels restore the examples, no special token is a target, and 15% of the others are."""
    input_ids, labels = (torch.cat([batch[name] for batch in collated]).numpy() for name in ("input_ids", "labels"))
    tokens = np.stack([example["input_ids"] for batch in batches for example in batch])
    is_target = labels != -100
    is_special = np.isin(tokens, tokenizer.all_special_ids)
    restores = np.array_equal(np.where(is_target, labels, input_ids), tokens)
    share = is_target.sum() / (~is_special).sum()
    return restores and not (is_target & is_special).any() and abs(share - 0.15) <= SHARE_TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
