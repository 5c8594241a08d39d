"""run_mlm.py from its flags to its files: exact losses and counts; masks depend only on seed, epoch and example."""

import json
import math

import pytest
from conftest import make_lines, make_masked_model
from references import framed_examples, masked_reference
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertModel

import run_mlm
from utils.examples.masked_collator import MaskedLMCollator


BERT = [
    "--model_type", "bert", "--train_tokenizer", "wordpiece", "--vocab_size", 100,
    "--config_overrides", "num_hidden_layers=1,hidden_size=16,intermediate_size=32,num_attention_heads=2",
]  # fmt: skip


@pytest.fixture
def run(run):
    """The common fixture for this script."""
    return lambda output_dir, *flags: run(output_dir, *flags, script=run_mlm)


def assert_as_reference(results: dict, expected: dict) -> None:
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert results["perplexity"] == pytest.approx(math.exp(results["eval_loss"]), rel=1e-12)
    for key in ("eval_accuracy", "eval_masked_tokens", "eval_samples"):
        assert results[key] == expected[key]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("line_by_line", [False, True])
def test_evaluation_is_exact_at_any_batch_size(
    model_type, line_by_line, masked_checkpoint, validation_file, run, tmp_path
):
    """With lines of all lengths, padding and a short last block. A second run is equal to the last digit."""
    folder = masked_checkpoint(model_type)
    expected = masked_reference(folder, validation_file, 18, line_by_line)
    assert expected["eval_masked_tokens"] > 50
    flags = ["--model_name_or_path", folder, "--validation_file", validation_file, "--do_eval", "--max_seq_length", 18]
    flags += ["--line_by_line"] if line_by_line else []
    for batch_size in (1, 7, 32):
        both = [
            run(tmp_path / f"out{i}", *flags, "--per_device_eval_batch_size", batch_size) for i in (batch_size, 99)
        ]
        assert_as_reference(both[0], expected)
        assert both[0]["eval_loss"] == both[1]["eval_loss"]


@pytest.mark.parametrize("line_by_line", [True, False])
def test_padding_to_the_full_length_changes_nothing(
    line_by_line, masked_checkpoint, validation_file, run, tmp_path, monkeypatch
):
    shapes = set()
    collate = MaskedLMCollator.__call__

    def record(self, examples):
        batch = collate(self, examples)
        shapes.add(batch["input_ids"].shape[1])
        return batch

    monkeypatch.setattr(MaskedLMCollator, "__call__", record)
    folder = masked_checkpoint("roberta")
    results = run(
        tmp_path / "out", "--model_name_or_path", folder, "--validation_file", validation_file, "--do_eval",
        "--max_seq_length", 40, "--pad_to_max_length", "--per_device_eval_batch_size", 1,
        *["--line_by_line"] * line_by_line,
    )  # fmt: skip
    assert shapes == {40}
    assert_as_reference(results, masked_reference(folder, validation_file, 40, line_by_line=line_by_line))


def test_masks_follow_the_flags(masked_checkpoint, validation_file, run, tmp_path):
    folder = masked_checkpoint("bert")
    results = run(
        tmp_path / "out", "--model_name_or_path", folder, "--validation_file", validation_file, "--do_eval",
        "--max_seq_length", 20, "--mlm_probability", 0.4, "--mask_replace_prob", 0.3, "--random_replace_prob", 0.6,
        "--seed", 5,
    )  # fmt: skip
    masks = {"mlm_probability": 0.4, "mask_replace_prob": 0.3, "random_replace_prob": 0.6, "seed": 5}
    assert_as_reference(results, masked_reference(folder, validation_file, 20, **masks))


def record_examples(monkeypatch) -> list[tuple]:
    """(epoch, index, tokens before masking, labels) of each example that is collated from now on."""
    seen = []
    collate = MaskedLMCollator.__call__

    def record(self, examples):
        batch = collate(self, examples)
        for example, labels in zip(examples, batch["labels"].tolist(), strict=True):
            seen.append((example["epoch"], example["index"], example["input_ids"].tolist(), labels))
        return batch

    monkeypatch.setattr(MaskedLMCollator, "__call__", record)
    return seen


