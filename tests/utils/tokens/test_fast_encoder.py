"""The fast encoders give the ids of `tokenizers`, or are not used."""

import itertools
import json
import logging
import multiprocessing

import numpy as np
import pytest
from conftest import make_lines
from datasets import Dataset
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from utils.config.data_arguments import DataArguments
from utils.tokens import encoder as encoder_module
from utils.tokens import fast_encoder, store_builder
from utils.tokens.encoder import Encoder
from utils.tokens.exactness import FIRST_CHARACTERS, ONE_IN, SCRIPTS, documents_to_compare, hard_texts
from utils.tokens.fast_encoder import FastEncoder, Unsupported, load_fast_encoder
from utils.tokens.token_store import TokenStore
from utils.tokens.tokenization import tokenize_documents
from utils.tokens.tokenizer_training import train_tokenizer


CODE = 'def f(x: int) -> str:\n    """Doc."""\n\treturn {"a": [x << 2, 0xFF, 1e-9]}[f"{x!r}"]  # ok\r\n\n\n'
LANGUAGES = [
    "Det var en gang en gutt som het Espen Askeladd. «Hva er det?» spurte kongen; på øya.\n",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。カタカナ、ｶﾅ。\n",
    "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte…\n",
    "كان يا ما كان، في قديم الزمان، ملكٌ عادلٌ يحكم مدينةً كبيرة.\n",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।\n",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ\n",
    CODE,
]
TEXTS = [*make_lines(100), *LANGUAGES, "\n".join(LANGUAGES), *SCRIPTS]
# Llama 3's and Qwen's: the split of words is the only difference to GPT-2.
LLAMA3 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
    ]
)  # fmt: skip


