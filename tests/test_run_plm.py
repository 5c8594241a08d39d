"""run_plm.py from its flags to its files: exact losses and counts; targets depend only on seed, epoch and example."""

import math

import pytest
from conftest import make_lines, make_xlnet
from references import framed_examples, permutation_reference
from transformers import AutoTokenizer

import run_plm
from utils.examples.permutation_collator import PermutationLMCollator


XLNET = [
    "--model_type", "xlnet", "--train_tokenizer", "unigram", "--vocab_size", 100,
    "--config_overrides", "n_layer=1,d_model=16,n_head=2,d_inner=32,dropout=0",
]  # fmt: skip


@pytest.fixture
def run(run):
    """The common fixture for this script."""
    return lambda output_dir, *flags: run(output_dir, *flags, script=run_plm)


@pytest.fixture
def xlnet(tmp_path, masked_tokenizer):
    """The folder of a small random XLNet with its tokenizer."""
    folder = tmp_path / "xlnet-checkpoint"
    make_xlnet(len(masked_tokenizer)).save_pretrained(folder)
    masked_tokenizer.save_pretrained(folder)
    return folder


def assert_as_reference(results: dict, expected: dict) -> None:
    assert results["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert results["perplexity"] == pytest.approx(math.exp(results["eval_loss"]), rel=1e-12)
    for key in ("eval_accuracy", "eval_predicted_tokens", "eval_samples"):
        assert results[key] == expected[key]


@pytest.mark.parametrize("length", [18, 31])
@pytest.mark.parametrize("line_by_line", [False, True])
def test_evaluation_is_exact_at_any_batch_size(length, line_by_line, xlnet, validation_file, run, tmp_path):
    """Also at odd lengths, with padding and a short last block. A second run is equal to the last digit."""
    expected = permutation_reference(xlnet, validation_file, length, line_by_line)
    assert expected["eval_predicted_tokens"] > 50
    flags = ["--model_name_or_path", xlnet, "--validation_file", validation_file, "--do_eval"]
    flags += ["--max_seq_length", length, *(["--line_by_line"] if line_by_line else [])]
    for batch_size in (1, 7, 32):
        both = [
            run(tmp_path / f"out{i}", *flags, "--per_device_eval_batch_size", batch_size) for i in (batch_size, 99)
        ]
        assert_as_reference(both[0], expected)
        assert both[0]["eval_loss"] == both[1]["eval_loss"]


@pytest.mark.parametrize("lines", [["--line_by_line"], []])
def test_padding_to_the_full_length_changes_nothing(lines, xlnet, validation_file, run, tmp_path, monkeypatch):
    shapes = set()
    collate = PermutationLMCollator.__call__

    def record(self, examples):
        batch = collate(self, examples)
        shapes.add((batch["input_ids"].shape[1], batch["labels"].shape[1]))
        return batch

    monkeypatch.setattr(PermutationLMCollator, "__call__", record)
    results = run(
        tmp_path / "out", "--model_name_or_path", xlnet, "--validation_file", validation_file, "--do_eval",
        "--max_seq_length", 41, "--pad_to_max_length", "--per_device_eval_batch_size", 1, *lines,
    )  # fmt: skip
    assert shapes == {(41, 41 // 6 + 5)}
    assert_as_reference(results, permutation_reference(xlnet, validation_file, 41, line_by_line=bool(lines)))


def test_targets_follow_the_flags(xlnet, validation_file, run, tmp_path):
    results = run(
        tmp_path / "out", "--model_name_or_path", xlnet, "--validation_file", validation_file, "--do_eval",
        "--max_seq_length", 20, "--plm_probability", 0.4, "--max_span_length", 2, "--seed", 5,
    )  # fmt: skip
    choices = {"plm_probability": 0.4, "max_span_length": 2, "seed": 5}
    assert_as_reference(results, permutation_reference(xlnet, validation_file, 20, **choices))


def record_examples(monkeypatch) -> list[tuple]:
    """(epoch, index, tokens, labels, order) of each example that is collated from now on."""
    seen = []
    collate = PermutationLMCollator.__call__

    def record(self, examples):
        batch = collate(self, examples)
        for row, example in enumerate(examples):
            length = len(example["input_ids"])
            assert batch["input_ids"][row, :length].tolist() == example["input_ids"].tolist()
            seen.append(
                (
                    example["epoch"], example["index"], example["input_ids"].tolist(),
                    [label for label in batch["labels"][row].tolist() if label != -100],
                    batch["order"][row, :length].tolist(),
                )
            )  # fmt: skip
        return batch

    monkeypatch.setattr(PermutationLMCollator, "__call__", record)
    return seen


@pytest.mark.parametrize("line_by_line", [False, True])
def test_an_epoch_reads_every_token_once_with_new_orders(line_by_line, train_file, run, tmp_path, monkeypatch):
    seen = record_examples(monkeypatch)
    results = run(
        tmp_path / "out", *XLNET, "--train_file", train_file, "--do_train", "--max_seq_length", 99,
        "--num_train_epochs", 3, *(["--line_by_line"] if line_by_line else []),
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = framed_examples(tokenizer, train_file, 99, line_by_line)
    orders = []
    for epoch in range(3):
        examples = sorted(example[1:] for example in seen if example[0] == epoch)
        assert [index for index, *_ in examples] == list(range(len(expected)))
        assert [ids for _, ids, *_ in examples] == expected
        orders.append([order for *_, order in examples])
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert results["train_tokens"] == 3 * sum(map(len, expected))


def test_the_default_length_is_512(train_file, run, tmp_path, monkeypatch):
    """XLNet has no maximum number of positions, so the flag may ask for more."""
    path = tmp_path / "long.txt"
    path.write_text("\n".join(make_lines(500)))
    for flags, expected in (([], 512), (["--max_seq_length", 1201], 1201)):
        with monkeypatch.context() as patch:
            seen = record_examples(patch)
            name = str(expected)
            one = ["--do_train", "--max_steps", 1, "--per_device_train_batch_size", 1]
            run(tmp_path / name, *XLNET, "--train_file", path, *one, *flags)
        assert max(len(ids) for _, _, ids, *_ in seen) == expected


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--plm_probability 0", ["--plm_probability 0"]),
        ("--plm_probability 1.1", ["--plm_probability 1.1"]),
        ("--plm_probability nan", ["--plm_probability nan"]),
        ("--max_span_length 0", ["--max_span_length 0"]),
        ("--max_span_length 33 --max_seq_length 32", ["--max_span_length 33"]),
        ("--max_span_length 513", ["--max_span_length 513"]),
        ("--group_by_length", ["--group_by_length", "--line_by_line"]),
        ("--max_seq_length 2 --max_span_length 1", ["--max_seq_length 2", "2 special tokens"]),
        ("--model_type gpt2", ["--model_type gpt2", "not train models of type gpt2", "xlnet"]),
        ("--model_type bert", ["--model_type bert", "it trains xlnet"]),
        ("--config_overrides d_model=10,n_head=4", ["d_model=10"]),
        ("--config_overrides d_model=16,n_head=2,d_heads=8", ["d_heads", "d_head"]),
        ("--mlm_probability 0.2", ["--mlm_probability", "--plm_probability"]),
    ],
)  # fmt: skip
def test_bad_flags_are_refused(flags, named, refused, train_file, monkeypatch):
    monkeypatch.setattr(run_plm, "load_model", lambda *args: pytest.fail("a model was loaded"))
    line = refused(*XLNET, "--train_file", train_file, *flags.split(), script=run_plm)
    assert line.startswith("run_plm.py: error: ")
    for part in named:
        assert part in line


def test_gradient_checkpointing_is_refused(refused, train_file):
    flags = [*XLNET, "--train_file", train_file, "--max_seq_length", 32]
    line = refused(*flags, "--gradient_checkpointing", script=run_plm)
    assert "--gradient_checkpointing" in line and "XLNetLMHeadModel" in line


def test_a_tokenizer_without_mask_token_is_refused(checkpoint, train_file, refused, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "causal")
    line = refused(
        "--model_type", "xlnet", "--tokenizer_name", tmp_path / "causal", "--train_file", train_file, script=run_plm
    )
    assert "no mask token" in line
    assert "not train models of type gpt2; it trains xlnet" in refused(
        "--model_name_or_path", checkpoint("gpt2"), "--train_file", train_file, script=run_plm
    )
