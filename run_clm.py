"""Train or evaluate a causal language model, such as GPT-2 or Llama, on text.

    python run_clm.py --model_name_or_path gpt2 --train_file train.txt --validation_file validation.txt \
        --per_device_train_batch_size 8 --output_dir outputs/gpt2

The loss is the negative log-likelihood of each token given those before it in its block, in nats. The first token of a
block is not predicted.
"""

from dataclasses import dataclass, field

from transformers import AutoModelForCausalLM, set_seed

from utils.config import AdapterArguments, DataArguments, LMTrainingArguments, ModelArguments
from utils.config.entry_point import entry_point
from utils.config.parser import parse_arguments
from utils.examples import make_blocks
from utils.examples.causal_collator import CausalLMCollator
from utils.examples.packed import PackedBlocks, require_one_block
from utils.hub import prepare_upload
from utils.models import add_adapter, check_adapter_arguments, load_config, load_model, use_summed_loss
from utils.models.attention import use_maskless_attention
from utils.models.config import default_block_size
from utils.models.model_types import CAUSAL_MODELS
from utils.reports import ModelCardText, print_counts, print_dry_run, write_report
from utils.reports.sample import SampleArguments, print_sample
from utils.text import load_corpus
from utils.tokens import load_tokenizer, tokenize_documents
from utils.tokens.tokenizer import log_added_tokens
from utils.training import LMTrainer, find_checkpoint, load_metric


@dataclass
class CausalLMArguments(SampleArguments):
    """The flags of this script alone."""

    append_eos: bool = field(
        default=False,
        metadata={"help": "End each document with an end-of-text token. Use it unless documents are lines of text."},
    )
    add_special_tokens: bool = field(
        default=True,
        metadata={"help": "Keep the tokens that the tokenizer adds to each document, such as the BOS of Llama."},
    )


MODEL_CARD = ModelCardText(
    auto_class=AutoModelForCausalLM,
    task="text-generation",
    objective="The loss is the mean negative log-likelihood of each token given those before it in its block.",
    snippet="""from transformers import pipeline

generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
print(generate("The", max_new_tokens=40)[0]["generated_text"])""",
)


def document_text(row: dict) -> str | None:
    """What the model reads of one row; edit this for titles, templates, or filters (None leaves the row out)."""
    return row["text"]


@entry_point
def main(args: list[str] | None = None) -> dict[str, float]:
    # Arguments: every mistake that can be found without reading the text is found here
    model_args, data_args, clm_args, adapter_args, training_args, run_args = parse_arguments(
        ModelArguments, DataArguments, CausalLMArguments, AdapterArguments, LMTrainingArguments, args=args
    )
    clm_args.check_sampling(training_args)
    checkpoint = find_checkpoint(training_args, data_args, run_args)
    config = load_config(model_args, AutoModelForCausalLM, CAUSAL_MODELS, data_args.block_size)
    adapter_folders = check_adapter_arguments(adapter_args, model_args, training_args, config.model_type)
    metric = load_metric(training_args.metric)
    prepare_upload(training_args, data_args)
    set_seed(training_args.seed)

    # Corpus: documents to train on and to evaluate on
    raw_datasets = load_corpus(data_args, training_args, model_args.cache_dir, model_args.token)

    # Tokenizer: the model's own, --tokenizer_name, or one trained on the corpus
    tokenizer = load_tokenizer(model_args, raw_datasets.get("train"), document_text)
    if clm_args.add_special_tokens:
        log_added_tokens(tokenizer)

    # Blocks: every token of the corpus, in order
    block_size = data_args.block_size or default_block_size(config, tokenizer.model_max_length)
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
            add_special_tokens=clm_args.add_special_tokens,
            with_token_bytes=split == "validation",
            num_tokens_needed=data_args.tokens_needed(split, block_size),
        )
        blocks[split] = make_blocks(PackedBlocks, tokens, block_size, data_args.max_samples(split))
    require_one_block(blocks.get("validation"))
    if data_args.preprocess_only:
        return print_counts(blocks, training_args)

    # Model: from a checkpoint or from scratch, with an embedding for every token of the tokenizer
    model, new_weights = load_model(AutoModelForCausalLM, config, model_args, tokenizer)

    # Adapter: with --train_adapter, only the adapter is trained
    adapter = add_adapter(model, new_weights, adapter_args, adapter_folders, model_args, data_args)

    # Loss: summed over the targets; attention needs no mask, since padding is on the right
    use_summed_loss(model, shift=True, label_smoothing=training_args.label_smoothing_factor)
    use_maskless_attention(model)

    # Collator: every token but the first of a block is a target
    pad_to_length = data_args.pad_to_length(block_size, training_args.torch_compile)
    data_collator = CausalLMCollator(tokenizer, pad_to_length=pad_to_length)

    # Trainer: exact sums over batches and processes, checkpoints that resume exactly
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
    if training_args.dry_run:
        return print_dry_run(trainer)

    # Training: from the beginning, or from the newest checkpoint of the output folder
    results = {}
    if training_args.do_train:
        train_result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_metrics("train", train_result.metrics)
        results |= train_result.metrics

    # Evaluation: every validation example once, whatever the batch size
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
        results |= metrics

    # Report: a sample, then model card, loss plot, summary and upload
    print_sample(trainer, blocks.get("validation") or blocks["train"], clm_args.sample_tokens)
    return write_report(trainer, MODEL_CARD, model_args, data_args, adapter_args, results)


def _mp_fn(index: int) -> None:  # for launchers that pass an index to each process, such as torch_xla's
    main()


if __name__ == "__main__":
    main()
