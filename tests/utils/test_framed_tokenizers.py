"""Tokenizers for masked models: a frame around each text, a mask token, RoBERTa's ids."""

import pytest
from conftest import make_lines
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.tokens.tokenizer import load_tokenizer, special_token_affixes
from utils.tokens.tokenizer_training import train_tokenizer


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_special_tokens_are_robertas(kind, tmp_path):
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
    # the mask stands for a word and the space before it
    around = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the", "the cat sat")]
    masked = tokenizer("the <mask> sat", add_special_tokens=False)["input_ids"]
    assert masked[: len(around[0]) + 1] == [*around[0], 4]
    assert around[1][-len(masked[len(around[0]) + 1 :]) :] == masked[len(around[0]) + 1 :]


def test_unframed_stays_unframed():
    tokenizer = train_tokenizer("bpe", [make_lines(100)], 300)
    assert tokenizer.mask_token is None
    assert tokenizer("the")["input_ids"] == tokenizer("the", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_frame_of_a_template(kind):
    tokenizer = train_tokenizer(kind, [make_lines(100)], 300, add_special_tokens=True)
    assert special_token_affixes(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])


def test_frame_without_a_template():
    """[CLS] and [SEP] if there are any, else the ends of text, else nothing."""
    tokenizer = train_tokenizer("unigram", [make_lines(100)], 200)
    assert special_token_affixes(tokenizer) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    tokenizer.cls_token = tokenizer.sep_token = None
    assert special_token_affixes(tokenizer) == ([tokenizer.bos_token_id], [tokenizer.eos_token_id])
    tokenizer.bos_token = None
    assert special_token_affixes(tokenizer) == ([], [tokenizer.eos_token_id])


def test_a_frame_may_stand_behind_alone():
    """As XLNet's: text <sep> <cls>."""
    tokenizer = train_tokenizer("unigram", [make_lines(100)], 200)
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<sep>", "<cls>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <sep> <cls>", pair="$A $B", special_tokens=ids
    )
    assert special_token_affixes(tokenizer) == ([], [ids[0][1], ids[1][1]])


def test_the_cache_tells_framed_and_unframed_apart(tmp_path):
    args = ModelArguments(model_type="bert", train_tokenizer="bpe", vocab_size=280, cache_dir=str(tmp_path))
    documents = Dataset.from_dict({"text": make_lines(100)})
    assert load_tokenizer(args, documents, lambda row: row["text"]).mask_token is None
    assert load_tokenizer(args, documents, lambda row: row["text"], needs_mask_token=True).mask_token == "<mask>"


def test_a_tokenizer_without_mask_token_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    args = ModelArguments(model_type="bert", tokenizer_name=str(tmp_path))
    with pytest.raises(UsageError, match="--tokenizer_name .* no mask token"):
        load_tokenizer(args, None, lambda row: row["text"], needs_mask_token=True)
    assert load_tokenizer(args, None, lambda row: row["text"]) is not None
