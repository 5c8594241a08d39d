"""RoBERTa's positions start after its padding token: all that the configuration promises can be used."""

import pytest
import torch
from conftest import MASKED_SIZES, make_lines
from transformers import AutoConfig, AutoModelForMaskedLM

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.models.config import POSITIONS_AFTER_PADDING, load_config, max_positions
from utils.models.loading import load_model
from utils.tokens.tokenizer_training import train_tokenizer


@pytest.mark.parametrize("model_type", sorted(set(POSITIONS_AFTER_PADDING) - {"longformer", "xmod"}))
def test_the_last_position_is_the_last(model_type):
    """A sequence of max_positions tokens runs, one of a token more does not. (Longformer pads by itself.)"""
    sizes = MASKED_SIZES | {"pad_token_id": 1, "vocab_size": 50}
    if model_type == "esm":
        sizes["position_embedding_type"] = "absolute"
    config = AutoConfig.for_model(model_type, **sizes)
    model = AutoModelForMaskedLM.from_config(config).eval()
    longest = max_positions(config)
    assert longest == 62
    with torch.no_grad():
        model(input_ids=torch.full((1, longest), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), 7))


def test_others_have_them_all():
    assert max_positions(AutoConfig.for_model("bert", max_position_embeddings=64)) == 64


def test_from_scratch_the_configured_number_can_be_used():
    args = ModelArguments(model_type="roberta", train_tokenizer="bpe", config_overrides="num_hidden_layers=1")
    config = load_config(args, AutoModelForMaskedLM, {"roberta"}, 512)
    assert config.max_position_embeddings == 514
    assert max_positions(config) == 512


def test_overridden_positions_are_those_of_the_user():
    overrides = "num_hidden_layers=1,max_position_embeddings=66"
    args = ModelArguments(model_type="roberta", train_tokenizer="bpe", config_overrides=overrides)
    assert load_config(args, AutoModelForMaskedLM, {"roberta"}, 64).max_position_embeddings == 66
    with pytest.raises(UsageError, match="65 is more than the 64 positions .* max_position_embeddings=67"):
        load_config(args, AutoModelForMaskedLM, {"roberta"}, 65)


SMALL = "num_hidden_layers=1,hidden_size=16,intermediate_size=16,num_attention_heads=2"


def test_positions_follow_the_padding_token_of_the_tokenizer():
    """[PAD] is 3 here: three positions more are out of use."""
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
