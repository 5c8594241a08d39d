"""Get the tokenizer of a run: load it from the Hub or a folder, or train it on the corpus."""

import logging
from collections.abc import Callable

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from utils.compat import register_tokenizer_classes
from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.hub.errors import explain_hub_error, is_hub_error
from utils.models.config import check_config_files
from utils.text.columns import Documents
from utils.tokens.template import tokens_around
from utils.tokens.tokenizer_training import load_or_train_tokenizer


logger = logging.getLogger(__name__)


def load_tokenizer(
    model_args: ModelArguments,
    train_documents: Documents | None,
    document_text: Callable[[dict], str | None],
    needs_mask_token: bool = False,
    for_pairs: bool = False,
) -> PreTrainedTokenizerBase:
    """Load `--tokenizer_name` or the model's own tokenizer, or train one with `--train_tokenizer`.

    Args:
        train_documents: the rows that a new tokenizer is trained on; `document_text` returns their texts.
        needs_mask_token: the tokenizer must have a mask token. A new tokenizer also adds special tokens around each
            text.
        for_pairs: the tokenizer must also have [CLS] and [SEP] tokens. A new tokenizer also gives the second text of a
            pair token type 1.

    Raises:
        UsageError: there is no such tokenizer, it lacks a token that is needed, or a new one cannot be trained.
    """
    if model_args.train_tokenizer:
        if train_documents is None:
            raise UsageError("--train_tokenizer goes with --do_train and training documents (--train_file)")
        return load_or_train_tokenizer(model_args, train_documents, document_text, needs_mask_token, for_pairs)
    name = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
    no_config = check_config_files(name, model_args)
    register_tokenizer_classes()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            use_fast=model_args.use_fast_tokenizer,
            cache_dir=model_args.cache_dir,
            revision=model_args.model_revision,
            token=model_args.token,
            trust_remote_code=model_args.trust_remote_code,
        )
    except Exception as error:  # its type depends on the file that is missing or damaged
        # It hides the answer of the Hub, which was the same for the request of the configuration.
        cause = no_config if no_config is not None and is_hub_error(no_config) else error
        reason = explain_hub_error(cause, name)
        raise UsageError(f"--tokenizer_name {name}: no tokenizer could be loaded: {reason}") from error
    if tokenizer.is_fast and not model_args.use_fast_tokenizer:
        logger.warning("--use_fast_tokenizer false has no effect: there is no slow %s", type(tokenizer).__name__)
    if needs_mask_token and tokenizer.mask_token is None:
        raise UsageError(
            f"--tokenizer_name {name}: this tokenizer has no mask token; choose one of a masked model, or "
            "--train_tokenizer with --model_type"
        )
    missing = [name for name in ("cls_token", "sep_token") if getattr(tokenizer, name) is None]
    if for_pairs and missing:
        raise UsageError(
            f"--tokenizer_name {name}: this tokenizer has no {' and no '.join(missing)} to put around two texts; "
            "choose one of a BERT or ALBERT model, or --train_tokenizer with --model_type"
        )
    return tokenizer


def special_token_affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids of the special tokens that the tokenizer's template adds before and after a text.

    Without a template: [CLS] and [SEP], or BOS and EOS instead, if they exist.
    """
    before, after = _added_by_template(tokenizer)
    if before or after:
        return before, after
    first = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    last = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    return [first] if first is not None else [], [last] if last is not None else []


def log_added_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Log which special tokens the tokenizer's template adds to each document, if any, since they are targets too."""
    before, after = _added_by_template(tokenizer)
    if before or after:
        names = " ".join(tokenizer.convert_ids_to_tokens(before + after))
        logger.info(
            "tokenizer: adds %s to each document (or line, if documents are lines), which is predicted too; "
            "--add_special_tokens false leaves it out", names,
        )  # fmt: skip


def _added_by_template(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer's template adds before and after a text, none if it has no template."""
    text = "A"
    content = tokenizer(text, add_special_tokens=False)["input_ids"]
    with_special_tokens = tokenizer(text)["input_ids"]
    return tokens_around(content, with_special_tokens) if content else ([], [])
