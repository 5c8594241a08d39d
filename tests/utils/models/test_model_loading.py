"""Loading a model: which weights a checkpoint lacks, and embeddings for all tokens of the tokenizer."""

import pytest
import torch
from conftest import make_masked_model
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertModel

from utils.config.model_arguments import ModelArguments
from utils.errors import UsageError
from utils.models.config import load_config
from utils.models.loading import load_model


def load(folder, tokenizer):
    model_args = ModelArguments(model_name_or_path=str(folder))
    config = load_config(model_args, AutoModelForMaskedLM, {"bert"}, None)
    return load_model(AutoModelForMaskedLM, config, model_args, tokenizer)


def test_complete_checkpoint_has_no_new_weights(masked_checkpoint, masked_tokenizer):
    folder = masked_checkpoint("bert")
    model, new_weights = load(folder, masked_tokenizer)
    assert new_weights == []
    expected = make_masked_model("bert", len(masked_tokenizer)).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


def test_new_weights_are_the_head_and_the_resized_embeddings(tmp_path, masked_checkpoint, masked_tokenizer):
    folder = masked_checkpoint("bert")
    config = make_masked_model("bert", len(masked_tokenizer)).config
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)  # without the head
    larger = AutoTokenizer.from_pretrained(folder)
    larger.add_tokens(["zebra", "quokka"])
    _, new_weights = load(folder, masked_tokenizer)
    assert new_weights and all(name.startswith("cls.predictions.") for name in new_weights)
    model, new_weights = load(folder, larger)
    assert "bert.embeddings.word_embeddings.weight" in new_weights
    assert any(name.startswith("cls.predictions.transform.") for name in new_weights)
    assert model.get_input_embeddings().num_embeddings == len(larger) == len(masked_tokenizer) + 2


def test_damaged_weights(masked_checkpoint, masked_tokenizer):
    folder = masked_checkpoint("bert")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UsageError, match=f"--model_name_or_path {folder}: "):
        load(folder, masked_tokenizer)
