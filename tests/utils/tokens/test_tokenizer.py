"""Tokenizers: trained ones, their special tokens and templates, and loaded ones that lack a token."""

import json
from pathlib import Path

import pytest
from conftest import make_lines, run_python
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.tokens import tokenizer_training
from utils.tokens.tokenizer import load_tokenizer, special_token_affixes
from utils.tokens.tokenizer_training import TrainingTexts, train_tokenizer


TEXTS = ["The cat  sat.\n\nA new\tline, é 日本\n", " leading and trailing \n"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_restores_the_text(kind, text, tmp_path):
    """Byte-level BPE restores any text, a unigram model any text within its alphabet."""
    train_tokenizer(kind, [make_lines(100), TEXTS], 330).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    decoded = tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False)
    assert decoded == (text if kind == "bpe" else text.removeprefix(" "))


def test_bpe_encodes_unseen_bytes():
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
def test_vocabulary_size_and_special_tokens(kind, vocab_size, special):
    tokenizer = train_tokenizer(kind, [make_lines(200)], vocab_size)
    assert len(tokenizer) <= vocab_size
    assert special <= set(tokenizer.special_tokens_map)
    assert max(tokenizer.get_vocab().values()) + 1 == len(tokenizer)


def test_wordpiece_adds_special_tokens():
    tokenizer = train_tokenizer("wordpiece", [make_lines(100)], 200)
    ids = tokenizer("The CAT")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids[1:-1]) == "the cat"


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_a_vocabulary_that_is_too_small_is_refused(kind):
    with pytest.raises(UsageError, match="--vocab_size 5"):
        train_tokenizer(kind, [make_lines(10)], 5)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_tokenizer_is_trained_once(kind, tmp_path, monkeypatch):
    """A second run loads it from the cache. Other text or another document_text means another tokenizer."""
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


def test_training_needs_documents():
    args = ModelArguments(model_type="gpt2", train_tokenizer="bpe")
    with pytest.raises(UsageError, match="--train_file"):
        load_tokenizer(args, None, lambda row: row["text"])


# Special tokens around each text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_special_tokens_are_those_of_roberta(kind, tmp_path):
    train_tokenizer(kind, [make_lines(100)], 300, add_special_tokens=True).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    names = ("bos_token_id", "pad_token_id", "eos_token_id", "unk_token_id", "mask_token_id")
    assert [getattr(tokenizer, name) for name in names] == [0, 1, 2, 3, 4]
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 2)
    content = tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    assert tokenizer("the cat sat")["input_ids"] == [0, *content, 2]
    assert tokenizer("the", "cat")["input_ids"][-1] == 2
    assert set(tokenizer("the cat")) == {"input_ids", "attention_mask"}
    assert len(tokenizer) <= 300
    # the mask replaces a word and the space before it
    around = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the", "the cat sat")]
    masked = tokenizer("the <mask> sat", add_special_tokens=False)["input_ids"]
    assert masked[: len(around[0]) + 1] == [*around[0], 4]
    assert around[1][-len(masked[len(around[0]) + 1 :]) :] == masked[len(around[0]) + 1 :]


def test_bpe_adds_no_special_tokens_by_default():
    tokenizer = train_tokenizer("bpe", [make_lines(100)], 300)
    assert tokenizer.mask_token is None
    assert tokenizer("the")["input_ids"] == tokenizer("the", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_affixes_of_a_template(kind):
    tokenizer = train_tokenizer(kind, [make_lines(100)], 300, add_special_tokens=True)
    assert special_token_affixes(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])


def test_affixes_without_a_template():
    """[CLS] and [SEP] if they exist, otherwise BOS and EOS, otherwise nothing."""
    tokenizer = train_tokenizer("unigram", [make_lines(100)], 200)
    assert special_token_affixes(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    tokenizer.cls_token = tokenizer.sep_token = None
    assert special_token_affixes(tokenizer) == ([tokenizer.bos_token_id], [tokenizer.eos_token_id])
    tokenizer.bos_token = None
    assert special_token_affixes(tokenizer) == ([], [tokenizer.eos_token_id])


def test_affixes_of_a_template_with_a_suffix_only():
    """Like XLNet's: text <sep> <cls>."""
    tokenizer = train_tokenizer("unigram", [make_lines(100)], 200)
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<sep>", "<cls>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <sep> <cls>", pair="$A $B", special_tokens=ids
    )
    assert special_token_affixes(tokenizer) == ([], [ids[0][1], ids[1][1]])


def test_cache_distinguishes_tokenizers_with_and_without_special_tokens(tmp_path):
    args = ModelArguments(model_type="bert", train_tokenizer="bpe", vocab_size=280, cache_dir=str(tmp_path))
    documents = Dataset.from_dict({"text": make_lines(100)})
    assert load_tokenizer(args, documents, lambda row: row["text"]).mask_token is None
    assert load_tokenizer(args, documents, lambda row: row["text"], needs_mask_token=True).mask_token == "<mask>"


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    args = ModelArguments(model_type="bert", tokenizer_name=str(tmp_path))
    with pytest.raises(UsageError, match="--tokenizer_name .* no mask token"):
        load_tokenizer(args, None, lambda row: row["text"], needs_mask_token=True)
    assert load_tokenizer(args, None, lambda row: row["text"]) is not None


TRAIN_WORDPIECE = """
import sys
from conftest import make_lines
from utils.tokens.tokenizer_training import train_tokenizer
batches = [make_lines(300, 3), ["Æble øre åre naïve 日本語 ξενία"]]
print(train_tokenizer("wordpiece", batches, 200).backend_tokenizer.to_str())
"""


def test_wordpiece_is_the_same_in_each_process():
    """And recognizes no more than its special tokens within a text."""
    path = str(Path(__file__).parents[2])
    trained = {run_python("-c", TRAIN_WORDPIECE, PYTHONPATH=f"{path}:{path}/..").stdout for _ in range(2)}
    assert len(trained) == 1
    added = json.loads(trained.pop())["added_tokens"]
    assert [token["content"] for token in added] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_a_large_corpus_is_sampled(tmp_path):
    """From all of it, about as many bytes as asked for, and the same each time."""
    texts = [f"{i} {line}" for i, line in enumerate(make_lines(2000))]
    sample = TrainingTexts(Dataset.from_dict({"text": texts}), lambda row: row["text"], 10_000)
    chosen = [text for batch in sample for text in batch]
    assert chosen == [text for batch in sample for text in batch]
    assert sample.is_sample and 7_000 < sum(map(len, chosen)) < 13_000
    places = [int(text.split()[0]) for text in chosen]
    assert places == sorted(places) and all(any(low <= i < low + 200 for i in places) for low in range(0, 2000, 200))
    everything = TrainingTexts(Dataset.from_dict({"text": texts}), lambda row: row["text"], 10**9)
    assert not everything.is_sample and [text for batch in everything for text in batch] == texts
