"""RoBERTa numbers its positions from its padding token: all configured positions can still be used."""

import pytest
import torch
from conftest import MASKED_SIZES, make_lines
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    T5Config,
)

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.models.config import load_config
from utils.models.loading import load_model
from utils.models.positions import POSITIONS_AFTER_PADDING, max_positions
from utils.tokens.tokenizer_training import train_tokenizer


SMALL = "num_hidden_layers=1,hidden_size=16,intermediate_size=16,num_attention_heads=2"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_positions=77), 77),
        (GPTNeoXConfig(max_position_embeddings=77), 77),
        (AutoConfig.for_model("bert", max_position_embeddings=64), 64),
        (BloomConfig(), None),
        (T5Config(), None),
        (LlamaConfig(max_position_embeddings=0), None),
    ],
)
def test_max_positions(config, expected):
    assert max_positions(config) == expected


@pytest.mark.parametrize("model_type", sorted(set(POSITIONS_AFTER_PADDING) - {"longformer", "xmod"}))
def test_max_positions_after_padding(model_type):
    """A sequence of max_positions tokens runs, a longer one does not. (Longformer pads its inputs itself.)"""
    sizes = MASKED_SIZES | {"pad_token_id": 1, "vocab_size": 50}
    if model_type == "esm":
        sizes["position_embedding_type"] = "absolute"
    if model_type == "luke":
        sizes["entity_vocab_size"] = 10
    config = AutoConfig.for_model(model_type, **sizes)
    model = AutoModelForMaskedLM.from_config(config).eval()
    longest = max_positions(config)
    assert longest == 62
    with torch.no_grad():
        model(input_ids=torch.full((1, longest), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 7))


def test_default_config_has_512_usable_positions():
    args = ModelArguments(model_type="roberta", train_tokenizer="bpe", config_overrides="num_hidden_layers=1")
    config = load_config(args, AutoModelForMaskedLM, {"roberta"}, 512)
    assert config.max_position_embeddings == 514
    assert max_positions(config) == 512


def test_overridden_positions_are_not_changed():
    overrides = "num_hidden_layers=1,max_position_embeddings=66"
    args = ModelArguments(model_type="roberta", train_tokenizer="bpe", config_overrides=overrides)
    assert load_config(args, AutoModelForMaskedLM, {"roberta"}, 64).max_position_embeddings == 66
    with pytest.raises(UsageError, match="65 is more than the 64 positions .* max_position_embeddings=67"):
        load_config(args, AutoModelForMaskedLM, {"roberta"}, 65)


def test_positions_follow_the_tokenizer():
    """This tokenizer's padding token has a larger id, so more positions are unusable and the model gets more."""
    tokenizer = train_tokenizer("unigram", [make_lines(50)], 100)
    assert tokenizer.pad_token_id > 1
    args = ModelArguments(model_type="roberta", tokenizer_name="-", config_overrides=SMALL)
    config = load_config(args, AutoModelForMaskedLM, {"roberta"}, 512)
    model, _ = load_model(AutoModelForMaskedLM, config, args, tokenizer)
    assert max_positions(model.config) == 512
    with torch.no_grad():
        model(input_ids=torch.full((1, 512), 9))

    args.config_overrides = f"{SMALL},max_position_embeddings=66"
    config = load_config(args, AutoModelForMaskedLM, {"roberta"}, 64)
    with pytest.raises(UsageError, match=f"max_position_embeddings=66.*give {66 + tokenizer.pad_token_id - 1}"):
        load_model(AutoModelForMaskedLM, config, args, tokenizer)
