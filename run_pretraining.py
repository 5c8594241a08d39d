"""Train or evaluate BERT or ALBERT on its two tasks, masked tokens and pairs of sentences.

    python run_pretraining.py --model_name_or_path bert-base-uncased --train_file train.txt \
        --validation_file validation.txt --max_seq_length 128 --per_device_train_batch_size 8 --output_dir outputs/bert

The loss is the mean negative log-likelihood of the masked tokens plus that of whether B follows A (nsp) or A and B are
in order (sop), in nats.
"""

from dataclasses import dataclass, replace
from functools import partial

from transformers import AutoModelForPreTraining, set_seed

from utils.config import AdapterArguments, DataArguments, LMTrainingArguments, ModelArguments
from utils.config.entry_point import entry_point
from utils.config.graphcore_arguments import IPUArguments
from utils.config.parser import parse_arguments
from utils.config.sentence_pair_arguments import SentencePairArguments
from utils.errors import UsageError
from utils.examples import make_blocks
from utils.examples.prebuilt_pairs import (
    PreprocessedPairs,
    TextPairs,
    column_text,
    pair_source,
    read_labels,
    text_columns,
)
from utils.examples.pretraining_collator import PretrainingCollator
from utils.examples.sentence_pairs import SentencePairs
from utils.hub import prepare_upload
from utils.models import add_adapter, check_adapter_arguments, load_config, load_model, use_summed_loss
from utils.models.config import default_block_size, model_type_from_checkpoint_name
from utils.models.model_types import PRETRAINING_MODELS
from utils.reports import ModelCardText, print_counts, print_dry_run, write_report
from utils.text import load_corpus
from utils.text.segmentation import Segmenter
from utils.tokens import load_tokenizer, tokenize_documents
from utils.training import LMTrainer, find_checkpoint, load_metric
from utils.training.evaluation import check_best_metric


@dataclass
class PretrainingArguments(SentencePairArguments):
    """The flags of this script: how tokens are masked, and where pairs come from."""


QUESTIONS = {"nsp": "text B follows text A", "sop": "texts A and B are in order"}
MODEL_CARD = ModelCardText(
    auto_class=AutoModelForPreTraining,
    task="fill-mask",
    objective="The loss is the mean negative log-likelihood of the masked tokens plus that of whether {question}; the "
    "perplexity is that of the masked tokens alone.",
    snippet="""inputs = tokenizer("The {mask} is here.", "It is new.", return_tensors="pt")
outputs = model(**inputs)
masked = inputs["input_ids"] == tokenizer.mask_token_id
print("the masked token:", tokenizer.decode(outputs.prediction_logits[masked].argmax(-1)))
print("{question}:", outputs[1].softmax(-1)[0, 0].item())""",
)


def document_text(row: dict) -> str | None:
    """What the model reads of one row; edit this for titles, templates, or filters (None leaves the row out)."""
    return row["text"]


