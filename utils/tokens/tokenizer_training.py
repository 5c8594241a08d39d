"""Train a tokenizer on the corpus, once."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

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
from utils.text.cache import cache_folder
from utils.text.columns import Documents
from utils.text.document_stream import DocumentStream
from utils.text.file_documents import FileDocuments
from utils.tokens.exactness import GOLDEN_RATIO
from utils.tokens.tokenization import iterate_texts


logger = logging.getLogger(__name__)

# Part of the cache key: increase it when the result of train_tokenizer() changes.
TRAINER_VERSIONS = {"bpe": 3, "wordpiece": 4, "unigram": 3}


def load_or_train_tokenizer(
    model_args: ModelArguments,
    train_documents: Documents,
    document_text: Callable[[dict], str | None],
    needs_mask_token: bool,
    for_pairs: bool,
) -> PreTrainedTokenizerBase:
    """Train the tokenizer of `--train_tokenizer`, or load it from the cache if a run or process has trained it before.

    See load_tokenizer() for the arguments.
    """
    texts = TrainingTexts(train_documents, document_text, model_args.tokenizer_sample_bytes)
    sampled = {"sample_bytes": texts.num_bytes} if texts.is_sample else {}
    key = fingerprint(
        **sampled,
        trainer_version=TRAINER_VERSIONS[model_args.train_tokenizer],
        kind=model_args.train_tokenizer,
        vocab_size=model_args.vocab_size,
        framed=needs_mask_token,  # the names of the parts are part of the key, so this one stays
        for_pairs=for_pairs,
        documents=train_documents._fingerprint,
        document_text=code_fingerprint(document_text),
        tokenizers_version=tokenizers.__version__,
    )
    path = cache_folder(model_args.cache_dir) / f"{key}.tokenizer"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            logger.info("tokenizer: training %s on %s", model_args.train_tokenizer, texts.extent)
            tokenizer = train_tokenizer(
                model_args.train_tokenizer, texts, model_args.vocab_size, needs_mask_token, for_pairs
            )
            unfinished = path.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            tokenizer.save_pretrained(unfinished)
            Path(unfinished).rename(path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    logger.info("tokenizer: %s with %s tokens", model_args.train_tokenizer, f"{len(tokenizer):,}")
    return tokenizer


def train_tokenizer(
    kind: str,
    batches: Iterable[list[str]],
    vocab_size: int,
    add_special_tokens: bool = False,
    for_pairs: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer.

    Args:
        kind: "bpe", byte-level like GPT-2's, so that no text is unknown to it; "wordpiece", like BERT's, which
            lowercases, strips accents and adds [CLS] and [SEP] around each text; "unigram", like the SentencePiece
            models of XLNet and ALBERT, with newlines as separate tokens.
        batches: the texts to train on, in lists. "wordpiece" reads them twice.
        vocab_size: the maximum number of tokens, including special tokens and the alphabet.
        add_special_tokens: "bpe" and "unigram" also add special tokens around each text, <s> and </s>, and have
            RoBERTa's special tokens <s> <pad> </s> <unk> <mask> with the ids 0 to 4. Masked models need them.
        for_pairs: these two encode a pair of texts as "wordpiece" does, as <s> A </s> B </s> with token types 0 and 1,
            instead of RoBERTa's <s> A </s> </s> B </s>.

    "bpe" and "wordpiece" are reproducible. For "unigram", two trainings can give some tokens other scores and numbers:
    the `tokenizers` library adds up probabilities in the order of hash maps, whose seed differs between processes.

    Raises:
        UsageError: `vocab_size` is too small for the alphabet, or too large for the text.
    """
    tokenizer, trainer_class, options = _untrained_tokenizer(kind)
    named_tokens = _special_tokens(kind, add_special_tokens)
    special_tokens = list(dict.fromkeys(named_tokens.values()))  # in the order of their ids
    continuations = _continuations(batches) if kind == "wordpiece" else []
    least = len(special_tokens) + len(options.get("initial_alphabet", ()))
    if vocab_size <= least:
        raise UsageError(
            f"--vocab_size {vocab_size}: a {kind} tokenizer needs more than the {least} tokens of its alphabet and "
            "special tokens"
        )
    trainer = trainer_class(
        vocab_size=vocab_size,
        special_tokens=[*special_tokens, *continuations],
        show_progress=sys.stderr.isatty(),
        **options,
    )
    try:
        tokenizer.train_from_iterator(batches, trainer)
    except Exception as error:  # the Rust library raises nothing more specific
        raise UsageError(f"--train_tokenizer {kind} --vocab_size {vocab_size}: {error}; try fewer tokens") from error
    if kind == "wordpiece":
        tokenizer = _without_added_tokens(tokenizer, special_tokens)
        tokenizer.post_processor = _template(tokenizer, "[CLS]", "[SEP]", for_pairs=True)
    elif add_special_tokens:
        tokenizer.post_processor = _template(tokenizer, "<s>", "</s>", for_pairs)
    input_names = ["input_ids", "token_type_ids", "attention_mask"]
    if kind != "wordpiece" and not for_pairs:
        input_names.remove("token_type_ids")  # GPT-2 would add an embedding for each type
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named_tokens, model_input_names=input_names)


