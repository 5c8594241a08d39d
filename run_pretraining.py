"""Train or evaluate BERT or ALBERT on its two tasks, masked tokens and pairs of sentences.

    python run_pretraining.py --model_name_or_path bert-base-uncased --train_file train.txt \
        --validation_file validation.txt --max_seq_length 128 --per_device_train_batch_size 8 --output_dir outputs/bert

The loss is the mean negative log-likelihood of the masked tokens plus that of whether B follows A (nsp) or A and B are
in order (sop), in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial

from transformers import AutoModelForPreTraining, set_seed

from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.entry_point import entry_point
from utils.config.graphcore_arguments import IPUArguments
from utils.config.model_arguments import ModelArguments
from utils.config.objective_arguments import MaskingArguments
from utils.config.parser import parse_arguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.examples.prebuilt_pairs import PreprocessedPairs, TextPairs, pair_source, read_labels, text_columns
from utils.examples.pretraining_collator import PretrainingCollator
from utils.examples.sentence_pairs import SentencePairs
from utils.examples.streaming import make_blocks
from utils.hub.upload import prepare_upload
from utils.models.adapter_checks import check_adapter_arguments
from utils.models.adapters import add_adapter, save_merged_model, usage_snippet
from utils.models.config import default_block_size, load_config, model_type_from_checkpoint_name
from utils.models.loading import load_model
from utils.models.losses import use_summed_loss
from utils.reports.model_card import write_model_card
from utils.reports.summary import print_counts, print_summary
from utils.text.corpus import load_corpus
from utils.text.segmentation import Segmenter
from utils.tokens.token_store import tokenize_documents
from utils.tokens.tokenizer import load_tokenizer
from utils.training.output_dir import find_checkpoint
from utils.training.trainer import LMTrainer, load_metric


@dataclass
class PretrainingArguments(MaskingArguments):
    """The flags of this script: how tokens are masked, and where pairs come from."""

    sentence_task: str | None = field(
        default=None,
        metadata={
            "choices": ["nsp", "sop"],
            "help": "nsp: does B follow A, or come from another document? sop: are A and B in order, or swapped? "
            "Default: sop for ALBERT, nsp for the others.",
        },
    )
    segment_by: str = field(
        default="line",
        metadata={
            "choices": ["line", "sentence"],
            "help": "What documents are cut into, of which A and B are made: lines (default) or sentences.",
        },
    )
    sentence_language: str = field(
        default="en",
        metadata={
            "help": "With --segment_by sentence: the language, as ISO 639 code. English rules where there are none."
        },
    )
    nsp_probability: float = field(
        default=0.5,
        metadata={"help": "Share of the pairs whose B comes from another document (sop: that are swapped)."},
    )
    short_seq_probability: float = field(
        default=0.1,
        metadata={"help": "Share of the pairs that fill only a random part of --max_seq_length. Default: 0.1."},
    )
    is_already_preprocessed: bool = field(
        default=False,
        metadata={
            "help": "The data set has pairs as token ids, in the columns input_ids, token_type_ids, attention_mask "
            "and next_sentence_label."
        },
    )
    is_already_masked: bool = field(
        default=False, metadata={"help": "As --is_already_preprocessed, and masked, with a column labels."}
    )
    text_column_a: str | None = field(
        default=None,
        metadata={"help": "The data set has pairs as text: the column of A, beside next_sentence_label."},
    )
    text_column_b: str | None = field(default=None, metadata={"help": "The column of B."})

    def __post_init__(self):
        super().__post_init__()
        self.is_already_preprocessed |= self.is_already_masked
        for name in ("nsp_probability", "short_seq_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{name} {getattr(self, name)}: give a number from 0 to 1")
        if (self.text_column_a is None) != (self.text_column_b is None):
            raise UsageError("--text_column_a and --text_column_b go together: give both")
        if self.text_column_a and self.is_already_preprocessed:
            raise UsageError("--text_column_a is about text and --is_already_preprocessed about ids: leave one out")


# With a head for tokens and one for pairs of sentences, both tested.
MODEL_TYPES = {"albert", "bert", "ernie", "megatron-bert", "mobilebert"}
QUESTIONS = {"nsp": "text B follows text A", "sop": "texts A and B are in order"}
MASK_FLAGS = tuple(flag.name for flag in fields(MaskingArguments))
PAIR_FLAGS = ("segment_by", "sentence_language", "nsp_probability", "short_seq_probability")
OBJECTIVE = (
    "The loss is the mean negative log-likelihood of the masked tokens plus that of whether {question}; "
    "the perplexity is that of the masked tokens alone."
)
SNIPPET = """from transformers import AutoModelForPreTraining, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{model}")
model = AutoModelForPreTraining.from_pretrained("{model}")
inputs = tokenizer("The {mask} is here.", "It is new.", return_tensors="pt")
outputs = model(**inputs)
masked = inputs["input_ids"] == tokenizer.mask_token_id
print("the masked token:", tokenizer.decode(outputs.prediction_logits[masked].argmax(-1)))
print("{question}:", outputs[1].softmax(-1)[0, 0].item())"""


def document_text(row: dict) -> str | None:
    """What the model reads of one row; edit this for titles, templates, or filters (None leaves the row out)."""
    return row["text"]


def column_text(*columns: str) -> Callable[[dict], str]:
    """What it reads of a row that is a pair."""
    return lambda row: " ".join(row[column] for column in columns)


@entry_point
def main(args: list[str] | None = None) -> None:
    # Arguments: whatever can be found wrong without reading the text is found wrong here
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
        raise UsageError("--group_by_length: pairs fill --max_seq_length; leave it out")
    if data_args.block_size is not None and data_args.block_size < 8:
        raise UsageError(f"--max_seq_length {data_args.block_size} leaves no room for two texts: give 8 or more")
    checkpoint = None if data_args.preprocess_only else find_checkpoint(training_args)
    model_args.model_type = model_type_from_checkpoint_name(model_args.model_type, MODEL_TYPES)
    config = load_config(model_args, AutoModelForPreTraining, MODEL_TYPES, data_args.block_size)
    task = pair_args.sentence_task or ("sop" if config.model_type == "albert" else "nsp")
    best = training_args.metric_for_best_model or ""
    if best.removeprefix("eval_").split("_")[0] in ("mlm", task, "accuracy"):
        raise UsageError(f"--metric_for_best_model {best}: Trainer knows eval_loss, the sum of both; use that")
    check_adapter_arguments(adapter_args, model_args, training_args, config.model_type)
    metric = load_metric(training_args.metric)
    if not data_args.preprocess_only:
        prepare_upload(training_args, run_args)
    set_seed(training_args.seed)

    # Corpus: documents to train on and to evaluate on; or pairs that others made, as texts or as token ids
    named_columns = (pair_args.text_column_a, pair_args.text_column_b)
    raw_datasets = load_corpus(
        data_args,
        training_args,
        model_args.cache_dir,
        model_args.token,
        has_examples=lambda rows: pair_source(rows, pair_args.is_already_preprocessed, named_columns) != "documents",
    )
    source = pair_source(next(iter(raw_datasets.values())), pair_args.is_already_preprocessed, named_columns)
    refuse_idle_flags(source, pair_args.is_already_masked, run_args)

    # Tokenizer
    text = document_text
    if source == "texts":
        columns = text_columns(raw_datasets, named_columns)
        text = column_text(*columns)
    tokenizer = load_tokenizer(model_args, raw_datasets.get("train"), text, needs_mask_token=True, for_pairs=True)

    # Blocks: pairs of texts A and B, made anew each epoch from the segments of documents, or those of the data set
    block_size = data_args.block_size or default_block_size(config, tokenizer.model_max_length)
    max_samples = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
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
        options = {"seed": training_args.seed, "max_pairs": max_samples[split]}
        if source == "documents":
            blocks[split] = make_blocks(
                SentencePairs,
                tokenize(
                    rows,
                    document_text=document_text,
                    description=split,
                    segmenter=Segmenter(pair_args.segment_by, pair_args.sentence_language),
                    num_tokens_needed=max_samples[split] and max_samples[split] * block_size,
                ),
                block_size,
                tokenizer,
                task=task,
                negative_probability=pair_args.nsp_probability,
                short_probability=pair_args.short_seq_probability,
                description=split,
                **options,
            )
        elif source == "texts":
            labels = read_labels(rows, split)
            stores = [
                tokenize(rows, document_text=column_text(column), description=f"{split} {column}")
                for column in columns
            ]
            blocks[split] = TextPairs(stores, labels, block_size, tokenizer, **options)
        else:
            blocks[split] = PreprocessedPairs(
                rows, block_size, tokenizer, is_masked=pair_args.is_already_masked, description=split, **options
            )
    if data_args.preprocess_only:
        print_counts(blocks, training_args)
        return

    # Model
    model, new_weights = load_model(AutoModelForPreTraining, config, model_args, tokenizer)

    # Adapter: with --train_adapter, all that is trained
    adapter = add_adapter(model, new_weights, adapter_args, model_args, data_args)

    # Loss: both are summed over their targets; the vocabulary head runs at the masked tokens only
    use_summed_loss(model, shift=False, label_smoothing=training_args.label_smoothing_factor)

    # Collator: some tokens are masked, and are the targets; which ones, seed, epoch and example decide
    data_collator = PretrainingCollator(
        tokenizer,
        seed=training_args.seed,
        mlm_probability=pair_args.mlm_probability,
        mask_replace_prob=pair_args.mask_replace_prob,
        random_replace_prob=pair_args.random_replace_prob,
        whole_word_mask=pair_args.whole_word_mask,
        pad_to_length=block_size if data_args.pad_to_max_length else None,
    )

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
        target_name="masked_tokens",
        losses={"mlm": "labels", task: "next_sentence_label"},
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

    # Report
    if training_args.do_train:
        trainer.save_state()
    if trainer.is_world_process_zero():
        if training_args.do_train:
            snippet = SNIPPET
            if adapter is not None:
                snippet = usage_snippet(adapter, model, AutoModelForPreTraining, training_args.push_to_hub)
            snippet = snippet.replace("{mask}", tokenizer.mask_token).replace("{question}", QUESTIONS[task])
            objective = OBJECTIVE.format(question=QUESTIONS[task])
            names = () if pair_args.is_already_masked else MASK_FLAGS
            names += PAIR_FLAGS if source == "documents" else ()
            settings = {"sentence_task": task} | {name: getattr(pair_args, name) for name in names}
            write_model_card(trainer, model_args, data_args, results, "fill-mask", objective, snippet, settings)
        if adapter_args.merge_adapter:
            save_merged_model(model, adapter, tokenizer, training_args.output_dir)
        print_summary(results, training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub()


def refuse_idle_flags(source: str, is_masked: bool, given: dict) -> None:
    """Refuse what would be ignored with this kind of data."""
    idle = {"keep_linebreaks": "texts lose the white space around them"}
    if source != "documents":
        idle |= dict.fromkeys(
            (*PAIR_FLAGS, "document_by", "text_column"), "the pairs of the data set are made already"
        )
    if source == "ids":
        names = ("whole_word_mask", "train_tokenizer", "preprocess_only")
        idle |= dict.fromkeys(names, "the data set holds token ids, and no text")
    if is_masked:
        idle |= dict.fromkeys(MASK_FLAGS, "the data set is masked already")
    if given.get("segment_by", "line") == "line":
        idle["sentence_language"] = "it goes with --segment_by sentence"
    flag = next((flag for flag in given if flag in idle), None)
    if flag:
        raise UsageError(f"--{flag} has no effect: {idle[flag]}; leave it out")


def _mp_fn(index: int) -> None:
    """For spawners that give each process its index, such as torch_xla's."""
    main()


if __name__ == "__main__":
    main()
