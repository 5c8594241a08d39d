"""run_pretraining.py from its flags to its files: both losses exact, from text, text pairs and token ids."""

import json
import math
import random

import numpy as np
import pytest
import torch
from conftest import MASKED_SIZES, make_lines, make_masked_model
from datasets import Dataset, DatasetDict
from pytorch_optimizer import Lamb
from references import pair_reference
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForPreTraining, AutoTokenizer

import run_pretraining
from utils.examples.pretraining_collator import PretrainingCollator
from utils.examples.sentence_pairs import SentencePairs
from utils.tokens.token_store import TokenStore
from utils.tokens.tokenizer_training import train_tokenizer


SIZES = "num_hidden_layers=1,hidden_size=32,intermediate_size=32,num_attention_heads=2,hidden_dropout_prob=0"
BERT = ["--model_type", "bert", "--train_tokenizer", "wordpiece", "--vocab_size", 100, "--config_overrides"]
BERT += [f"{SIZES},attention_probs_dropout_prob=0"]


@pytest.fixture
def run(run):
    """The common fixture for this script."""
    return lambda output_dir, *flags: run(output_dir, *flags, script=run_pretraining)


@pytest.fixture
def refused(refused, monkeypatch):
    """The common fixture for this script, which must not load a model."""
    monkeypatch.setattr(run_pretraining, "load_model", lambda *args: pytest.fail("a model was loaded"))
    return lambda *flags: refused(*flags, script=run_pretraining)


def write_documents(path, num_documents: int, seed: int):
    """A sentence per line and an empty line between documents, each of which repeats words of its own."""
    lines = iter(make_lines(8 * num_documents, seed))
    documents = []
    for number in range(num_documents):
        own = f"{chr(97 + number % 26)}{chr(97 + number % 7)}"
        documents.append("\n".join(f"{own} {next(lines)}" for _ in range(3 + number % 6)))
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture
def train_file(tmp_path):
    return write_documents(tmp_path / "train.txt", 20, seed=0)


@pytest.fixture
def validation_file(tmp_path):
    return write_documents(tmp_path / "validation.txt", 10, seed=1)


@pytest.fixture
def pair_checkpoint(tmp_path):
    """`pair_checkpoint("bert")`: the folder of a small random model with two heads, and its tokenizer."""
    tokenizer = train_tokenizer("wordpiece", [make_lines(200)], 150)

    def save(model_type: str = "bert", **overrides):
        folder = tmp_path / f"{model_type}-checkpoint"
        torch.manual_seed(0)
        sizes = MASKED_SIZES | {"classifier_dropout_prob": 0.0, "pad_token_id": 0, "vocab_size": len(tokenizer)}
        config = AutoConfig.for_model(model_type, **(sizes | overrides))
        AutoModelForPreTraining.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def assert_as_reference(results: dict, expected: dict, task: str = "nsp") -> None:
    expected = {name.replace("pair", task): value for name, value in expected.items()}
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, abs=1e-5), name
    assert results["eval_loss"] == pytest.approx(results["mlm_loss"] + results[f"{task}_loss"], rel=1e-12)
    assert results["perplexity"] == pytest.approx(math.exp(results["mlm_loss"]), rel=1e-12)


def pairs_of(tmp_path, folder, length: int, **options) -> SentencePairs:
    """The pairs of the one store in the cache."""
    (path,) = (tmp_path / "cache" / "language_modeling").glob("*/meta.json")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return SentencePairs(TokenStore(path.parent), length, tokenizer, **({"seed": 42} | options))


@pytest.mark.parametrize("model_type", ["bert", "albert", "mobilebert", "megatron-bert"])
def test_evaluation_is_exact_at_any_batch_size(model_type, pair_checkpoint, validation_file, run, tmp_path):
    """ALBERT's pairs are about their order."""
    folder = pair_checkpoint(model_type)
    task = "sop" if model_type == "albert" else "nsp"
    flags = ["--model_name_or_path", folder, "--validation_file", validation_file, "--do_eval", "--max_seq_length", 24]
    results = run(tmp_path / "out", *flags, "--per_device_eval_batch_size", 1)
    expected = pair_reference(folder, pairs_of(tmp_path, folder, 24, task=task))
    assert expected["eval_masked_tokens"] > 50
    assert_as_reference(results, expected, task)
    others = [run(tmp_path / f"out{size}", *flags, "--per_device_eval_batch_size", size) for size in (7, 7, 64)]
    for other in others:
        assert_as_reference(other, expected, task)
    assert others[0]["eval_loss"] == others[1]["eval_loss"]


