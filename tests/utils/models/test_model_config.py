"""The model's configuration: loading, block size, and matching it to the tokenizer."""

import re

import pytest
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.models.config import default_block_size, fit_config_to_tokenizer, load_config
from utils.models.config_overrides import override_config
from utils.models.model_types import CAUSAL_MODELS


def load(*, block_size=None, **flags):
    model_args = ModelArguments(**({"tokenizer_name": "none"} | flags))
    return load_config(model_args, AutoModelForCausalLM, CAUSAL_MODELS, block_size)


SMALL = "n_embd=8,n_layer=1,n_head=2,vocab_size=50"


# Loading


@pytest.mark.parametrize(
    "overrides",
    ["n_embd=10,n_head=3", "n_embd=-4", "vocab_size=-1", "activation_function=gulp", "n_embd=none"],
)
def test_overrides_that_make_an_invalid_model(overrides):
    with pytest.raises(UsageError, match=f"--config_overrides {overrides}: cannot build a gpt2 model"):
        load(model_type="gpt2", config_overrides=overrides)


def test_model_that_reads_its_tensors_while_it_is_built():
    """Apertus cannot be built on the meta device, where sizes are checked."""
    sizes = "num_hidden_layers=1,hidden_size=16,intermediate_size=16,num_attention_heads=2,num_key_value_heads=2"
    assert load(model_type="apertus", config_overrides=sizes).num_hidden_layers == 1


@pytest.mark.parametrize(("model_type", "config_class"), [("gpt2", GPT2Config), ("llama", LlamaConfig)])
def test_model_type_gives_its_default_configuration(model_type, config_class):
    assert load(model_type=model_type).to_dict() == config_class().to_dict()


def test_config_name_with_overrides(tmp_path):
    GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, n_positions=32).save_pretrained(tmp_path)
    config = load(config_name=str(tmp_path), config_overrides="n_layer=3")
    assert (config.n_layer, config.n_embd, config.n_positions) == (3, 8, 32)


def test_config_of_a_checkpoint(tmp_path):
    GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, n_positions=32).save_pretrained(tmp_path)
    assert load(model_name_or_path=str(tmp_path)).n_embd == 8


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlnet", "t5", "resnet", "nonsense", ""])
def test_unsupported_model_type(tmp_path, model_type):
    if model_type:
        with pytest.raises(UsageError, match=f"--model_type {model_type}: this script does not train models of type"):
            load(model_type=model_type)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    for flag in ("model_name_or_path", "config_name"):
        with pytest.raises(UsageError, match=r"config\.json: this script does not train models of type"):
            load(**{flag: str(tmp_path)})


def test_unknown_model_type_names_similar_ones():
    with pytest.raises(UsageError, match=r"it trains .*\bgpt2\b"):
        load(model_type="gtp2")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "",
        "[]",
        "[1]",
        '"gpt2"',
        "null",
        "{}",
        '{"model_type": null}',
        '{"model_type": ["gpt2"]}',
        '{"model_type": "gpt2", "n_embd": "wide"}',
        '{"model_type": "gpt2", "n_layer": 1, "n_embd": 10, "n_head": 3}',
        '{"model_type": "gpt2", "n_layer": null}',
        '{"model_type": "gpt2", "id2label": 3}',
        '{"model_type": "gpt2", "dtype": "float31"}',
        '{"model_type": "gpt2", "configuration_files": 3}',
        '{"model_type": "gpt2", "configuration_files": ["config.x.json"]}',
        '{"model_type": "gpt2", "configuration_files": ["config.1.0.0.json"]}',
    ],
)
def test_malformed_config_file(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        load(config_name=str(tmp_path))


def test_config_file_not_in_utf8(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"model_type": "gpt2\xff"}')
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        load(config_name=str(tmp_path))


def test_block_size_above_the_positions_from_scratch():
    with pytest.raises(UsageError, match=r"--block_size 33 is more than the 32 .*--config_overrides n_positions=33"):
        load(model_type="gpt2", config_overrides=f"{SMALL},n_positions=32", block_size=33)
    assert load(model_type="gpt2", config_overrides=f"{SMALL},n_positions=33", block_size=33).n_positions == 33


def test_block_size_above_the_positions_of_a_checkpoint(tmp_path):
    GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, n_positions=32).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="--block_size 33 is more than the 32 positions") as refusal:
        load(model_name_or_path=str(tmp_path), block_size=33)
    assert "--config_overrides" not in str(refusal.value)
    assert load(model_name_or_path=str(tmp_path), block_size=32).n_positions == 32


# Block size


@pytest.mark.parametrize(
    ("positions", "tokenizer_limit", "expected"),
    [
        (512, int(1e30), 512),
        (2048, int(1e30), 1024),
        (2048, 300, 300),
        (128, 300, 128),
        (4096, 4096, 1024),
        (0, int(1e30), 1024),
        (-1, 256, 256),
        (1024, 1024, 1024),
    ],
)
def test_default_block_size_is_the_smallest_limit(positions, tokenizer_limit, expected):
    assert default_block_size(LlamaConfig(max_position_embeddings=positions), tokenizer_limit) == expected


# Matching the tokenizer


@pytest.fixture
def padded_tokenizer(tokenizer):
    """With a padding token, for which the model needs an embedding."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    copy.add_special_tokens({"pad_token": "<pad>"})
    return copy


def fit(config, tokenizer, overrides=None):
    override_config(config, overrides)
    fit_config_to_tokenizer(config, tokenizer, len(tokenizer), overrides)
    return config


@pytest.mark.parametrize("config_class", [GPT2Config, LlamaConfig])
def test_vocabulary_and_special_tokens_follow_the_tokenizer(config_class, tokenizer, padded_tokenizer):
    for used, pad_token_id in ((tokenizer, None), (padded_tokenizer, len(tokenizer))):
        config = fit(config_class(pad_token_id=7), used)
        assert config.vocab_size == len(used)
        assert config.bos_token_id == config.eos_token_id == used.eos_token_id == 0
        assert config.pad_token_id == pad_token_id


def test_overridden_vocabulary_and_special_tokens_are_kept(tokenizer):
    config = fit(GPT2Config(), tokenizer, " vocab_size =320, pad_token_id= 5,eos_token_id=3")
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.bos_token_id) == (320, 5, 3, 0)
    assert fit(GPT2Config(), tokenizer, f"vocab_size={len(tokenizer)}").vocab_size == len(tokenizer)


def test_overridden_vocabulary_too_small(tokenizer):
    with pytest.raises(
        UsageError, match=f"vocab_size={len(tokenizer) - 1}: the tokenizer has {len(tokenizer)} tokens"
    ):
        fit(GPT2Config(), tokenizer, f"vocab_size={len(tokenizer) - 1}")
