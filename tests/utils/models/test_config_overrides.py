"""--config_overrides: values are converted to the type they replace, and mistakes are refused."""

import re

import pytest
from transformers import GPT2Config

from utils.errors import UsageError
from utils.models.config_overrides import override_config


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
def test_values_get_the_type_they_replace(override, key, value):
    config = GPT2Config()
    override_config(config, override)
    assert getattr(config, key) == value
    assert type(getattr(config, key)) is type(value)


def test_other_keys_are_unchanged():
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
def test_override_without_a_value(overrides):
    with pytest.raises(UsageError, match="--config_overrides"):
        override_config(GPT2Config(), overrides)


@pytest.mark.parametrize(
    ("override", "similar"), [("n_layers=2", "n_layer"), ("n_heads=2", "n_head"), ("embd_drop=0", "embd_pdrop")]
)
def test_unknown_key_names_similar_ones(override, similar):
    with pytest.raises(UsageError) as refusal:
        override_config(GPT2Config(), override)
    message = str(refusal.value)
    assert message.startswith(f"--config_overrides {override}: gpt2 has no {override.partition('=')[0]}; it has")
    assert re.search(rf"\b{similar}\b", message)


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
def test_value_of_another_type(override, expected):
    with pytest.raises(UsageError, match=rf"--config_overrides {re.escape(override)}: expected {expected}"):
        override_config(GPT2Config(), override)


@pytest.mark.parametrize("override", ["to_dict=1", "to_dict=none", "__class__=x", "use_return_dict=true"])
def test_attribute_that_is_not_a_setting(override):
    with pytest.raises(UsageError, match="--config_overrides"):
        override_config(GPT2Config(), override)
