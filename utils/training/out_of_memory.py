"""Batches that do not fit into memory: smaller ones with the same results, or an error that says what helps."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers.trainer_utils import TrainOutput

from utils.config.training_arguments import LMTrainingArguments
from utils.errors import EarlyEnd


logger = logging.getLogger(__name__)


def train_with_batches_that_fit(
    train: Callable[..., TrainOutput], args: LMTrainingArguments, checkpoint
) -> TrainOutput:
    """For `--auto_find_batch_size`: train with smaller batches, and more accumulation, until they fit into memory.

    An update trains on the same examples, and its loss is the same mean over all their targets. Sets
    `args.gradient_accumulation_steps`.

    Args:
        train: called with the batch size and `checkpoint`.
    """
    batch_size = args.train_batch_size
    while True:
        try:
            return train(batch_size, checkpoint)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not should_reduce_batch_size(error) or batch_size == 1:
                raise
        clear_device_cache(garbage_collection=True)  # here, where the error's traceback no longer holds the tensors
        divisor = next(number for number in range(2, batch_size + 1) if batch_size % number == 0)
        batch_size //= divisor
        args.gradient_accumulation_steps *= divisor
        logger.warning(
            "out of memory: going on with --per_device_train_batch_size %s --gradient_accumulation_steps %s, which "
            "give the same results",
            batch_size, args.gradient_accumulation_steps,
        )  # fmt: skip


@contextlib.contextmanager
def out_of_memory_explained(args: LMTrainingArguments, is_training: bool) -> Iterator[None]:
    """If the memory of the block's device is used up, say which flags help, in the order of what they cost.

    Raises:
        EarlyEnd: instead of torch's error, with exit code 1.
    """
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        size = args.train_batch_size if is_training else args.eval_batch_size
        smaller = max(1, (size or 2) // 2)
        flags = [
            f"--per_device_train_batch_size {smaller} with --gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps * 2} (the same results)",
            "--gradient_checkpointing (slower by a third)",
            "a smaller --block_size (less context)",
        ]
        if not is_training:
            flags[:2] = [f"--per_device_eval_batch_size {smaller} (the same results)", "--bf16_full_eval"]
        elif size == 1:
            flags[0] = "--optim adafactor (less state of the optimizer)"
        what = f"batches of {size} examples" if size else "an evaluation"
        raise EarlyEnd(f"out of memory in {what}; what helps, the cheapest first: {'; '.join(flags)}", 1) from error