def test_documents_and_lines_are_those_of_the_file(train_file, run, tmp_path, monkeypatch):
    """Before masking, the model reads whole lines in their order, from one document or from two.

    Each epoch has new pairs, and as many as the one before.
    """
    seen = []
    collate = PretrainingCollator.__call__
    monkeypatch.setattr(
        PretrainingCollator, "__call__", lambda self, examples: (seen.extend(examples), collate(self, examples))[1]
    )
    results = run(tmp_path / "out", *BERT, "--train_file", train_file, "--do_train", "--max_seq_length", 200,
                  "--num_train_epochs", 2, "--short_seq_probability", 0)  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    documents = [
        [tokenizer.decode(tokenizer(line, add_special_tokens=False)["input_ids"]) for line in document.split("\n")]
        for document in train_file.read_text().strip().split("\n\n")
    ]
    wholes = [" ".join(document) for document in documents]
    assert results["train_samples"] == 2 * len(documents) == 40  # each fits into 200 tokens
    assert results["train_tokens"] == sum(len(example["input_ids"]) for example in seen)
    by_epoch = [{}, {}]
    for example in seen:
        cut = int(example["token_type_ids"].argmax())
        a, b = (tokenizer.decode(ids) for ids in (example["input_ids"][1 : cut - 1], example["input_ids"][cut:-1]))
        source = next(number for number, whole in enumerate(wholes) if whole.startswith(a))
        assert example["index"] == source
        if example["next_sentence_label"]:
            assert any(b in whole for whole in wholes[:source] + wholes[source + 1 :]) and b not in wholes[source]
        else:
            assert f"{a} {b}" == wholes[source]
        by_epoch[example["epoch"]][source] = (a, b)
    assert len(by_epoch[0]) == len(by_epoch[1]) == 20
    assert sum(by_epoch[0][index] != by_epoch[1][index] for index in range(20)) > 10


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_albert_from_scratch_and_a_second_phase(train_file, run, tmp_path):
    """The trained tokenizer adds special tokens and token types to a pair. The second phase has longer pairs."""
    albert = ["--model_type", "albert", "--train_tokenizer", "unigram", "--vocab_size", 100, "--config_overrides"]
    albert += [f"{SIZES},embedding_size=16,max_position_embeddings=64"]
    folder = tmp_path / "first"
    results = run(folder, *albert, "--train_file", train_file, "--max_seq_length", 16, "--max_steps", 2)
    expected = {f"{prefix}_{kind}" for prefix in ("sop", "mlm") for kind in ("loss", "accuracy")}
    assert {name for name in results if name[:4] in ("sop_", "nsp_", "mlm_")} == expected
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pair = tokenizer("a cat", "a mat")
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a cat", "a mat"))
    assert pair["input_ids"] == [cls, *a, sep, *b, sep]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    flags = ["--model_name_or_path", folder, "--train_file", train_file, "--max_steps", 2, "--do_train"]
    second = run(tmp_path / "second", *flags, "--max_seq_length", 64, "--sentence_task", "nsp")
    assert second["train_nsp_loss"] == pytest.approx(math.log(2), abs=0.3)  # the new question is still a guess
    assert second["train_tokens"] > 16 * 16


# Pairs made by others


def as_ids(pairs: SentencePairs, length: int, **columns) -> Dataset:
    """The pairs in the form in which others store them, padded."""
    rows = []
    for index in range(len(pairs)):
        example = pairs[index]
        ids, types = example["input_ids"].tolist(), example["token_type_ids"].tolist()
        rest = [0] * (length - len(ids))
        rows.append({"input_ids": ids + rest, "token_type_ids": types + rest, "attention_mask": [1] * len(ids) + rest,
                     "next_sentence_label": example["next_sentence_label"]})  # fmt: skip
    return Dataset.from_list(rows)