class TrainingTexts:
    """The texts that a tokenizer is trained on, in lists: all documents, or about as many bytes as asked for.

    A sample has documents from all of the corpus, always the same ones; that of a stream, whose length is unknown, is
    its beginning. Can be iterated over again.

    Attributes:
        is_sample: whether documents are left out.
        num_bytes: the size of the sample.
    """

    def __init__(self, documents: Documents, document_text: Callable[[dict], str | None], num_bytes: int):
        self.documents = documents
        self.document_text = document_text
        self.num_bytes = num_bytes
        self._share = 1.0
        if isinstance(documents, Dataset):
            self._share = num_bytes / max(documents.data.nbytes * len(documents) / max(len(documents.data), 1), 1)
        elif isinstance(documents, FileDocuments):
            self._share = num_bytes / max(sum(map(os.path.getsize, documents.files)), 1)
        self.is_sample = self._share < 1 or isinstance(documents, DocumentStream)

    @property
    def extent(self) -> str:
        """For the log."""
        if isinstance(self.documents, DocumentStream):
            return f"up to {self.num_bytes:,} bytes from the beginning of the stream"
        if self.is_sample:
            return f"{self._share:.1%} of the documents, spread over the corpus (--tokenizer_sample_bytes)"
        return f"{len(self.documents):,} documents" if isinstance(self.documents, Dataset) else "all documents"

    def __iter__(self) -> Iterator[list[str]]:
        number = num_bytes = 0
        for texts in iterate_texts(self.documents, self.document_text):
            if self._share < 1:
                numbers = range(number, number + len(texts))
                texts = [text for i, text in zip(numbers, texts, strict=True) if _is_drawn(i, self._share)]
                number = numbers.stop
            texts = [text for text in texts if text]
            yield texts
            if isinstance(self.documents, DocumentStream):
                num_bytes += sum(len(text.encode()) for text in texts)
                if num_bytes >= self.num_bytes:
                    return


def _is_drawn(number: int, share: float) -> bool:
    """Whether a document is in a sample of this share: evenly spread, and unlike any pattern in a corpus."""
    return number * GOLDEN_RATIO % 2**64 < share * 2**64


def _continuations(batches: Iterable[list[str]]) -> list[str]:
    """Each character that continues a word, as "##" and the character, sorted.

    The library numbers them in the order of a hash map, and breaks ties between merges by these numbers. Given to it
    as special tokens, they have the same numbers in each process.
    """
    assert iter(batches) is not batches  # the texts are read once for this, and once more to train
    tokenizer, trainer_class, options = _untrained_tokenizer("wordpiece")
    tokenizer.train_from_iterator(batches, trainer_class(vocab_size=0, show_progress=False, **options))
    return sorted(token for token in tokenizer.get_vocab() if token.startswith("##") and len(token) > 2)


def _without_added_tokens(tokenizer: Tokenizer, kept: list[str | AddedToken]) -> Tokenizer:
    """The same tokenizer, in which only the tokens in `kept` are recognized within a text."""
    definition = json.loads(tokenizer.to_str())
    contents = {str(token.content if isinstance(token, AddedToken) else token) for token in kept}
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] in contents]
    return Tokenizer.from_str(json.dumps(definition))


def _untrained_tokenizer(kind: str) -> tuple[Tokenizer, type, dict[str, Any]]:
    """The tokenizer, the class of its trainer and the trainer's options."""
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, trainers.BpeTrainer, {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer, trainers.WordPieceTrainer, {"continuing_subword_prefix": "##"}
    tokenizer = Tokenizer(models.Unigram())
    newline = pre_tokenizers.Split(Regex("\n"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([newline, pre_tokenizers.Metaspace(prepend_scheme="first")])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer, trainers.UnigramTrainer, {"unk_token": "<unk>"}


def _special_tokens(kind: str, add_special_tokens: bool) -> dict[str, str | AddedToken]:
    """The special tokens by role. Their ids follow the order of first occurrence."""
    if kind == "wordpiece":
        return {
            "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
            "mask_token": "[MASK]", "bos_token": "[CLS]", "eos_token": "[SEP]",
        }  # fmt: skip
    if add_special_tokens:
        # Like the word that it replaces, the mask includes the space before it.
        mask = AddedToken("<mask>", lstrip=True, special=True)
        return {
            "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": mask,
            "cls_token": "<s>", "sep_token": "</s>",
        }  # fmt: skip
    if kind == "bpe":
        return {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return {
        "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "cls_token": "<cls>",
        "sep_token": "<sep>", "mask_token": "<mask>",
    }  # fmt: skip


def _template(tokenizer: Tokenizer, first: str, last: str, for_pairs: bool) -> processors.TemplateProcessing:
    """Add `first` before and `last` after each text."""
    return processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1" if for_pairs else f"{first} $A {last} {last} $B {last}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