@pytest.mark.parametrize("line_by_line", [False, True])
def test_an_epoch_trains_on_every_token_once_with_new_masks(line_by_line, train_file, run, tmp_path, monkeypatch):
    seen = record_examples(monkeypatch)
    results = run(
        tmp_path / "out", *BERT, "--train_file", train_file, "--do_train", "--max_seq_length", 100,
        "--num_train_epochs", 3, *(["--line_by_line"] if line_by_line else []),
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = framed_examples(tokenizer, train_file, 100, line_by_line)
    labels_of_epochs = []
    for epoch in range(3):
        examples = sorted(example[1:] for example in seen if example[0] == epoch)
        assert [index for index, *_ in examples] == list(range(len(expected)))
        assert [ids for _, ids, _ in examples] == expected
        labels_of_epochs.append([labels for *_, labels in examples])
    assert labels_of_epochs[0] != labels_of_epochs[1] != labels_of_epochs[2] != labels_of_epochs[0]
    assert results["train_tokens"] == 3 * sum(map(len, expected))
    assert results["train_samples"] == 3 * len(expected)


ROBERTA = [
    "--model_type", "roberta", "--train_tokenizer", "bpe", "--vocab_size", 300, "--config_overrides",
    "num_hidden_layers=1,hidden_size=32,intermediate_size=32,num_attention_heads=2,hidden_dropout_prob=0,"
    "attention_probs_dropout_prob=0",
]  # fmt: skip


def test_roberta_from_scratch_has_room_for_the_whole_block(validation_file, run, tmp_path):
    """Its positions start after the padding index, and 512 tokens fit into the default configuration."""
    path = tmp_path / "long.txt"
    path.write_text("\n".join(make_lines(400)))
    results = run(
        tmp_path / "out", *ROBERTA, "--train_file", path, "--max_seq_length", 512, "--max_steps", 1, "--do_train"
    )
    assert results["train_tokens"] > 512
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_position_embeddings"] == 514
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (1, 0, 2)


@pytest.mark.parametrize("model_type", ["distilbert", "albert", "electra", "deberta-v2", "modernbert"])
def test_other_architectures_train_from_scratch(model_type, train_file, validation_file, run, tmp_path):
    """They also evaluate exactly, and their tokenizer gives the model only inputs that it takes."""
    names = {"distilbert": "n_layers=1,dim=16,hidden_dim=32,n_heads=2"}
    sizes = names.get(model_type, "num_hidden_layers=1,hidden_size=16,intermediate_size=32,num_attention_heads=2")
    kind = "unigram" if model_type in ("albert", "deberta-v2") else "wordpiece"
    results = run(
        tmp_path / "out", "--model_type", model_type, "--train_tokenizer", kind, "--vocab_size", 100,
        "--config_overrides", sizes, "--train_file", train_file, "--validation_file", validation_file,
        "--max_seq_length", 32, "--max_steps", 3,
    )  # fmt: skip
    folder = tmp_path / "out"
    assert_as_reference(results, masked_reference(folder, validation_file, 32))
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(f"the {tokenizer.mask_token} sat", return_tensors="pt")
    assert model(**inputs).logits.shape[-1] == len(tokenizer)


def test_tokens_per_second_are_of_tokens_that_are_read(masked_checkpoint, validation_file, run, tmp_path):
    """Not of masked tokens or padding. Runtime and rate are rounded to 1 ms and 0.1 tokens per second."""
    folder = masked_checkpoint("bert")
    results = run(
        tmp_path / "out", "--model_name_or_path", folder, "--validation_file", validation_file, "--do_eval",
        "--max_seq_length", 20, "--line_by_line", "--per_device_eval_batch_size", 7,
    )  # fmt: skip
    examples = framed_examples(AutoTokenizer.from_pretrained(folder), validation_file, 20, line_by_line=True)
    rate, runtime = results["eval_tokens_per_second"], results["eval_runtime"]
    assert rate * runtime == pytest.approx(sum(map(len, examples)), abs=rate * 0.0005 + runtime * 0.05)


def test_a_new_head_is_announced(train_file, validation_file, masked_tokenizer, run, tmp_path, caplog):
    """A BertModel has no head, so the log says that it is new; for a BertForMaskedLM it says nothing."""
    caplog.set_level("INFO", "utils")
    folder = tmp_path / "encoder"
    model = make_masked_model("bert", len(masked_tokenizer))
    masked_tokenizer.save_pretrained(folder)
    flags = ["--model_name_or_path", folder, "--validation_file", validation_file, "--do_eval", "--max_seq_length", 32]
    for saved, is_announced in ((BertModel(model.config), True), (model, False)):
        saved.save_pretrained(folder)
        caplog.clear()
        run(tmp_path / "out", *flags)
        lines = [record.message for record in caplog.records if "start untrained" in record.message]
        assert len(lines) == is_announced
    saved = BertModel(model.config)
    saved.save_pretrained(folder)
    caplog.clear()
    run(tmp_path / "out", *flags)
    assert "no weights for cls of BertForMaskedLM" in caplog.text


def test_packed_and_line_by_line_share_the_tokens(run, train_file, validation_file, masked_checkpoint, tmp_path):
    """If --keep_linebreaks false makes their corpus the same."""
    flags = ["--model_name_or_path", masked_checkpoint("bert"), "--validation_file", validation_file, "--do_eval"]
    flags += ["--max_seq_length", 16, "--keep_linebreaks", "false"]
    run(tmp_path / "packed", *flags)
    run(tmp_path / "lines", *flags, "--line_by_line")
    assert len(list((tmp_path / "cache" / "language_modeling").glob("*/tokens.bin"))) == 1


def test_line_ends_are_not_predicted_line_by_line(run, validation_file, masked_checkpoint, tmp_path, monkeypatch):
    """Unless --keep_linebreaks asks for them. Packed blocks contain them."""
    flags = ["--model_name_or_path", masked_checkpoint("bert"), "--validation_file", validation_file, "--do_eval"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert-checkpoint")
    (new_line,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    counts = {}
    for name, extra in {
        "lines": ["--line_by_line"],
        "asked": ["--line_by_line", "--keep_linebreaks"],
        "packed": [],
    }.items():
        with monkeypatch.context() as patch:
            seen = record_examples(patch)
            run(tmp_path / name, *flags, "--max_seq_length", 64, *extra)
        counts[name] = sum(ids.count(new_line) for _, _, ids, _ in seen)
    assert counts == {"lines": 0, "asked": 30, "packed": 30}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--mlm_probability 0", ["--mlm_probability 0"]),
        ("--mlm_probability 1", ["--mlm_probability 1"]),
        ("--mlm_probability nan", ["--mlm_probability nan"]),
        ("--mask_replace_prob 1.1", ["--mask_replace_prob 1.1"]),
        ("--random_replace_prob -0.1", ["--random_replace_prob -0.1"]),
        (
            "--mask_replace_prob 0.8 --random_replace_prob 0.3",
            ["--mask_replace_prob 0.8", "--random_replace_prob 0.3"],
        ),
        ("--group_by_length", ["--group_by_length", "--line_by_line"]),
        ("--max_seq_length 513", ["513", "512 positions", "max_position_embeddings=513"]),
        ("--max_seq_length 2", ["--max_seq_length 2", "2 special tokens", "3 or more"]),
        ("--model_type gpt2", ["--model_type gpt2", "not train models of type gpt2"]),
        ("--model_type llama", ["--model_type llama"]),
        ("--model_type roberta --max_seq_length 513", ["512 positions", "max_position_embeddings=515"]),
        ("--mlm_probabilty 0.2", ["--mlm_probability"]),
    ],
)
def test_bad_flags_are_refused(flags, named, refused, train_file, monkeypatch):
    monkeypatch.setattr(run_mlm, "load_model", lambda *args: pytest.fail("a model was loaded"))
    line = refused(*BERT, "--train_file", train_file, *flags.split(), script=run_mlm)
    assert line.startswith("run_mlm.py: error: ")
    for part in named:
        assert part in line


def test_a_tokenizer_without_mask_token_is_refused(checkpoint, train_file, refused, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "causal")
    line = refused(
        "--model_type", "bert", "--tokenizer_name", tmp_path / "causal", "--train_file", train_file, script=run_mlm
    )
    assert "no mask token" in line
    assert "not train models of type gpt2" in refused(
        "--model_name_or_path", checkpoint("gpt2"), "--train_file", train_file, script=run_mlm
    )


def test_a_sequence_longer_than_the_checkpoint_is_refused(masked_checkpoint, train_file, refused):
    """Of 64 positions, RoBERTa uses 62 for tokens and BERT 64."""
    for model_type, limit in (("roberta", 62), ("bert", 64)):
        flags = ["--model_name_or_path", masked_checkpoint(model_type), "--train_file", train_file]
        line = refused(*flags, "--max_seq_length", limit + 1, script=run_mlm)
        assert f"{limit} positions" in line
        assert "config_overrides" not in line


def test_whole_words_need_a_fast_tokenizer(train_file, refused, tmp_path):
    """ESM's tokenizer, which is written in Python in both versions of transformers, does not say where words begin."""
    (tmp_path / "slow").mkdir()
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", *sorted(set("abcdefghijklmnopqrstuvwxyz.")), "<mask>"]
    (tmp_path / "slow" / "vocab.txt").write_text("\n".join(tokens))
    (tmp_path / "slow" / "tokenizer_config.json").write_text('{"tokenizer_class": "EsmTokenizer"}')
    flags = ["--model_type", "bert", "--tokenizer_name", tmp_path / "slow", "--use_fast_tokenizer", "false"]
    line = refused(*flags, "--train_file", train_file, "--whole_word_mask", script=run_mlm)
    assert "--whole_word_mask" in line and "fast" in line
