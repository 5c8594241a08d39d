"""Train a tokenizer on the corpus."""

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import tokenizers
from datasets import Dataset
from filelock import FileLock
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.fingerprint import code_fingerprint, fingerprint
from utils.text.document_stream import DocumentStream
from utils.tokens.token_store import cache_folder, texts


logger = logging.getLogger(__name__)


TRAINER_VERSION = 3  # part of the cache key: count it up when train_tokenizer() changes its result


def _trained_tokenizer(
    model_args: ModelArguments,
    train_documents: Dataset | DocumentStream,
    document_text: Callable[[dict], str | None],
    for_masks: bool,
    for_pairs: bool,
) -> PreTrainedTokenizerBase:
    """Train once and keep it in the cache, where a second run, and the other processes of this one, find it."""
    key = fingerprint(
        trainer_version=TRAINER_VERSION,
        kind=model_args.train_tokenizer,
        vocab_size=model_args.vocab_size,
        framed=for_masks,
        for_pairs=for_pairs,
        documents=train_documents._fingerprint,
        document_text=code_fingerprint(document_text),
        tokenizers_version=tokenizers.__version__,
    )
    path = cache_folder(model_args.cache_dir) / f"{key}.tokenizer"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            is_stream = isinstance(train_documents, DocumentStream)
            how_many = "all documents of the stream" if is_stream else f"{len(train_documents):,} documents"
            logger.info("tokenizer: training %s on %s", model_args.train_tokenizer, how_many)
            kept = ([text for text in batch if text] for batch in texts(train_documents, document_text))
            tokenizer = train_tokenizer(model_args.train_tokenizer, kept, model_args.vocab_size, for_masks, for_pairs)
            unfinished = path.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            tokenizer.save_pretrained(unfinished)
            Path(unfinished).rename(path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    logger.info("tokenizer: %s with %s tokens", model_args.train_tokenizer, f"{len(tokenizer):,}")
    return tokenizer


def train_tokenizer(
    kind: str, documents, vocab_size: int, framed: bool = False, for_pairs: bool = False
) -> PreTrainedTokenizerFast:
    """Train a tokenizer.

    Args:
        kind: "bpe", byte-level as GPT-2's, so that no text is unknown to it; "wordpiece", as BERT's, which lowers
            case, drops accents and frames each text with [CLS] and [SEP]; "unigram", as XLNet's and ALBERT's
            SentencePiece models, in which new lines are tokens of their own.
        documents: iterable of lists of texts.
        vocab_size: the most tokens it may have, special tokens and alphabet included.
        framed: for a masked model: "bpe" and "unigram" too frame each text, with <s> and </s>, and have RoBERTa's
            special tokens <s> <pad> </s> <unk> <mask>, with the ids 0 to 4.
        for_pairs: those two frame a pair of texts as "wordpiece" does, <s> A </s> B </s> with token types 0 and 1.

    The `tokenizers` library orders ties by hash maps that are seeded anew in each process, so that two trainings of
    "wordpiece" or "unigram" may number some tokens differently; "bpe" is reproducible.
    """
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
        trainer_class = trainers.BpeTrainer
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        special |= {"mask_token": "[MASK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
        options = {"continuing_subword_prefix": "##"}
        trainer_class = trainers.WordPieceTrainer
    else:
        tokenizer = Tokenizer(models.Unigram())
        new_line = pre_tokenizers.Split(Regex("\n"), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([new_line, pre_tokenizers.Metaspace(prepend_scheme="first")])
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        special |= {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"}
        options = {"unk_token": "<unk>"}
        trainer_class = trainers.UnigramTrainer
    if framed and kind != "wordpiece":
        special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        # A mask takes the space before it along, as the token that it stands for would.
        special["mask_token"] = AddedToken("<mask>", lstrip=True, special=True)
        special |= {"cls_token": "<s>", "sep_token": "</s>"}
    special_tokens = list(dict.fromkeys(special.values()))
    least = len(special_tokens) + len(options.get("initial_alphabet", ()))
    if vocab_size <= least:
        raise UsageError(f"--vocab_size {vocab_size}: a {kind} tokenizer needs more than its alphabet, {least} tokens")
    trainer = trainer_class(
        vocab_size=vocab_size, special_tokens=special_tokens, show_progress=sys.stderr.isatty(), **options
    )
    try:
        tokenizer.train_from_iterator(documents, trainer)
    except Exception as error:  # the Rust library raises nothing narrower
        raise UsageError(f"--train_tokenizer {kind} --vocab_size {vocab_size}: {error}; try fewer tokens") from error
    if kind == "wordpiece":
        ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    elif framed:
        ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1" if for_pairs else "<s> $A </s> </s> $B </s>",
            special_tokens=ids,
        )
    input_names = ["input_ids", "token_type_ids", "attention_mask"]
    if kind != "wordpiece" and not for_pairs:
        input_names.remove("token_type_ids")  # GPT-2 would add an embedding for their type
    special["model_input_names"] = input_names
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