def gpt_like(pattern: str, normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


def llama2_like() -> PreTrainedTokenizerFast:
    """BPE of whole texts, with a token for each byte that is no character of the vocabulary."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = list(map(chr, range(33, 127)))
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(make_lines(200), trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"])]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def albert_like() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", AddedToken("<mask>", lstrip=True, normalized=True)]
    trainer = trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="[SEP]")


KINDS = {
    "gpt2": lambda: train_tokenizer("bpe", [TEXTS], 600),
    "roberta": lambda: train_tokenizer("bpe", [TEXTS], 600, add_special_tokens=True),
    "llama3": lambda: gpt_like(LLAMA3),
    "qwen": lambda: gpt_like(LLAMA3.replace("{1,3}", ""), normalizers.NFC()),
    "llama2": llama2_like,
    "bert": lambda: train_tokenizer("wordpiece", [TEXTS], 900),
    "unigram": lambda: train_tokenizer("unigram", [TEXTS], 1500),
    "framed unigram": lambda: train_tokenizer("unigram", [TEXTS], 1500, add_special_tokens=True),
    "albert": albert_like,
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> PreTrainedTokenizerFast:
    return KINDS[request.param]()


def special_texts(tokenizer) -> list[str]:
    return [f"the{token} cat {token}{token}\n{token}" for token in tokenizer.get_added_vocab()]


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("append_eos", [True, False])
def test_ids_are_those_of_the_tokenizer(kind, add_special_tokens, append_eos):
    """Document by document, on the hard texts too, and empty or repeated ones, in one batch."""
    texts = [*TEXTS, "", "", *hard_texts(kind.get_added_vocab()), *special_texts(kind), *TEXTS[:5], ""]
    encoder = Encoder(kind, append_eos, add_special_tokens, False, False)
    assert encoder.fast is not None, encoder.fast_refusal
    encoded = encoder(texts)
    ends = np.cumsum([0, *encoded.lengths])
    for text, (start, end) in zip(texts, itertools.pairwise(ends), strict=True):
        ids = kind(text, add_special_tokens=add_special_tokens)["input_ids"]
        if append_eos:
            ids = [*ids, *([] if ids[-1:] in ([], [kind.eos_token_id]) else [kind.eos_token_id])] if text else []
        assert encoded.tokens[start:end].tolist() == ids, text
    assert encoded.document_bytes.tolist() == [len(text.encode()) for text in texts]


def test_ids_after_tokens_were_added(kind):
    """Whether the fast encoder knows them or is refused for that."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(kind.backend_tokenizer.to_str()))
    tokenizer.add_tokens(["cat sat", "<extra>", AddedToken(" the", normalized=False)])
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|im|>", lstrip=True, rstrip=True)]})
    texts = [*TEXTS, "the cat sat <extra><|im|> on the <|im|>\n<|im|>mat.", *special_texts(tokenizer)]
    encoded = Encoder(tokenizer, False, True, False, False)(texts)
    assert encoded.tokens.tolist() == [token for text in texts for token in tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("name", ["gpt2", "roberta", "llama3", "qwen"])
def test_bytes_of_byte_level_tokens(name):
    """As counted with `tokenizers`, where a normalizer changes the text too."""
    tokenizer = KINDS[name]()
    texts = ["", *TEXTS, *hard_texts(tokenizer.get_added_vocab()), ""]
    fast, exact = (Encoder(tokenizer, True, True, True, False, use_fast_encoder=use) for use in (True, False))
    assert fast.fast is not None and exact.fast is None
    encoded, expected = fast(texts), exact(texts)
    assert np.array_equal(encoded.tokens, expected.tokens)
    assert np.array_equal(encoded.token_bytes, expected.token_bytes)
    assert encoded.token_bytes.sum() + encoded.trailing_bytes == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("name", ["bert", "unigram", "framed unigram", "albert"])
def test_words_follow_from_pieces(name):
    tokenizer = KINDS[name]()
    texts = [*TEXTS, "\n", "\nthe", "", *hard_texts(tokenizer.get_added_vocab()), *special_texts(tokenizer)]
    fast, exact = (Encoder(tokenizer, False, True, False, True, use_fast_encoder=use) for use in (True, False))
    assert fast.fast is not None and exact.fast is None, fast.fast_refusal
    assert np.array_equal(fast(texts).word_starts, exact(texts).word_starts)


def test_a_forked_process_can_encode_too(kind):
    """Although the threads of a library do not exist in it."""
    encoder = Encoder(kind, False, False, False, False)
    encoder(TEXTS)
    process = multiprocessing.get_context("fork").Process(target=encoder, args=(TEXTS,))
    process.start()
    process.join(30)
    is_alive = process.is_alive()
    process.kill()
    assert not is_alive and process.exitcode == 0


def test_what_is_refused_says_why(tokenizer):
    word_level = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    assert "WordLevel" in Encoder(word_level, False, False, False, False).fast_refusal
    assert "pieces" in Encoder(tokenizer, False, False, False, True).fast_refusal
    assert "character offsets" in Encoder(KINDS["bert"](), False, False, True, False).fast_refusal
    assert "--fast_encoder off" in Encoder(tokenizer, False, False, False, False, use_fast_encoder=False).fast_refusal


def test_a_library_that_is_missing(tokenizer, monkeypatch):
    def missing(definition: str):
        raise ImportError("No module named 'fastokens'")

    monkeypatch.setattr(fast_encoder, "_load_fastokens", missing)
    with pytest.raises(Unsupported, match="fastokens is not installed"):
        load_fast_encoder(tokenizer.backend_tokenizer, tokenizer.backend_tokenizer.to_str())
    encoder = Encoder(tokenizer, False, False, False, False)
    assert encoder(["the cat"]).tokens.tolist() == tokenizer("the cat")["input_ids"]


# An encoder that is wrong


def wrong_on(text: str):
    """A stand-in for load_fast_encoder: right but for one id of one text."""

    def load(backend: Tokenizer, serialized: str) -> FastEncoder:
        right = load_fast_encoder(backend, serialized)

        def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
            ids, lengths = right.encode(texts)
            ids = ids.copy()
            for i in np.flatnonzero([candidate == text for candidate in texts]):
                ids[lengths[:i].sum()] += 1
            return ids, lengths

        return FastEncoder(right.name, encode)

    return load


def document_text(row: dict) -> str:
    return row["text"]


def tokenize(texts: list[str], tokenizer, folder, **flags) -> TokenStore:
    data_args = DataArguments(train_file=["-"], preprocessing_num_workers=2, **flags)
    documents = Dataset.from_dict({"text": texts})
    return tokenize_documents(
        documents, tokenizer, document_text, data_args, cache_dir=str(folder), description="train"
    )


def metadata_of(folder) -> list[dict]:
    return [json.loads(path.read_text()) for path in (folder / "language_modeling").glob("*/part.json")]


def test_an_encoder_that_is_wrong_on_a_hard_text_is_not_used(tokenizer, monkeypatch):
    monkeypatch.setattr(encoder_module, "load_fast_encoder", wrong_on(SCRIPTS[7]))
    encoder = Encoder(tokenizer, False, False, False, False)
    assert encoder.fast is None and "other ids" in encoder.fast_refusal


@pytest.mark.parametrize("is_among_the_first", [True, False])
def test_an_encoder_that_is_wrong_on_a_document_is_given_up(
    is_among_the_first, tokenizer, tmp_path, monkeypatch, caplog
):
    """The run warns, and nothing of the fast encoder is left, of earlier parts neither; also in the next run."""
    texts = [f"{number}: {line} {'x' * 300}" for number, line in enumerate(make_lines(3000))]
    monkeypatch.setattr("utils.tokens.corpus_parts.PART_BYTES", 200_000)
    tokenize(texts, tokenizer, tmp_path / "right")
    compared = [part["compared"] for part in metadata_of(tmp_path / "right")]
    assert len(compared) > 3 and all(
        part["encoder"].startswith("fastokens") for part in metadata_of(tmp_path / "right")
    )
    assert sum(compared) > FIRST_CHARACTERS / 500 + len(texts) / ONE_IN / 2

    compared_texts = []
    choose = store_builder.documents_to_compare
    with monkeypatch.context() as patch:

        def record(texts: list[str], *args) -> list[int]:
            chosen = choose(texts, *args)
            compared_texts.extend(texts[i] for i in chosen)
            return chosen

        patch.setattr(store_builder, "documents_to_compare", record)
        tokenize(texts, tokenizer, tmp_path / "recorded")
    wrong = compared_texts[3] if is_among_the_first else max(compared_texts, key=texts.index)
    monkeypatch.setattr(encoder_module, "load_fast_encoder", wrong_on(wrong))
    for expected_warnings in (1, 0):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            store = tokenize(texts, tokenizer, tmp_path / "wrong")
        assert np.asarray(store.tokens).tolist() == [token for text in texts for token in tokenizer(text)["input_ids"]]
        warnings = [record.getMessage() for record in caplog.records if wrong[:20] in record.getMessage()]
        assert len(warnings) == expected_warnings
        assert all(part["is_by_tokenizers"] for part in metadata_of(tmp_path / "wrong"))


def test_the_flag_turns_it_off(tokenizer, tmp_path):
    """Also for parts that a fast encoder tokenized earlier."""
    texts = make_lines(300)
    stores = [tokenize(texts, tokenizer, tmp_path, fast_encoder=value) for value in ("auto", "off")]
    assert stores[0].path == stores[1].path and stores[0].checksum == stores[1].checksum
    (metadata,) = metadata_of(tmp_path)
    assert metadata["encoder"].startswith("tokenizers") and metadata["compared"] == 0


def test_which_documents_are_compared():
    """The first ones up to a number of characters, and about one in 128 wherever the parts and batches end."""
    texts = ["x" * 1000] * 50_000
    chosen = documents_to_compare(texts, seed=12345, first_number=0, is_first=True)
    num_first = FIRST_CHARACTERS // 1000 + 1
    assert chosen[:num_first] == list(range(num_first))
    rest = documents_to_compare(texts, 12345, 0, is_first=False)
    assert set(chosen) - set(range(num_first)) <= set(rest)
    assert abs(len(rest) - len(texts) / ONE_IN) < 3
    in_batches = [
        start + i
        for start in range(0, 50_000, 70)
        for i in documents_to_compare(texts[start : start + 70], 12345, start, False)
    ]
    assert in_batches == rest
