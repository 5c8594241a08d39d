"""Every byte of a text belongs to exactly one token, and to the right one."""

import numpy as np
import pytest
from conftest import make_lines
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from utils.tokens.token_bytes import TokenByteCounter
from utils.tokens.tokenizer_training import train_tokenizer


TEXTS = [
    "The cat sat on a mat.\n",
    "  Two  spaces,\ttabs\n\n and the end   ",
    "Café naïve — “quoted” señor Ångström\n",
    "日本語のテキスト、中文文本。\n",
    "mixed 日本 and é and 🐈‍⬛ emoji",
    "x",
]


def llama_like() -> Tokenizer:
    """A SentencePiece-like BPE with byte fallback: what it does not know becomes tokens such as <0xE6>."""
    vocab = {"<unk>": 0, "<s>": 1} | {f"<0x{byte:02X}>": byte + 2 for byte in range(256)}
    for piece in ("▁", "t", "h", "e", "a", "c", "▁t", "th", "▁th", "▁the"):
        vocab.setdefault(piece, len(vocab))
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h"), ("▁th", "e")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def prefix_space() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS)
    return tokenizer


TOKENIZERS = {
    **{kind: lambda kind=kind: train_tokenizer(kind, [TEXTS, make_lines(50)], 400) for kind in ("bpe", "wordpiece")},
    "unigram": lambda: train_tokenizer("unigram", [TEXTS, make_lines(50)], 200),
    "llama": llama_like,
    "prefix_space": prefix_space,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_all_bytes_are_dealt_out(kind, text):
    tokenizer = TOKENIZERS[kind]()
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    encoding = backend.encode(text)
    counts = TokenByteCounter(backend)(encoding, text)
    assert len(counts) == len(encoding.ids)
    assert counts.sum() == len(text.encode())
    assert (counts >= 0).all()


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_stand_for_their_own_bytes(text):
    """Also where a token ends within a character: with no merges each token is one byte."""
    tokenizer = train_tokenizer("bpe", [TEXTS], 258).backend_tokenizer
    encoding = tokenizer.encode(text)
    counts = TokenByteCounter(tokenizer)(encoding, text)
    assert counts.max() <= 2  # the one merge that fits in 258 tokens
    start = 0
    for token, count in zip(encoding.tokens, counts, strict=True):
        assert len(token) == count
        start += count
    assert start == len(text.encode())


def test_byte_fallback_tokens_are_one_byte_each():
    tokenizer = llama_like()
    text = "the 日"
    encoding = tokenizer.encode(text)
    assert encoding.tokens == ["▁the", "▁", "<0xE6>", "<0x97>", "<0xA5>"]
    np.testing.assert_array_equal(TokenByteCounter(tokenizer)(encoding, text), [3, 1, 1, 1, 1])


def test_dropped_spaces_belong_to_the_next_token_and_the_last_ones_to_the_last():
    tokenizer = train_tokenizer("wordpiece", [["ab cd"] * 3], 50).backend_tokenizer
    encoding = tokenizer.encode("ab  cd \n")
    assert encoding.tokens == ["[CLS]", "ab", "cd", "[SEP]"]
    np.testing.assert_array_equal(TokenByteCounter(tokenizer)(encoding, "ab  cd \n"), [0, 2, 4, 2])