@entry_point
def main(args: list[str] | None = None) -> dict[str, float]:
    # Arguments: every mistake that can be found without reading the text is found here
    model_args, data_args, pair_args, _, adapter_args, training_args, run_args = parse_arguments(
        ModelArguments,
        DataArguments,
        PretrainingArguments,
        IPUArguments,
        AdapterArguments,
        LMTrainingArguments,
        args=args,
        defaults={"document_by": "blank_line"},  # BERT's format: a sentence a line, a blank line between documents
    )
    if training_args.group_by_length:
        raise UsageError("--group_by_length: pairs fill --block_size; leave it out")
    if data_args.block_size is not None and data_args.block_size < 8:
        raise UsageError(f"--block_size {data_args.block_size} leaves no room for two texts: give 8 or more")
    checkpoint = find_checkpoint(training_args, data_args, run_args)
    model_args.model_type = model_type_from_checkpoint_name(model_args.model_type, PRETRAINING_MODELS)
    config = load_config(model_args, AutoModelForPreTraining, PRETRAINING_MODELS, data_args.block_size)
    task = pair_args.sentence_task or ("sop" if config.model_type == "albert" else "nsp")
    losses = {"mlm": "labels", task: "next_sentence_label"}
    adapter_folders = check_adapter_arguments(adapter_args, model_args, training_args, config.model_type)
    metric = load_metric(training_args.metric)
    check_best_metric(training_args, list(losses), metric=metric)
    prepare_upload(training_args, data_args)
    set_seed(training_args.seed)

    # Corpus: documents to train on and to evaluate on; or a dataset of pairs, as texts or as token ids
    named_columns = (pair_args.text_column_a, pair_args.text_column_b)
    source_of = partial(pair_source, is_preprocessed=pair_args.is_already_preprocessed, text_columns=named_columns)
    raw_datasets = load_corpus(
        data_args,
        training_args,
        model_args.cache_dir,
        model_args.token,
        has_examples=lambda rows: source_of(rows) != "documents",
    )
    source = source_of(next(iter(raw_datasets.values())))
    pair_args.refuse_ignored_flags(source, run_args)

    # Tokenizer: the model's own, --tokenizer_name, or one trained on the corpus
    columns = text_columns(raw_datasets, named_columns) if source == "texts" else []
    text = column_text(*columns) if columns else document_text
    tokenizer = load_tokenizer(model_args, raw_datasets.get("train"), text, needs_mask_token=True, for_pairs=True)

    # Blocks: pairs of texts A and B, made of the segments of documents, new ones each epoch; or pairs of the dataset
    block_size = data_args.block_size or default_block_size(config, tokenizer.model_max_length)
    tokenize = partial(
        tokenize_documents,
        tokenizer=tokenizer,
        data_args=data_args,
        cache_dir=model_args.cache_dir,
        add_special_tokens=False,
        with_word_starts=pair_args.whole_word_mask,
    )
    blocks = {}
    for split, rows in raw_datasets.items():
        options = {"seed": training_args.seed, "max_pairs": data_args.max_samples(split)}
        if source == "documents":
            tokens = tokenize(
                rows,
                document_text=document_text,
                description=split,
                segmenter=Segmenter(pair_args.segment_by, pair_args.sentence_language),
                num_tokens_needed=data_args.tokens_needed(split, block_size),
            )
            options |= {"task": task, "negative_probability": pair_args.nsp_probability, "description": split}
            options["short_probability"] = pair_args.short_seq_probability
            blocks[split] = make_blocks(SentencePairs, tokens, block_size, tokenizer, **options)
        elif source == "texts":
            labels = read_labels(rows, split)
            stores = [
                tokenize(rows, document_text=column_text(column), description=f"{split} {column}")
                for column in columns
            ]
            blocks[split] = TextPairs(stores, labels, block_size, tokenizer, **options)
        else:
            options |= {"is_masked": pair_args.is_already_masked, "description": split}
            blocks[split] = PreprocessedPairs(rows, block_size, tokenizer, **options)
    if data_args.preprocess_only:
        return print_counts(blocks, training_args)

    # Model: from a checkpoint or from scratch, with an embedding for every token of the tokenizer
    model, new_weights = load_model(AutoModelForPreTraining, config, model_args, tokenizer)

    # Adapter: with --train_adapter, only the adapter is trained
    adapter = add_adapter(model, new_weights, adapter_args, adapter_folders, model_args, data_args)

    # Loss: both losses are summed over their targets; the vocabulary head runs at the masked tokens only
    use_summed_loss(model, shift=False, label_smoothing=training_args.label_smoothing_factor)

    # Collator: masks are a function of seed, epoch and example
    data_collator = PretrainingCollator(
        tokenizer,
        seed=training_args.seed,
        mlm_probability=pair_args.mlm_probability,
        mask_replace_prob=pair_args.mask_replace_prob,
        random_replace_prob=pair_args.random_replace_prob,
        whole_word_mask=pair_args.whole_word_mask,
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
        losses=losses,
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
    settings = {"sentence_task": task} | pair_args.settings(source)
    card = replace(
        MODEL_CARD,
        objective=MODEL_CARD.objective.format(question=QUESTIONS[task]),
        snippet=MODEL_CARD.snippet.replace("{question}", QUESTIONS[task]),
    )
    return write_report(trainer, card, model_args, data_args, adapter_args, results, settings)


def _mp_fn(index: int) -> None:  # for launchers that pass an index to each process, such as torch_xla's
    main()


if __name__ == "__main__":
    main()
