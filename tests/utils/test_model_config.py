"""The configuration of a model: what --config_overrides sets, how long blocks are, what follows the tokenizer."""

import re

import pytest
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from run_clm import MODEL_TYPES
from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.models.config import default_block_size, load_config, max_positions, override_config
from utils.models.loading import fit_config_to_tokenizer


def load(*, block_size=None, **flags):
    model_args = ModelArguments(**({"tokenizer_name": "none"} | flags))
    return load_config(model_args, AutoModelForCausalLM, MODEL_TYPES, block_size)


SMALL = "n_embd=8,n_layer=1,n_head=2,vocab_size=50"


# Overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("n_layer=3", "n_layer", 3),
        (" n_layer = 3 ", "n_layer", 3),
        ("num_hidden_layers=3", "n_layer", 3),
        ("resid_pdrop=0.25", "resid_pdrop", 0.25),
        ("resid_pdrop=0", "resid_pdrop", 0.0),
        ("resid_pdrop=1e-3", "resid_pdrop", 0.001),
        ("initializer_range=1", "initializer_range", 1.0),
        ("scale_attn_weights=false", "scale_attn_weights", False),
        ("scale_attn_weights=True", "scale_attn_weights", True),
        ("activation_function=relu", "activation_function", "relu"),
        ("summary_type=1", "summary_type", "1"),
        ("n_inner=16", "n_inner", 16),
        ("n_inner=none", "n_inner", None),
        ("bos_token_id=null", "bos_token_id", None),
    ],
)
def test_overrides_take_the_kind_of_the_value_they_replace(override, key, value):
    config = GPT2Config()
    override_config(config, override)
    assert getattr(config, key) == value
    assert type(getattr(config, key)) is type(value)


def test_overrides_change_what_they_name_alone():
    config, plain = GPT2Config(), GPT2Config()
    override_config(config, "n_layer=3,resid_pdrop=0,activation_function=relu,")
    changed = {key for key, value in config.to_dict().items() if value != plain.to_dict()[key]}
    assert changed == {"n_layer", "resid_pdrop", "activation_function"}


@pytest.mark.parametrize("overrides", [None, ""])
def test_no_overrides(overrides):
    config = GPT2Config()
    override_config(config, overrides)
    assert config.to_dict() == GPT2Config().to_dict()


@pytest.mark.parametrize("overrides", ["n_layer", "n_layer=2,n_head", "n_layer:2", "=2"])
def test_override_that_is_no_pair(overrides):
    with pytest.raises(UsageError, match="--config_overrides"):
        override_config(GPT2Config(), overrides)


@pytest.mark.parametrize(
    ("override", "near"), [("n_layers=2", "n_layer"), ("n_heads=2", "n_head"), ("embd_drop=0", "embd_pdrop")]
)
def test_unknown_override_names_the_nearest(override, near):
    with pytest.raises(UsageError) as refusal:
        override_config(GPT2Config(), override)
    message = str(refusal.value)
    assert message.startswith(f"--config_overrides {override}: a gpt2 has no {override.partition('=')[0]}; it has")
    assert re.search(rf"\b{near}\b", message)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("n_layer=two", "int"),
        ("n_layer=2.5", "int"),
        ("n_layer=2.0", "int"),
        ("n_layer=true", "int"),
        ("n_layer=[2]", "int"),
        ("n_layer=", "int"),
        ("resid_pdrop=high", "float"),
        ("resid_pdrop=true", "float"),
        ("scale_attn_weights=1", "bool"),
        ("scale_attn_weights=yes", "bool"),
    ],
)
def test_override_of_another_kind(override, expected):
    with pytest.raises(UsageError, match=rf"--config_overrides {re.escape(override)}: expected {expected}"):
        override_config(GPT2Config(), override)


@pytest.mark.parametrize("override", ["to_dict=1", "to_dict=none", "__class__=x", "use_return_dict=true"])
def test_override_of_what_is_no_setting(override):
    with pytest.raises(UsageError, match="--config_overrides"):
        override_config(GPT2Config(), override)


