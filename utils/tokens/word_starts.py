"""Where the words of a text start among its tokens, for masking whole words."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from utils.errors import UsageError


METASPACE = "▁"  # stands for the space before a word


@dataclass(frozen=True)
class WordPieces:
    """Tells from the pieces alone which tokens start a word, where that is the same as what `tokenizers` reports.

    Attributes:
        starts_word: bool, shape (vocabulary,), whether a token starts a word wherever it stands.
        ends_word: bool, shape (vocabulary,), whether the token after this one starts a word.
        splits_newlines: whether each newline is a word. At the beginning of a text it shares its word with the space
            that the tokenizer prepends, which cannot be seen from the pieces.
        spells_out: whether a text contains the letters of an added token, which may be that token or pieces of a word.
    """

    starts_word: np.ndarray
    ends_word: np.ndarray
    splits_newlines: bool = False
    spells_out: Callable[[str], bool] = lambda text: False

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """uint8 of shape (tokens,): 1 where a token starts a word. `lengths` are the tokens of each text."""
        starts = self.starts_word[tokens]
        starts[1:] |= self.ends_word[tokens[:-1]]
        starts[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
        return starts.astype(np.uint8)

    def is_certain(self, text: str) -> bool:
        """Whether the rule holds for this text."""
        starts_with_newline = self.splits_newlines and text.startswith("\n")
        return not starts_with_newline and not self.spells_out(text)


def word_pieces(tokenizer: Tokenizer) -> WordPieces | None:
    """The rule for BERT's WordPiece and for Unigram with a metaspace (XLNet, ALBERT); None for other tokenizers.

    BERT separates punctuation from words, so that only the continuation of a word starts with "##". A metaspace
    pre-tokenizer splits at each metaspace and nowhere else. A token that was added to the vocabulary is a word. The
    words of byte-level BPE depend on a regular expression and cannot be told from the pieces.
    """
    definition = json.loads(tokenizer.to_str())
    model, steps = definition["model"], _steps(definition["pre_tokenizer"])
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    added = np.zeros(max(vocab.values()) + 1, dtype=bool)
    added[list(tokenizer.get_added_tokens_decoder())] = True
    starts, ends = added.copy(), added.copy()
    kinds = [step["type"] for step in steps]
    if model["type"] == "WordPiece" and kinds == ["BertPreTokenizer"]:
        prefix = model["continuing_subword_prefix"]
        if not prefix.startswith("#"):
            return None
        for token, index in vocab.items():
            if added[index] and token.startswith(prefix):
                return None  # the same id continues a word and is one
            starts[index] |= not token.startswith(prefix)
        return WordPieces(starts, ends)
    if model["type"] != "Unigram" or not kinds or kinds[-1] != "Metaspace" or METASPACE not in vocab:
        return None
    metaspace = steps[-1]
    if metaspace["replacement"] != METASPACE or not metaspace.get("split", True):
        return None
    splits_newlines = len(steps) == 2 and is_newline_split(steps[0]) and metaspace["prepend_scheme"] == "first"
    splits_whitespace = kinds == ["WhitespaceSplit", "Metaspace"] and metaspace["prepend_scheme"] == "always"
    if not (kinds == ["Metaspace"] or splits_whitespace or (splits_newlines and "\n" in vocab)):
        return None
    if model["unk_id"] is not None:
        starts[model["unk_id"]] = ends[model["unk_id"]] = False
    if splits_newlines:
        starts[vocab["\n"]] = ends[vocab["\n"]] = True
    for token, index in vocab.items():
        starts[index] |= token.startswith(METASPACE)
    spells_out = find_any(token.content for token in tokenizer.get_added_tokens_decoder().values())
    return WordPieces(starts, ends, splits_newlines, spells_out)


def find_any(tokens: Iterable[str]) -> Callable[[str], bool]:
    """A function that tells whether a text contains one of these tokens, in letters of either case."""
    lowered = [token.lower() for token in tokens]
    first_letters = {letter for token in lowered for letter in (token[0], token[0].upper())}

    def contains(text: str) -> bool:
        if not any(letter in text for letter in first_letters):
            return False
        lowered_text = text.lower()
        return any(token in lowered_text for token in lowered)

    return contains


def word_starts(word_ids: list[int | None], num_tokens: int) -> np.ndarray:
    """1 where a token's word differs from the previous token's; a token without a word is a word of its own."""
    words = np.array([-1 if word is None else word for word in word_ids[:num_tokens]], dtype=np.int64)
    starts = np.ones(num_tokens, dtype=np.uint8)
    starts[1 : len(words)] = (words[1:] != words[:-1]) | (words[1:] == -1)
    return starts


def require_word_boundaries(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UsageError if the tokenizer cannot report where words start."""
    if not tokenizer.is_fast:
        raise UsageError("--whole_word_mask: a slow tokenizer does not report word boundaries; use a fast one")
    word_ids = tokenizer.backend_tokenizer.encode("two words here", add_special_tokens=False).word_ids
    if len(set(word_ids)) < 2:
        raise UsageError("--whole_word_mask: this tokenizer does not split text into words; leave the flag out")


def is_newline_split(step: dict) -> bool:
    """Whether a pre-tokenizer makes each newline a word of its own and does nothing else."""
    return step["type"] == "Split" and step["behavior"] == "Isolated" and "\n" in step["pattern"].values()


def _steps(pre_tokenizer: dict | None) -> list[dict]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
