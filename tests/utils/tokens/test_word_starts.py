"""Word boundaries are those of the tokenizer, for each kind; tokenizers that do not report them are refused."""

import itertools

import numpy as np
import pytest
from conftest import make_lines
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from utils.config.data_arguments import DataArguments
from utils.errors import UsageError
from utils.examples.masked_collator import MaskedLMCollator
from utils.examples.packed import PackedBlocksWithSpecialTokens
from utils.tokens import store_builder
from utils.tokens.token_store import TokenStore
from utils.tokens.tokenization import tokenize_documents
from utils.tokens.tokenizer import special_token_affixes
from utils.tokens.tokenizer_training import train_tokenizer


TEXTS = [
    "Größenwahn über Ålesund, naïveté déjà-vu señorita",
    "日本語のテキスト 中文字符 and mixed 東京tower",
    "unbelievably long-winded words, don't you think?",
    "",
    "one",
]


def document_text(row: dict) -> str | None:
    return row["text"]


def build(texts, tokenizer, tmp_path, **options) -> TokenStore:
    options = {"add_special_tokens": False, "with_word_starts": True} | options
    data_args = DataArguments(train_file=["-"], preprocessing_num_workers=2)
    documents = Dataset.from_dict({"text": texts})
    return tokenize_documents(
        documents, tokenizer, document_text, data_args, cache_dir=str(tmp_path), description="train", **options
    )


def documents_of(store: TokenStore, values: np.ndarray) -> list[list[int]]:
    return [values[start:end].tolist() for start, end in itertools.pairwise(store.offsets)]


@pytest.fixture(params=["bpe", "wordpiece", "unigram"])
def tokenizer(request):
    """A small vocabulary, so that most words are split."""
    vocab_size = {"bpe": 280, "wordpiece": 120, "unigram": 120}[request.param]
    return train_tokenizer(request.param, [TEXTS * 3, make_lines(20)], vocab_size, add_special_tokens=True)


def test_ids_equal_those_of_the_tokenizer_with_and_without_special_tokens(tokenizer, tmp_path):
    store = build(TEXTS, tokenizer, tmp_path)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert documents_of(store, store.tokens) == expected
    with_special_tokens = build(TEXTS, tokenizer, tmp_path, add_special_tokens=True)
    assert documents_of(with_special_tokens, with_special_tokens.tokens) == [
        tokenizer(text)["input_ids"] for text in TEXTS
    ]
    assert store.word_starts.dtype == np.uint8
    assert len(store.word_starts) == len(store.tokens)


def test_words_equal_those_of_the_tokenizer(tokenizer, tmp_path, monkeypatch):
    """As returned by word_ids() of transformers, in batches of any size."""
    monkeypatch.setattr(store_builder, "CHARACTERS_PER_TASK", 20)
    store = build(TEXTS, tokenizer, tmp_path)
    for text, starts in zip(TEXTS, documents_of(store, store.word_starts), strict=True):
        words = tokenizer(text, add_special_tokens=False).word_ids()
        assert starts == [int(i == 0 or words[i] != words[i - 1]) for i in range(len(words))]
    assert 0 < store.word_starts.mean() < 1


def test_words_are_masked_as_a_whole(tokenizer, tmp_path):
    """Within a block, which may split words at its ends. A special token in the text is not part of a word."""
    text = [*TEXTS, f"before {tokenizer.mask_token} after"]
    blocks = PackedBlocksWithSpecialTokens(build(text, tokenizer, tmp_path), 21, special_token_affixes(tokenizer))
    collator = MaskedLMCollator(tokenizer, 0, mlm_probability=0.5, whole_word_mask=True)
    num_pieces = 0
    for epoch in range(20):
        blocks.set_epoch(epoch)
        for example in blocks:
            chosen = (collator([example])["labels"][0] != -100).numpy()
            is_special = np.isin(example["input_ids"], tokenizer.all_special_ids)
            assert not chosen[is_special].any()
            for position in range(1, len(chosen)):
                same_word = not example["word_starts"][position] and not is_special[position - 1 : position + 1].any()
                if same_word:
                    assert chosen[position] == chosen[position - 1]
                    num_pieces += 1
    assert num_pieces > 500


def test_pieces_of_wordpiece_belong_to_the_word_before(tmp_path):
    """An independent check, without word_ids: a piece continues a word if it starts with ##."""
    tokenizer = train_tokenizer("wordpiece", [TEXTS * 3], 120)
    store = build(TEXTS, tokenizer, tmp_path)
    pieces = tokenizer.convert_ids_to_tokens(store.tokens.tolist())
    assert store.word_starts.tolist() == [int(not piece.startswith("##")) for piece in pieces]
    assert "##" in "".join(pieces)


def test_each_document_starts_a_word(tokenizer, tmp_path):
    store = build(["ab", "cd", "ef"], tokenizer, tmp_path)
    for starts in documents_of(store, store.word_starts):
        assert starts[0] == 1


def test_cache_distinguishes_the_options(tokenizer, tmp_path):
    variants = [
        {"add_special_tokens": special, "with_word_starts": words}
        for special, words in itertools.product([False, True], repeat=2)
    ]
    stores = [build(TEXTS, tokenizer, tmp_path, **options) for options in variants]
    assert len({store.path for store in stores}) == 4
    assert [store.word_starts is not None for store in stores] == [False, True, False, True]


def test_together_with_token_bytes(tokenizer, tmp_path):
    store = build(TEXTS, tokenizer, tmp_path, with_token_bytes=True)
    assert store.token_bytes.sum() == sum(len(text.encode()) for text in TEXTS)
    assert store.word_starts.tolist() == build(TEXTS, tokenizer, tmp_path).word_starts.tolist()


def test_a_tokenizer_without_word_boundaries_is_refused(tmp_path):
    """Like that of the first Llama models, which replaces spaces by a letter, so that each text is one word."""
    vocab = {token: index for index, token in enumerate(["<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"])}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", mask_token="<mask>")
    assert len(build(["two words"], tokenizer, tmp_path, with_word_starts=False).tokens) == 9
    with pytest.raises(UsageError, match="--whole_word_mask: this tokenizer does not split text into words"):
        build(["two words"], tokenizer, tmp_path)


def test_a_slow_tokenizer_is_refused(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(UsageError, match="--whole_word_mask.*fast"):
        build(TEXTS, tokenizer, tmp_path)