@pytest.mark.parametrize(
    "overrides",
    ["n_embd=10,n_head=3", "n_embd=-4", "vocab_size=-1", "activation_function=gulp", "n_embd=none"],
)
def test_overrides_of_which_no_model_can_be_built(overrides):
    with pytest.raises(UsageError, match=f"--config_overrides {overrides}: no gpt2 can be built"):
        load(model_type="gpt2", config_overrides=overrides)


# Loading


@pytest.mark.parametrize(("model_type", "config_class"), [("gpt2", GPT2Config), ("llama", LlamaConfig)])
def test_model_type_has_its_default_configuration(model_type, config_class):
    assert load(model_type=model_type).to_dict() == config_class().to_dict()


def test_config_of_a_folder_with_overrides(tmp_path):
    GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, n_positions=32).save_pretrained(tmp_path)
    config = load(config_name=str(tmp_path), config_overrides="n_layer=3")
    assert (config.n_layer, config.n_embd, config.n_positions) == (3, 8, 32)


def test_checkpoint_config_is_the_one_in_its_folder(tmp_path):
    GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, n_positions=32).save_pretrained(tmp_path)
    assert load(model_name_or_path=str(tmp_path)).n_embd == 8


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlnet", "t5", "resnet", "nonsense", ""])
def test_model_types_that_the_script_does_not_train(tmp_path, model_type):
    if model_type:
        with pytest.raises(UsageError, match=f"--model_type {model_type}: this script trains no model of type"):
            load(model_type=model_type)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    for flag in ("model_name_or_path", "config_name"):
        with pytest.raises(UsageError, match=r"config\.json: this script trains no model of type"):
            load(**{flag: str(tmp_path)})


def test_model_type_names_the_nearest():
    with pytest.raises(UsageError, match=r"it does .*\bgpt2\b"):
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
def test_config_file_that_is_malformed(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        load(config_name=str(tmp_path))


def test_config_file_that_is_not_utf8(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"model_type": "gpt2\xff"}')
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        load(config_name=str(tmp_path))


def test_block_longer_than_the_positions_from_scratch():
    with pytest.raises(UsageError, match=r"--block_size 33 is more than the 32 .*--config_overrides n_positions=33"):
        load(model_type="gpt2", config_overrides=f"{SMALL},n_positions=32", block_size=33)
    assert load(model_type="gpt2", config_overrides=f"{SMALL},n_positions=33", block_size=33).n_positions == 33


def test_block_longer_than_the_positions_of_a_checkpoint(tmp_path):
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
def test_default_block_size_is_the_least_limit(positions, tokenizer_limit, expected):
    assert default_block_size(LlamaConfig(max_position_embeddings=positions), tokenizer_limit) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_positions=77), 77),
        (GPTNeoXConfig(max_position_embeddings=77), 77),
        (BloomConfig(), None),
        (T5Config(), None),
        (LlamaConfig(max_position_embeddings=0), None),
    ],
)
def test_max_positions(config, expected):
    assert max_positions(config) == expected


# What follows the tokenizer


@pytest.fixture
def padded_tokenizer(tokenizer):
    """With a token for padding, of which the model must get a row."""
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


def test_overridden_vocabulary_and_special_tokens_stay(tokenizer):
    config = fit(GPT2Config(), tokenizer, " vocab_size =320, pad_token_id= 5,eos_token_id=3")
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.bos_token_id) == (320, 5, 3, 0)
    assert fit(GPT2Config(), tokenizer, f"vocab_size={len(tokenizer)}").vocab_size == len(tokenizer)


def test_overridden_vocabulary_that_is_too_small(tokenizer):
    with pytest.raises(
        UsageError, match=f"vocab_size={len(tokenizer) - 1}: the tokenizer has {len(tokenizer)} tokens"
    ):
        fit(GPT2Config(), tokenizer, f"vocab_size={len(tokenizer) - 1}")
