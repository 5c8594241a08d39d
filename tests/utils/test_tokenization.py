"""Trained tokenizers."""

import pytest
from conftest import make_lines
from datasets import Dataset
from transformers import AutoTokenizer

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.tokens import tokenizer_training
from utils.tokens.tokenizer import load_tokenizer
from utils.tokens.tokenizer_training import train_tokenizer


TEXTS = ["The cat  sat.\n\nA new\tline, é 日本\n", " leading and trailing \n"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(kind, text, tmp_path):
    """Byte-level BPE loses nothing; a unigram model nothing that its alphabet knows."""
    train_tokenizer(kind, [make_lines(100), TEXTS], 330).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    decoded = tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False)
    assert decoded == (text if kind == "bpe" else text.removeprefix(" "))


def test_bytes_never_seen_are_known_to_bpe():
    tokenizer = train_tokenizer("bpe", [["abc"]], 260)
    assert tokenizer.decode(tokenizer("🐈 ÿ")["input_ids"]) == "🐈 ÿ"


@pytest.mark.parametrize(
    ("kind", "vocab_size", "special"),
    [
        ("bpe", 300, {"eos_token", "bos_token"}),
        ("wordpiece", 200, {"pad_token", "unk_token", "cls_token", "sep_token", "mask_token"}),
        ("unigram", 100, {"pad_token", "unk_token", "bos_token", "eos_token", "mask_token"}),
    ],
)
def test_size_and_special_tokens(kind, vocab_size, special):
    tokenizer = train_tokenizer(kind, [make_lines(200)], vocab_size)
    assert len(tokenizer) <= vocab_size
    assert special <= set(tokenizer.special_tokens_map)
    assert max(tokenizer.get_vocab().values()) + 1 == len(tokenizer)


def test_wordpiece_frames_a_text():
    tokenizer = train_tokenizer("wordpiece", [make_lines(100)], 200)
    ids = tokenizer("The CAT")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids[1:-1]) == "the cat"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_too_small_a_vocabulary_is_refused(kind):
    with pytest.raises(UsageError, match="--vocab_size 5"):
        train_tokenizer(kind, [make_lines(10)], 5)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_trained_once(kind, tmp_path, monkeypatch):
    """A second run finds the tokenizer in the cache; other text or another document_text trains another one."""
    trainings = []
    train = tokenizer_training.train_tokenizer
    monkeypatch.setattr(tokenizer_training, "train_tokenizer", lambda *args: trainings.append(1) or train(*args))
    args = ModelArguments(model_type="gpt2", train_tokenizer=kind, vocab_size=280, cache_dir=str(tmp_path / "a"))
    documents = Dataset.from_dict({"text": make_lines(100)})
    first = load_tokenizer(args, documents, lambda row: row["text"])
    second = load_tokenizer(args, documents, lambda row: row["text"])
    assert len(trainings) == 1
    assert first.get_vocab() == second.get_vocab()
    load_tokenizer(args, documents.select(range(50)), lambda row: row["text"])
    load_tokenizer(args, documents, lambda row: row["text"][1:])
    assert len(trainings) == 3


def test_bpe_training_is_reproducible():
    vocabularies = [train_tokenizer("bpe", [make_lines(300)], 350).get_vocab() for _ in range(3)]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]


def test_training_documents_are_needed():
    args = ModelArguments(model_type="gpt2", train_tokenizer="bpe")
    with pytest.raises(UsageError, match="--train_file"):
        load_tokenizer(args, None, lambda row: row["text"])
