"""Train or evaluate a masked language model, such as BERT or RoBERTa, on text.

    python run_mlm.py --model_name_or_path roberta-base --train_file train.txt --validation_file validation.txt \
        --per_device_train_batch_size 8 --output_dir outputs/roberta

The loss is the negative log-likelihood of the tokens that were masked, given all others of their example, in nats.
"""

import dataclasses
from dataclasses import dataclass

from transformers import AutoModelForMaskedLM, set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.entry_point import entry_point
from utils.config.model_arguments import ModelArguments
from utils.config.objective_arguments import LineByLineArguments, MaskingArguments
from utils.config.parser import parse_arguments
from utils.config.training_arguments import LMTrainingArguments
from utils.examples.document_blocks import DocumentBlocks
from utils.examples.masked_collator import MaskedLMCollator
from utils.examples.packed import PackedBlocksWithSpecialTokens, require_one_block
from utils.examples.streaming import make_blocks
from utils.hub.upload import prepare_upload
from utils.models.adapter_checks import check_adapter_arguments
from utils.models.adapters import add_adapter, save_merged_model, usage_snippet
from utils.models.config import default_block_size, load_config
from utils.models.loading import load_model
from utils.models.losses import use_summed_loss
from utils.reports.model_card import write_model_card
from utils.reports.summary import print_counts, print_summary
from utils.text.corpus import load_corpus
from utils.tokens.token_store import tokenize_documents
from utils.tokens.tokenizer import load_tokenizer, special_token_affixes
from utils.training.output_dir import find_checkpoint
from utils.training.trainer import LMTrainer, load_metric


@dataclass
class MaskedLMArguments(LineByLineArguments, MaskingArguments):
    """The flags of this script: how tokens are masked, and what an example is."""


# Wav2Vec2 hears and Perceiver sees, though transformers lists them.
MODEL_TYPES = set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) - {"wav2vec2", "perceiver"}
OBJECTIVE = "The loss is the mean negative log-likelihood of the masked tokens, given all others of their example."
SNIPPET = """from transformers import pipeline

fill_mask = pipeline("fill-mask", model="{model}")
for guess in fill_mask("The {mask} is here."):
    print(guess["score"], guess["sequence"])"""


def document_text(row: dict) -> str | None:
    """What the model reads of one row; edit this for titles, templates, or filters (None leaves the row out)."""
    return row["text"]


@entry_point
def main(args: list[str] | None = None) -> None:
    # Arguments: whatever can be found wrong without reading the text is found wrong here
    model_args, data_args, mlm_args, adapter_args, training_args, run_args = parse_arguments(
        ModelArguments, DataArguments, MaskedLMArguments, AdapterArguments, LMTrainingArguments, args=args
    )
    mlm_args.apply_defaults(data_args, training_args, run_args)
    checkpoint = None if data_args.preprocess_only else find_checkpoint(training_args)
    config = load_config(model_args, AutoModelForMaskedLM, MODEL_TYPES, data_args.block_size)
    check_adapter_arguments(adapter_args, model_args, training_args, config.model_type)
    metric = load_metric(training_args.metric)
    if not data_args.preprocess_only:
        prepare_upload(training_args, run_args)
    set_seed(training_args.seed)

    # Corpus: documents to train on and to evaluate on
    raw_datasets = load_corpus(data_args, training_args, model_args.cache_dir, model_args.token)

    # Tokenizer
    tokenizer = load_tokenizer(model_args, raw_datasets.get("train"), document_text, needs_mask_token=True)

    # Blocks: every token of the corpus, in order, between the special tokens of the model; or one line each
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
            add_special_tokens=False,
            num_tokens_needed=max_samples[split] and max_samples[split] * block_size,
            with_word_starts=mlm_args.whole_word_mask,
        )
        blocks_class = DocumentBlocks if mlm_args.line_by_line else PackedBlocksWithSpecialTokens
        blocks[split] = make_blocks(
            blocks_class, tokens, block_size, special_token_affixes(tokenizer), max_samples[split]
        )
    if training_args.do_eval and not mlm_args.line_by_line:
        require_one_block(blocks["validation"])
    if data_args.preprocess_only:
        print_counts(blocks, training_args)
        return

    # Model
    model, new_weights = load_model(AutoModelForMaskedLM, config, model_args, tokenizer)

    # Adapter: with --train_adapter, all that is trained
    adapter = add_adapter(model, new_weights, adapter_args, model_args, data_args)

    # Loss: summed over the targets, where alone the vocabulary head runs
    use_summed_loss(model, shift=False, label_smoothing=training_args.label_smoothing_factor)

    # Collator: some tokens are masked, and are the targets; which ones, seed, epoch and example decide
    data_collator = MaskedLMCollator(
        tokenizer,
        seed=training_args.seed,
        mlm_probability=mlm_args.mlm_probability,
        mask_replace_prob=mlm_args.mask_replace_prob,
        random_replace_prob=mlm_args.random_replace_prob,
        whole_word_mask=mlm_args.whole_word_mask,
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
                snippet = usage_snippet(adapter, model, AutoModelForMaskedLM, training_args.push_to_hub)
            snippet = snippet.replace("{mask}", tokenizer.mask_token)
            settings = dataclasses.asdict(mlm_args)
            write_model_card(trainer, model_args, data_args, results, "fill-mask", OBJECTIVE, snippet, settings)
        if adapter_args.merge_adapter:
            save_merged_model(model, adapter, tokenizer, training_args.output_dir)
        print_summary(results, training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub()


def _mp_fn(index: int) -> None:
    """For spawners that give each process its index, such as torch_xla's."""
    main()


if __name__ == "__main__":
    main()