def test_token_ids_of_others(pair_checkpoint, validation_file, run, tmp_path):
    """Stored pairs give the same figures as the text itself, and masked pairs those of their own masks."""
    folder = pair_checkpoint()
    flags = ["--model_name_or_path", folder, "--do_eval", "--max_seq_length", 24]
    from_text = run(tmp_path / "text", *flags, "--validation_file", validation_file)
    pairs = pairs_of(tmp_path, folder, 24, task="nsp")
    rows = as_ids(pairs, 24)
    DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "saved")
    from_ids = run(tmp_path / "ids", *flags, "--dataset_path", tmp_path / "saved", "--is_already_preprocessed")
    names = ("eval_loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy", "eval_samples", "eval_masked_tokens")
    assert {name: from_ids[name] for name in names} == {name: from_text[name] for name in names}
    rows.to_parquet(tmp_path / "rows.parquet")
    by_its_columns = run(tmp_path / "parquet", *flags, "--validation_file", tmp_path / "rows.parquet")
    assert {name: by_its_columns[name] for name in names} == {name: from_text[name] for name in names}

    collator = PretrainingCollator(AutoTokenizer.from_pretrained(folder), seed=7, pad_to_length=24)
    batch = collator(pairs.__getitems__(list(range(len(pairs)))))
    masked = rows.remove_columns("input_ids").add_column("input_ids", batch["input_ids"].tolist())
    masked.add_column("labels", batch["labels"].tolist()).to_json(tmp_path / "masked.jsonl")
    results = run(tmp_path / "out", *flags, "--validation_file", tmp_path / "masked.jsonl", "--is_already_masked")
    assert_as_reference(results, pair_reference(folder, pairs, seed=7))


def test_token_ids_of_others_train(pair_checkpoint, train_file, run, tmp_path):
    """Part of the pairs is held out for validation."""
    folder = pair_checkpoint()
    flags = ["--model_name_or_path", folder, "--max_seq_length", 24]
    run(tmp_path / "text", *flags, "--validation_file", train_file, "--do_eval")
    rows = as_ids(pairs_of(tmp_path, folder, 24, task="nsp"), 24)
    rows.to_json(tmp_path / "rows.jsonl")
    results = run(
        tmp_path / "out", *flags, "--train_file", tmp_path / "rows.jsonl", "--is_already_preprocessed",
        "--num_train_epochs", 2, "--validation_split_percentage", 20,
    )  # fmt: skip
    held_out = set(random.Random(42).sample(range(len(rows)), round(len(rows) * 0.2)))
    lengths = [sum(mask) for mask in rows["attention_mask"]]
    assert results["train_tokens"] == 2 * sum(length for index, length in enumerate(lengths) if index not in held_out)
    pairs = []
    for index, row in enumerate(rows.select(sorted(held_out))):
        ids = {key: np.array(row[key][: sum(row["attention_mask"])]) for key in ("input_ids", "token_type_ids")}
        pairs.append(ids | {"next_sentence_label": row["next_sentence_label"], "index": index, "epoch": 0})
    assert_as_reference(results, pair_reference(tmp_path / "out", pairs))


def test_text_pairs_of_others(pair_checkpoint, run, tmp_path):
    """In columns given by flags, or the only two columns; a tokenizer can be trained on them."""
    lines = make_lines(40)
    table = {"first": lines[:20], "second": lines[20:], "next_sentence_label": [0, 1] * 10}
    Dataset.from_dict(table).to_csv(tmp_path / "pairs.csv")
    Dataset.from_dict(table | {"other": lines[:20]}).to_json(tmp_path / "pairs.jsonl")
    folder = pair_checkpoint()
    flags = ["--model_name_or_path", folder, "--do_eval", "--max_seq_length", 60]
    by_default = run(tmp_path / "csv", *flags, "--validation_file", tmp_path / "pairs.csv")
    columns = ["--text_column_a", "first", "--text_column_b", "second"]
    named = run(tmp_path / "json", *flags, "--validation_file", tmp_path / "pairs.jsonl", *columns)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = []
    for index, (a, b, label) in enumerate(zip(*table.values(), strict=True)):
        pair = tokenizer(a, b, return_tensors="np", return_attention_mask=False)
        pairs.append({name: pair[name][0] for name in pair} | {"next_sentence_label": label})
        pairs[-1] |= {"index": index, "epoch": 0}
    expected = pair_reference(folder, pairs)
    for results in (by_default, named):
        assert_as_reference(results, expected)
    trained = run(
        tmp_path / "scratch", *BERT, "--train_file", tmp_path / "pairs.csv", "--max_seq_length", 32,
        "--num_train_epochs", 1, "--whole_word_mask",
    )  # fmt: skip
    assert trained["train_samples"] + trained["eval_samples"] == 20


