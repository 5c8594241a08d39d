"""python -m benchmarks.train_permutation [--block_size 256] [--batch_size 4]

Compares training an XLNet with LMTrainer, as run_plm.py does, with the plain Trainer and model, and
PermutationLMCollator with DataCollatorForPermutationLanguageModeling. Both train in float32, without dropout, from the
same random weights, on the same targets in the same factorization orders.

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
    AutoModelForCausalLM,
    DataCollatorForPermutationLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    XLNetConfig,
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
from benchmarks.models import model_builders
from benchmarks.synthetic import MASKED_SPECIAL_TOKENS, blocks_with_special_tokens, numbered_tokenizer
from utils.config.training_arguments import LMTrainingArguments
from utils.examples.permutation_collator import PermutationLMCollator
from utils.models.factorization_order import use_factorization_order
from utils.models.losses import use_summed_loss
from utils.training.trainer import LMTrainer


DEFAULTS = {
    "block_size": 256, "batch_size": 4, "steps": 5, "warm_up_steps": 2, "repetitions": 3, "learning_rate": 1e-4,
    "seed": 0,
}  # fmt: skip
XLNET = XLNetConfig(vocab_size=32000, n_layer=6, d_model=512, n_head=8, d_inner=2048, dropout=0.0, pad_token_id=0)
TARGET_RATIO = 1.5
LOSS_TOLERANCE = 1e-5  # relative
COLLATED_SHAPE = (32, 512)
TARGET_COLLATING_RATIO = 20.0


def main() -> int:
    parser = make_parser(__doc__)
    add_flags(parser, DEFAULTS)
    flags = parser.parse_args()
    check_flags(parser, flags)
    silence_libraries()
    with tempfile.TemporaryDirectory() as folder:
        is_equal = compare_training(flags, permutation_comparison(flags, Path(folder)))
        collates_correctly = compare_collating(
            lambda tokenizer: {
                "ours": PermutationLMCollator(tokenizer, seed=flags.seed),
                "baseline": DataCollatorForPermutationLanguageModeling(tokenizer),
            },
            is_correct=is_permuted_correctly,
            shape=COLLATED_SHAPE,
            target_ratio=TARGET_COLLATING_RATIO,
            repetitions=flags.repetitions,
            seed=flags.seed,
            folder=Path(folder),
        )
    return 0 if is_equal and collates_correctly else 1


def permutation_comparison(flags: argparse.Namespace, folder: Path) -> Comparison:
    """An XLNet. Both sides train on the targets and orders of PermutationLMCollator."""
    tokenizer = numbered_tokenizer(XLNET.vocab_size, MASKED_SPECIAL_TOKENS)
    num_examples = flags.steps * flags.batch_size
    blocks = blocks_with_special_tokens(tokenizer, num_examples, flags.block_size, flags.seed, folder / "train.bin")
    data_collator = PermutationLMCollator(tokenizer, seed=flags.seed)
    batch = data_collator(blocks.__getitems__(range(num_examples)))
    build_model = model_builders(AutoModelForCausalLM, XLNET, tokenizer, flags.seed)
    options = training_options(flags, folder)

    def ours() -> LMTrainer:
        model = build_model["ours"]()
        use_factorization_order(model)
        use_summed_loss(model, shift=False)
        return LMTrainer(
            model=model,
            args=LMTrainingArguments(do_train=True, **options),
            train_dataset=blocks,
            data_collator=data_collator,
            processing_class=tokenizer,
            target_name="predicted_tokens",
        )

    def baseline() -> Trainer:
        return plain_trainer(
            build_model["baseline"](),
            TrainingArguments(**options),
            train_dataset=baseline_rows(batch, flags.block_size),
            processing_class=tokenizer,
        )

    return Comparison({"ours": ours, "baseline": baseline}, "training xlnet", TARGET_RATIO, LOSS_TOLERANCE)


def baseline_rows(batch: dict[str, torch.Tensor], block_size: int) -> list[dict[str, torch.Tensor]]:
    """The examples of our batch with the masks that DataCollatorForPermutationLanguageModeling makes.

    `target_mapping` has a row for each token, not only for each target.
    """
    target_mapping = torch.eye(block_size)
    rows = []
    for input_ids, order in zip(batch["input_ids"], batch["order"], strict=True):
        is_target = order >= 0
        perm_mask = (is_target & (order[:, None] <= order)).float()
        labels = torch.where(is_target, input_ids, -100)
        rows.append(
            {"input_ids": input_ids, "perm_mask": perm_mask, "target_mapping": target_mapping, "labels": labels}
        )
    return rows


def is_permuted_correctly(
    collated: list[dict[str, torch.Tensor]], batches: list[list[dict[str, Any]]], tokenizer: PreTrainedTokenizerFast
) -> bool:
    """Whether labels are the tokens at the targets' positions, none is special, and 1 in 6 others is a target."""
    num_targets = num_tokens = 0
    is_correct = True
    for batch, examples in zip(collated, batches, strict=True):
        rows, columns = np.nonzero(batch["labels"].numpy() != -100)
        # The baseline's labels stand at the positions of their tokens; ours are dense, with positions in `targets`.
        positions = batch["targets"].numpy()[rows, columns] if "targets" in batch else columns
        tokens = np.stack([example["input_ids"] for example in examples])
        is_correct &= np.array_equal(batch["labels"].numpy()[rows, columns], tokens[rows, positions])
        is_correct &= not np.isin(tokens[rows, positions], tokenizer.all_special_ids).any()
        num_targets += len(rows)
        num_tokens += (~np.isin(tokens, tokenizer.all_special_ids)).sum()
    return is_correct and abs(num_targets / num_tokens - 1 / 6) <= SHARE_TOLERANCE


if __name__ == "__main__":
    sys.exit(main())
