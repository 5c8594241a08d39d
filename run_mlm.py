"""Train or evaluate a masked language model, such as BERT or RoBERTa, on text.

    python run_mlm.py --model_name_or_path roberta-base --train_file train.txt --validation_file validation.txt \
        --per_device_train_batch_size 8 --output_dir outputs/roberta

The loss is the negative log-likelihood of the masked tokens given the other tokens of their example, in nats.
"""

from dataclasses import asdict, dataclass

from transformers import AutoModelForMaskedLM, set_seed

from utils.config import AdapterArguments, DataArguments, LMTrainingArguments, ModelArguments
from utils.config.entry_point import entry_point
from utils.config.objective_arguments import LineByLineArguments, MaskingArguments
from utils.config.parser import parse_arguments
from utils.examples.document_blocks import make_text_blocks
from utils.examples.masked_collator import MaskedLMCollator
from utils.examples.packed import require_one_block
from utils.hub import prepare_upload
from utils.models import add_adapter, check_adapter_arguments, load_config, load_model, use_summed_loss
from utils.models.config import default_block_size
from utils.models.model_types import MASKED_MODELS
from utils.reports import ModelCardText, print_counts, print_dry_run, write_report
from utils.text import load_corpus
from utils.tokens import load_tokenizer, tokenize_documents
from utils.training import LMTrainer, find_checkpoint, load_metric


@dataclass
class MaskedLMArguments(LineByLineArguments, MaskingArguments):
    """The flags of this script: how tokens are masked, and what an example is."""


MODEL_CARD = ModelCardText(
    auto_class=AutoModelForMaskedLM,
    task="fill-mask",
    objective="The loss is the mean negative log-likelihood of the masked tokens, given the others of their example.",
    snippet="""from transformers import pipeline

fill_mask = pipeline("fill-mask", model=model, tokenizer=tokenizer)
for guess in fill_mask("The {mask} is here."):
    print(guess["score"], guess["sequence"])""",
)


def document_text(row: dict) -> str | None:
    """What the model reads of one row; edit this for titles, templates, or filters (None leaves the row out)."""
    return row["text"]


@entry_point
def main(args: list[str] | None = None) -> dict[str, float]:
    # Arguments: every mistake that can be found without reading the text is found here
    model_args, data_args, mlm_args, adapter_args, training_args, run_args = parse_arguments(
        ModelArguments, DataArguments, MaskedLMArguments, AdapterArguments, LMTrainingArguments, args=args
    )
    mlm_args.apply_defaults(data_args, training_args, run_args)
    checkpoint = find_checkpoint(training_args, data_args, run_args)
    config = load_config(model_args, AutoModelForMaskedLM, MASKED_MODELS, data_args.block_size)
    adapter_folders = check_adapter_arguments(adapter_args, model_args, training_args, config.model_type)
    metric = load_metric(training_args.metric)
    prepare_upload(training_args, data_args)
    set_seed(training_args.seed)

    # Corpus: documents to train on and to evaluate on
    raw_datasets = load_corpus(data_args, training_args, model_args.cache_dir, model_args.token)

    # Tokenizer: the model's own, --tokenizer_name, or one trained on the corpus
    tokenizer = load_tokenizer(model_args, raw_datasets.get("train"), document_text, needs_mask_token=True)

    # Blocks: every token of the corpus, in order, between the model's special tokens; or one document per example
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
            add_special_tokens=False,
            with_word_starts=mlm_args.whole_word_mask,
            num_tokens_needed=data_args.tokens_needed(split, block_size),
        )
        blocks[split] = make_text_blocks(
            tokens, tokenizer, block_size, data_args.max_samples(split), mlm_args.line_by_line
        )
    require_one_block(blocks.get("validation"))
    if data_args.preprocess_only:
        return print_counts(blocks, training_args)

    # Model: from a checkpoint or from scratch, with an embedding for every token of the tokenizer
    model, new_weights = load_model(AutoModelForMaskedLM, config, model_args, tokenizer)

    # Adapter: with --train_adapter, only the adapter is trained
    adapter = add_adapter(model, new_weights, adapter_args, adapter_folders, model_args, data_args)

    # Loss: summed over the targets; the vocabulary head runs at the targets only
    use_summed_loss(model, shift=False, label_smoothing=training_args.label_smoothing_factor)

    # Collator: masks are a function of seed, epoch and example
    data_collator = MaskedLMCollator(
        tokenizer,
        seed=training_args.seed,
        mlm_probability=mlm_args.mlm_probability,
        mask_replace_prob=mlm_args.mask_replace_prob,
        random_replace_prob=mlm_args.random_replace_prob,
        whole_word_mask=mlm_args.whole_word_mask,
        pad_to_length=data_args.pad_to_length(block_size, training_args.torch_compile),
    )

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
        target_name="masked_tokens",
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

    # Report: model card, loss plot, summary and upload
    return write_report(trainer, MODEL_CARD, model_args, data_args, adapter_args, results, asdict(mlm_args))


def _mp_fn(index: int) -> None:  # for launchers that pass an index to each process, such as torch_xla's
    main()


if __name__ == "__main__":
    main()