# Flags


def test_old_commands_run(train_file, run, tmp_path, caplog):
    """A checkpoint's name as the type, and Graphcore's flags: each with one warning, and without an effect."""
    common = [*BERT[2:], "--train_file", train_file, "--max_steps", 1, "--do_train", "--max_seq_length", 32]
    plain = run(tmp_path / "plain", "--model_type", "bert", *common)
    results = run(
        tmp_path / "out", "--model_type", "bert-base-uncased", *common, "--ipu_config_name", "Graphcore/bert-base-ipu",
        "--n_ipu", 4, "--instrument", "--dataloader_mode", "async_rebatched", "--pod_type", "pod16",
        "--loss_scaling", 16384, "--ipu_config_overrides", "device_iterations=1", "--lamb_no_bias_correction",
        "--lamb", "false",
    )  # fmt: skip
    assert results["train_loss"] == plain["train_loss"]
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    (about_ipus,) = (message for message in warnings if "IPU" in message)
    assert "--n_ipu" in about_ipus and "--instrument" in about_ipus and "no effect" not in about_ipus.split(":")[0]
    (about_type,) = (message for message in warnings if "--model_type" in message)
    assert "understood as bert" in about_type
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]


def test_config_and_tokenizer_names(pair_checkpoint, train_file, run, tmp_path):
    folder = pair_checkpoint()
    names = ["--config_name", folder, "--tokenizer_name", folder]
    run(tmp_path / "out", *names, "--train_file", train_file, "--max_steps", 1, "--do_train", "--max_seq_length", 32)
    made, saved = weights(folder), weights(tmp_path / "out")
    assert made.keys() == saved.keys()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert made[name].shape == saved[name].shape and not torch.allclose(made[name], saved[name])


