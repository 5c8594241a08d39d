"""Train or evaluate a causal language model, such as GPT-2 or Llama, on text.

    python run_clm.py --model_name_or_path gpt2 --train_file train.txt --validation_file validation.txt \
        --per_device_train_batch_size 8 --output_dir outputs/gpt2

The loss is the negative log-likelihood of each token given those before it in its block, in nats; a block's first
token is not predicted.
"""

from dataclasses import dataclass, field

from transformers import AutoModelForCausalLM, set_seed

from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.entry_point import entry_point
from utils.config.model_arguments import ModelArguments
from utils.config.parser import parse_arguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.examples.causal_collator import CausalLMCollator
from utils.examples.packed import PackedBlocks, require_one_block
from utils.examples.streaming import make_blocks
from utils.hub.upload import prepare_upload
from utils.models.adapter_checks import check_adapter_arguments
from utils.models.adapters import add_adapter
from utils.models.attention import use_maskless_attention
from utils.models.config import default_block_size, load_config
from utils.models.loading import load_model
from utils.models.losses import use_summed_loss
from utils.models.model_types import CAUSAL_MODELS
from utils.reports.report import write_report
from utils.reports.sample import sample_text
from utils.reports.summary import print_counts
from utils.text.corpus import load_corpus
from utils.tokens.token_store import tokenize_documents
from utils.tokens.tokenizer import load_tokenizer
from utils.training.metric import load_metric
from utils.training.output_dir import find_checkpoint
from utils.training.trainer import LMTrainer


@dataclass
class CausalLMArguments:
    """The flags of this script alone."""

    append_eos: bool = field(
        default=False,
        metadata={
            "help": "End each document with one end-of-text token, which the model learns to predict. Off, because "
            "the lines of a text file are not documents; switch it on with real documents."
        },
    )
    sample_tokens: int = field(
        default=0, metadata={"help": "Print so many tokens of the model's own text at the end. Default: 0, none."}
    )

    def __post_init__(self):
        if self.sample_tokens < 0:
            raise UsageError(f"--sample_tokens {self.sample_tokens}: give 0 or more")


OBJECTIVE = "The loss is the mean negative log-likelihood of each token given those before it in its block."
SNIPPET = """from transformers import pipeline

generate = pipeline("text-generation", model="{model}")
print(generate("The", max_new_tokens=40)[0]["generated_text"])"""


def document_text(row: dict) -> str | None:
    """The text of one row; edit this for titles, templates or filters (None leaves the row out)."""
    return row["text"]


@entry_point
def main(args: list[str] | None = None) -> None:
    # Arguments: every mistake that can be found without reading the text is found here
    model_args, data_args, clm_args, adapter_args, training_args, run_args = parse_arguments(
        ModelArguments, DataArguments, CausalLMArguments, AdapterArguments, LMTrainingArguments, args=args
    )
    if clm_args.sample_tokens and training_args.is_sharded:
        raise UsageError("--sample_tokens: no process has the whole of a sharded model; leave it out")
    checkpoint = None if data_args.preprocess_only else find_checkpoint(training_args)
    config = load_config(model_args, AutoModelForCausalLM, CAUSAL_MODELS, data_args.block_size)
    adapter_folders = check_adapter_arguments(adapter_args, model_args, training_args, config.model_type)
    metric = load_metric(training_args.metric)
    if not data_args.preprocess_only:
        prepare_upload(training_args, run_args)
    set_seed(training_args.seed)

    # Corpus: documents to train on and to evaluate on
    raw_datasets = load_corpus(data_args, training_args, model_args.cache_dir, model_args.token)

    # Tokenizer
    tokenizer = load_tokenizer(model_args, raw_datasets.get("train"), document_text)

    # Blocks: every token of the corpus, in order
    block_size = data_args.block_size or default_block_size(config, tokenizer.model_max_length)
    max_samples = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    blocks = {}
    for split, documents in raw_datasets.items():
        tokens = tokenize_documents(
            documents,
            tokenizer,
            document_text,
            data_args,
            cache_dir=model_args.cache_dir,
            description=split,
            append_eos=clm_args.append_eos,
            with_token_bytes=split == "validation",
            num_tokens_needed=None if max_samples[split] is None else max_samples[split] * block_size,
        )
        blocks[split] = make_blocks(PackedBlocks, tokens, block_size, max_samples[split])
    if training_args.do_eval:
        require_one_block(blocks["validation"])
    if data_args.preprocess_only:
        print_counts(blocks, training_args)
        return

    # Model
    model, new_weights = load_model(AutoModelForCausalLM, config, model_args, tokenizer)

    # Adapter: with --train_adapter, only the adapter is trained
    adapter = add_adapter(model, new_weights, adapter_args, adapter_folders, model_args, data_args)

    # Loss: summed over the targets; attention needs no mask, since padding is on the right
    use_summed_loss(model, shift=True, label_smoothing=training_args.label_smoothing_factor)
    use_maskless_attention(model)

    # Collator: each token but a block's first is a target
    data_collator = CausalLMCollator(tokenizer, pad_to_length=block_size if data_args.pad_to_max_length else None)

    # Trainer
    trainer = LMTrainer(
        model=model,
        args=training_args,
        train_dataset=blocks.get("train"),
        eval_dataset=blocks.get("validation"),
        data_collator=data_collator,
        processing_class=tokenizer,
        adapter=adapter,
        metric=metric,
        run_args=run_args,
    )

    # Training
    results = {}
    if training_args.do_train:
        train_result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_metrics("train", train_result.metrics)
        results |= train_result.metrics

    # Evaluation
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
        results |= metrics

    # Report: model card, plot, summary, upload
    if clm_args.sample_tokens and trainer.is_world_process_zero():
        first_example = next(iter(blocks.get("validation") or blocks["train"]))
        print(sample_text(model, tokenizer, clm_args.sample_tokens, first_example["input_ids"]))
    write_report(
        trainer,
        AutoModelForCausalLM,
        model_args,
        data_args,
        adapter_args,
        results,
        task="text-generation",
        objective=OBJECTIVE,
        snippet=SNIPPET,
    )


def _mp_fn(index: int) -> None:
    """For spawners that give each process its index, such as torch_xla's."""
    main()


if __name__ == "__main__":
    main()
