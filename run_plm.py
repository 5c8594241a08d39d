"""Train or evaluate a permutation language model, XLNet, on text.

    python run_plm.py --model_name_or_path xlnet/xlnet-base-cased --train_file train.txt \
        --validation_file validation.txt --per_device_train_batch_size 8 --output_dir outputs/xlnet

The loss is the negative log-likelihood, in nats, of the tokens that were chosen as targets: each given the tokens that
were not chosen and the targets before it, in a random order.
"""

import dataclasses
from dataclasses import dataclass, field

from transformers import AutoModelForCausalLM, set_seed

from utils.config.adapter_arguments import AdapterArguments
from utils.config.data_arguments import DataArguments
from utils.config.entry_point import entry_point
from utils.config.model_arguments import ModelArguments
from utils.config.objective_arguments import LineByLineArguments
from utils.config.parser import parse_arguments
from utils.config.training_arguments import LMTrainingArguments
from utils.errors import UsageError
from utils.examples.document_blocks import DocumentBlocks
from utils.examples.packed import PackedBlocksWithSpecialTokens, require_one_block
from utils.examples.permutation_collator import PermutationLMCollator
from utils.examples.streaming import make_blocks
from utils.hub.upload import prepare_upload
from utils.models.adapter_checks import check_adapter_arguments
from utils.models.adapters import add_adapter, save_merged_model, usage_snippet
from utils.models.config import default_block_size, load_config
from utils.models.factorization_order import use_factorization_order
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
class PermutationLMArguments(LineByLineArguments):
    """The flags of this script alone."""

    plm_probability: float = field(
        default=1 / 6,
        metadata={"help": "Share of the tokens that are predicted. Default: 1/6, XLNet's. All others are context."},
    )
    max_span_length: int = field(
        default=5,
        metadata={"help": "The predicted tokens lie in spans of 1 to so many neighbours. Default: 5, XLNet's."},
    )

    def __post_init__(self):
        if not 0 < self.plm_probability <= 1:
            raise UsageError(f"--plm_probability {self.plm_probability}: give a number above 0, at most 1")
        if self.max_span_length < 1:
            raise UsageError(f"--max_span_length {self.max_span_length}: give 1 or more")


MOST_TOKENS = 512  # of an example, unless --max_seq_length says otherwise: XLNet has no limit of its own
OBJECTIVE = (
    "The loss is the mean negative log-likelihood of the predicted tokens, each given the tokens of its example that "
    "are not predicted and the predicted ones before it in a random order; the perplexity is its exponential."
)
SNIPPET = """from transformers import pipeline

generator = pipeline("text-generation", model="{model}")
print(generator("Once upon a time", max_new_tokens=40)[0]["generated_text"])"""


def document_text(row: dict) -> str | None:
    """What the model reads of one row; edit this for titles, templates, or filters (None leaves the row out)."""
    return row["text"]


@entry_point
def main(args: list[str] | None = None) -> None:
    # Arguments: whatever can be found wrong without reading the text is found wrong here
    model_args, data_args, plm_args, adapter_args, training_args, run_args = parse_arguments(
        ModelArguments, DataArguments, PermutationLMArguments, AdapterArguments, LMTrainingArguments, args=args
    )
    plm_args.apply_defaults(data_args, training_args, run_args)
    if plm_args.max_span_length > (data_args.block_size or MOST_TOKENS):
        raise UsageError(f"--max_span_length {plm_args.max_span_length} is more than an example has tokens: give less")
    checkpoint = None if data_args.preprocess_only else find_checkpoint(training_args)
    config = load_config(model_args, AutoModelForCausalLM, ["xlnet"], data_args.block_size)
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
    block_size = data_args.block_size or default_block_size(config, tokenizer.model_max_length, most=MOST_TOKENS)
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
        )
        blocks_class = DocumentBlocks if plm_args.line_by_line else PackedBlocksWithSpecialTokens
        blocks[split] = make_blocks(
            blocks_class, tokens, block_size, special_token_affixes(tokenizer), max_samples[split]
        )
    if training_args.do_eval and not plm_args.line_by_line:
        require_one_block(blocks["validation"])
    if data_args.preprocess_only:
        print_counts(blocks, training_args)
        return

    # Model
    model, new_weights = load_model(AutoModelForCausalLM, config, model_args, tokenizer)

    # Adapter: with --train_adapter, all that is trained
    adapter = add_adapter(model, new_weights, adapter_args, model_args, data_args)

    # Loss: summed over the targets, where alone the query stream and the vocabulary head run
    use_factorization_order(model)
    use_summed_loss(model, shift=False, label_smoothing=training_args.label_smoothing_factor)

    # Collator: some tokens are the targets, predicted in a random order; seed, epoch and example decide about both
    data_collator = PermutationLMCollator(
        tokenizer,
        seed=training_args.seed,
        plm_probability=plm_args.plm_probability,
        max_span_length=plm_args.max_span_length,
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
        target_name="predicted_tokens",
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
                snippet = usage_snippet(adapter, model, AutoModelForCausalLM, training_args.push_to_hub)
            settings = dataclasses.asdict(plm_args)
            write_model_card(trainer, model_args, data_args, results, "text-generation", OBJECTIVE, snippet, settings)
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
