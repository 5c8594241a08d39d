"""A whole run as transformers' run_clm.py does it: Dataset.map twice, the plain model, Trainer, evaluation.

python -m benchmarks.textbook_clm CHECKPOINT TRAIN_FILE VALIDATION_FILE OUTPUT_DIR [flags of TrainingArguments]

CHECKPOINT has a model and its tokenizer. Blocks of 256 tokens; the rest of 1,000 lines is dropped, as there.
"""

import sys
from itertools import chain

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from benchmarks.train_causal import most_likely, shifted_accuracy


BLOCK_SIZE, EVAL_BLOCKS = 256, 300


def main() -> None:
    checkpoint, train_file, validation_file, output_dir = sys.argv[1:5]
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", output_dir, *sys.argv[5:]]
    )
    set_seed(args.seed)
    files = {"train": train_file, "validation": validation_file}
    documents = load_dataset("text", data_files=files, cache_dir=f"{output_dir}/cache", keep_linebreaks=True)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokens = documents.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])
    blocks = tokens.map(group_texts, batched=True)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"].select(range(EVAL_BLOCKS)),
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_metrics=shifted_accuracy,
        preprocess_logits_for_metrics=most_likely,
    )
    trainer.save_metrics("train", trainer.train().metrics)
    trainer.save_model()
    trainer.save_metrics("eval", trainer.evaluate())


def group_texts(rows: dict[str, list]) -> dict[str, list]:
    joined = {name: list(chain(*values)) for name, values in rows.items()}
    total = len(joined["input_ids"]) // BLOCK_SIZE * BLOCK_SIZE
    blocks = {
        name: [values[start : start + BLOCK_SIZE] for start in range(0, total, BLOCK_SIZE)]
        for name, values in joined.items()
    }
    return blocks | {"labels": blocks["input_ids"].copy()}


if __name__ == "__main__":
    main()