def test_lamb_is_that_of_the_paper(train_file, run, tmp_path, monkeypatch):
    """You et al. 2020, algorithm 2, without the bias correction: two steps by hand, with the trainer's settings."""
    optimizers = []

    class Recorder(run_pretraining.LMTrainer):
        def create_optimizer(self):
            optimizers.append(super().create_optimizer())
            return optimizers[-1]

    monkeypatch.setattr(run_pretraining, "LMTrainer", Recorder)
    run(
        tmp_path / "out", *BERT, "--train_file", train_file, "--max_steps", 1, "--do_train", "--max_seq_length", 32,
        "--optim", "lamb", "--learning_rate", 0.02, "--weight_decay", 0.01, "--adam_epsilon", 1e-6,
    )  # fmt: skip
    (optimizer,) = optimizers
    assert type(optimizer) is Lamb
    decays = {group["weight_decay"]: group for group in optimizer.param_groups}
    assert set(decays) == {0.01, 0.0}
    group = decays[0.01]

    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 3))
    options = {key: group[key] for key in group if key not in ("params", "lr", "initial_lr", "step")}
    ours = Lamb([weight], lr=0.02, **options)
    expected, mean, square = weight.detach().double().clone(), 0.0, 0.0
    for _ in range(2):
        gradient = torch.randn(5, 3)
        weight.grad = gradient.clone()
        ours.step()
        mean = 0.9 * mean + 0.1 * gradient.double()
        square = 0.999 * square + 0.001 * gradient.double() ** 2
        update = mean / (square.sqrt() + 1e-6) + 0.01 * expected
        expected -= 0.02 * expected.norm() / update.norm() * update
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--max_seq_length 7", ["--max_seq_length 7", "8 or more"]),
        ("--max_seq_length 513", ["513", "512 positions"]),
        ("--model_type roberta", ["not train models of type roberta", "albert"]),
        ("--model_type gpt2-medium", ["not train models of type gpt2-medium"]),
        ("--nsp_probability 1.5", ["--nsp_probability 1.5"]),
        ("--short_seq_probability -1", ["--short_seq_probability -1"]),
        ("--mlm_probability 1", ["--mlm_probability 1"]),
        ("--sentence_task order", ["--sentence_task", "order"]),
        ("--segment_by word", ["--segment_by", "word"]),
        ("--sentence_language de", ["--sentence_language", "--segment_by sentence"]),
        ("--text_column_a one", ["--text_column_a", "--text_column_b"]),
        ("--text_column_a x --text_column_b y --is_already_masked", ["--text_column_a", "--is_already_preprocessed"]),
        ("--text_column_a x --text_column_b y", ["--text_column_a x", "text"]),
        ("--text_column_a x --text_column_b y --segment_by line", ["--segment_by", "already consists of pairs"]),
        ("--is_already_preprocessed", ["--train_tokenizer", "not text"]),
        ("--group_by_length", ["--group_by_length"]),
        ("--document_by line", ["no document of two segments", "blank_line"]),
        ("--document_by file", ["one document", "--validation_file"]),
        ("--document_by file --do_train", ["one document", "--sentence_task sop"]),
        ("--keep_linebreaks false", ["--keep_linebreaks", "white space"]),
        ("--lamb", ["--optim lamb"]),
        ("--optim lam", ["lam"]),
        (
            "--metric_for_best_model accuracy --do_train",
            ["--metric_for_best_model eval_accuracy", "eval_nsp_accuracy"],
        ),
    ],
)
def test_bad_flags_are_refused(flags, named, refused, train_file):
    line = refused(*BERT, "--train_file", train_file, *flags.split())
    assert line.startswith("run_pretraining.py: error: ")
    for part in named:
        assert part in line


def test_bad_data_are_refused(refused, pair_checkpoint, tmp_path):
    flags = ["--model_name_or_path", pair_checkpoint(), "--do_eval", "--validation_file"]
    table = {"one": ["a", "b"], "two": ["c", "d"], "next_sentence_label": [0, 2]}
    Dataset.from_dict(table).to_json(tmp_path / "label.jsonl")
    assert "next_sentence_label" in (line := refused(*flags, tmp_path / "label.jsonl")) and "value 2" in line
    ids = {name: [[2, 5, 3, 6, 3]] for name in ("input_ids", "token_type_ids", "attention_mask")}
    Dataset.from_dict(ids).to_json(tmp_path / "ids.jsonl")
    line = refused(*flags, tmp_path / "ids.jsonl", "--is_already_preprocessed")
    assert "no column next_sentence_label" in line
    Dataset.from_dict(ids | {"next_sentence_label": [1]}).to_json(tmp_path / "ids.jsonl")
    assert "--is_already_masked" in refused(*flags, tmp_path / "ids.jsonl", "--is_already_masked")
    assert "token type" in refused(*flags, tmp_path / "ids.jsonl")


def test_bad_models_and_tokenizers_are_refused(refused, masked_tokenizer, tokenizer, train_file, tmp_path):
    """A model without the second head, and tokenizers without a mask token or the special tokens of a pair."""
    folder = tmp_path / "roberta"
    make_masked_model("roberta", len(masked_tokenizer)).save_pretrained(folder)
    masked_tokenizer.save_pretrained(folder)
    line = refused("--model_name_or_path", folder, "--train_file", train_file)
    assert "not train models of type roberta" in line and "bert" in line
    tokenizer.save_pretrained(tmp_path / "causal")
    line = refused("--model_type", "bert", "--tokenizer_name", tmp_path / "causal", "--train_file", train_file)
    assert "no mask token" in line
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "causal", mask_token="<mask>")
    tokenizer.save_pretrained(tmp_path / "no-frame")
    line = refused("--model_type", "bert", "--tokenizer_name", tmp_path / "no-frame", "--train_file", train_file)
    assert "no cls_token and no sep_token" in line
