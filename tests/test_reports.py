"""What a run says of itself: results, log lines, TensorBoard and the model card tell what happened."""

import json
import logging
import re

import pytest
import torch
from huggingface_hub import ModelCard
from processes import killed_after_checkpoint
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

import run_clm
from utils.training.preparation import unused_parameters
from utils.training.trainer import LMTrainer


@pytest.fixture
def training(checkpoint, train_file, validation_file) -> list:
    """Flags of a short training: 8 blocks in a step, 36 to 40 in an epoch."""
    return [
        "--model_name_or_path", checkpoint("gpt2"), "--train_file", train_file, "--validation_file", validation_file,
        "--block_size", 32, "--max_steps", 4, "--learning_rate", 1e-2, "--logging_steps", 1,
    ]  # fmt: skip


@pytest.fixture
def change_trainer(monkeypatch):
    """`change_trainer(callback, ...)`: what run_clm's trainers also get; returns the list that they will be in."""

    def change(*callbacks, optimizers=None) -> list[LMTrainer]:
        trainers = []

        class Trainer(run_clm.LMTrainer):
            def __init__(self, **kwargs):
                given = {} if optimizers is None else {"optimizers": optimizers(kwargs["model"])}
                super().__init__(**kwargs, **given)
                trainers.append(self)
                for callback in callbacks:
                    self.add_callback(callback)

        monkeypatch.setattr(run_clm, "LMTrainer", Trainer)
        return trainers

    return change


def card_table(card: str, heading: str) -> dict[str, str]:
    section = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| (\S.*?) \| (.*) \|$", section, re.MULTILINE))


# Which step, how many examples


def test_the_best_model_is_reported_as_its_step(run, training, tmp_path, caplog):
    """The flags make the highest loss the best: the first step, and not the last."""
    caplog.set_level(logging.INFO, "utils")
    out = tmp_path / "out"
    results = run(
        out, *training, "--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1,
        "--load_best_model_at_end", "--greater_is_better", "--metric_for_best_model", "loss", "--report_to",
        "tensorboard",
    )  # fmt: skip
    state = json.loads((out / "trainer_state.json").read_text())
    evaluations = [log for log in state["log_history"] if "eval_loss" in log]
    assert [log["step"] for log in evaluations] == [1, 2, 3, 4]  # the first step is not evaluated again
    assert results["eval_loss"] == pytest.approx(evaluations[0]["eval_loss"], rel=1e-9)
    assert evaluations[0]["epoch"] < results["epoch"] == evaluations[3]["epoch"]
    assert state["global_step"] == 4
    lines = [record.message for record in caplog.records if "eval loss" in record.message]
    assert [re.match(r"step (\d)", line)[1] for line in lines] == ["1", "2", "3", "4"]
    assert "loaded the weights of step 1 of 4, the best by eval_loss" in caplog.text
    for file in ("train", "eval"):
        assert json.loads((out / f"{file}_results.json").read_text())["best_step"] == 1
    events = [EventAccumulator(str(path)).Reload() for path in sorted((out / "runs").rglob("events*"))]
    values = {
        (event.step, round(event.value, 4)) for file in events for event in file.Scalars("eval/loss")
        if "eval/loss" in file.Tags()["scalars"]
    }  # fmt: skip
    assert values == {(log["step"], round(log["eval_loss"], 4)) for log in evaluations}
    card = (out / "README.md").read_text()
    assert "| steps | 4 |" in card and "| weights | those of step 1 |" in card


@pytest.mark.parametrize("flags", [[], ["--gradient_accumulation_steps", 2], ["--max_steps", 20]])
def test_samples_are_those_trained_on(flags, run, training, tmp_path, monkeypatch, caplog):
    """Also if the training ends within an epoch, or is resumed; the log says the number of epochs."""
    caplog.set_level(logging.INFO, "utils")
    seen = []
    compute_loss = LMTrainer.compute_loss

    def record(trainer, model, inputs, *args, **kwargs):
        seen.append(len(inputs["input_ids"]))
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LMTrainer, "compute_loss", record)
    flags = [*training, *flags, "--do_train", "--save_strategy", "steps", "--save_steps", 1]
    whole = run(tmp_path / "whole", *flags)
    assert whole["train_samples"] == sum(seen)
    num_examples = int(re.search(r"of (\d+) blocks", caplog.text)[1])
    epochs = float(re.search(r"steps, ([\d.]+) epochs", caplog.text)[1])
    assert epochs == pytest.approx(whole["epoch"], abs=0.005 * epochs)
    assert abs(whole["train_samples"] - epochs * num_examples) < 16
    with killed_after_checkpoint(run_clm, 2):
        run(tmp_path / "resumed", *flags)
    assert run(tmp_path / "resumed", *flags)["train_samples"] == whole["train_samples"]


def test_a_stream_tells_the_number_of_the_epoch(run, training, tmp_path, caplog):
    caplog.set_level(logging.INFO, "utils")
    results = run(tmp_path / "out", *training, "--streaming", "--max_steps", 12, "--do_train")
    epochs = [int(epoch) for epoch in re.findall(r"step \d+/12 \| epoch (\d+) \|", caplog.text)]
    assert epochs[0] == 1 and epochs == sorted(epochs) and len(epochs) == 12
    assert epochs[-1] == results["epoch"] + 1 == 3
    assert results["train_samples"] == 12 * 8


# Evaluation sets and prefixes


def test_every_metric_has_the_prefix(run, training, tmp_path, change_trainer, caplog):
    caplog.set_level(logging.INFO, "utils")
    trainers = change_trainer()
    expected = run(tmp_path / "out", *training)
    (trainer,) = trainers
    metrics = trainer.evaluate(metric_key_prefix="test")
    figures = {"loss", "perplexity", "bits_per_byte", "bytes", "accuracy", "samples", "tokens", "runtime"}
    assert metrics.keys() - {"epoch"} == {f"test_{figure}" for figure in {*figures, "tokens_per_second"}}
    for figure in figures - {"runtime"}:
        assert metrics[f"test_{figure}"] == expected[f"eval_{figure}"]
    assert "| test loss" in caplog.text
    assert expected["perplexity"] == expected["eval_perplexity"]
    assert expected["bits_per_byte"] == expected["eval_bits_per_byte"]


# The model card


def test_the_card_is_of_the_run_and_not_of_the_flags(run, training, tmp_path, change_trainer):
    """Frozen layers, an optimizer and a schedule of one's own, an early end, and no path of the machine."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    def optimizers(model):
        for parameter in model.transformer.h[:1].parameters():
            parameter.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)

    change_trainer(Stop, optimizers=optimizers)
    run(tmp_path / "out", *training)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    total = sum(weight.numel() for weight in weights.values())
    frozen = sum(weight.numel() for name, weight in weights.items() if ".h.0." in name)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{total:,} parameters, of which {total - frozen:,} were trained" in card
    settings = card_table(card, "Training")
    assert settings["optimizer"] == "torch.optim.sgd.SGD"
    assert (settings["learning_rate"], settings["momentum"]) == ("0.05", "0.9")
    assert settings["learning_rate_schedule"] == "torch.optim.lr_scheduler.StepLR"
    assert settings["steps"] == "3 of 4"
    assert "adamw" not in card and "1e-02" not in card and "linear" not in card
    assert str(tmp_path) not in card
    assert "Trained from `gpt2-checkpoint` on train.txt, validation.txt." in card


def test_the_card_of_an_ordinary_run(run, training, tmp_path):
    flags = ["--optim", "adamw_torch", "--weight_decay", 0.1, "--lr_scheduler_type", "cosine", "--warmup_steps", 2]
    results = run(tmp_path / "out", *training, *flags, "--gradient_accumulation_steps", 2)
    card = (tmp_path / "out" / "README.md").read_text()
    settings = card_table(card, "Training")
    assert settings["optimizer"] == "torch.optim.adamw.AdamW"
    assert settings["learning_rate_schedule"] == "cosine_schedule_with_warmup"
    assert (settings["warmup_steps"], settings["weight_decay"], settings["learning_rate"]) == ("2", "0.1, 0.0", "0.01")
    assert settings["batch_size"].startswith("8 x 2 x 1 ")
    assert (settings["precision"], settings["steps"]) == ("float32", "4")
    assert "of which" not in card
    shown = card_table(card, "Results")
    assert float(shown["eval_perplexity"]) == pytest.approx(results["perplexity"], rel=1e-5)
    assert "perplexity" not in shown  # the same figure
    types = {result.metric_type for result in ModelCard.load(tmp_path / "out" / "README.md").data.eval_results}
    assert types == {"loss", "perplexity", "bits_per_byte", "accuracy"}


def test_the_card_says_mixed_precision_if_it_ran(run, training, tmp_path):
    run(tmp_path / "out", *training, "--bf16", "true", "--use_cpu")
    assert "| precision | mixed bf16, weights in float32 |" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_has_the_batch_size_that_fits(run, training, tmp_path, monkeypatch, caplog):
    """Found by --auto_find_batch_size, with a stand-in for a GPU that is too small."""
    caplog.set_level(logging.INFO, "utils")
    training_step = LMTrainer.training_step

    def limited(trainer, model, inputs, *args, **kwargs):
        if len(inputs["input_ids"]) > 4:
            raise RuntimeError("CUDA out of memory.")
        return training_step(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LMTrainer, "training_step", limited)
    results = run(tmp_path / "out", *training, "--auto_find_batch_size")
    card = (tmp_path / "out" / "README.md").read_text()
    batch_size, accumulation = map(int, re.search(r"\| batch_size \| (\d+) x (\d+) x 1", card).groups())
    assert batch_size <= 4 and batch_size * accumulation == 8  # an update has as many examples as before
    assert results["train_samples"] == 4 * 8
    assert f"batches of {batch_size} x {accumulation} x 1" in caplog.text


# Files of an evaluation, and what is printed


def test_an_evaluation_leaves_its_own_flags(run, training, validation_file, tmp_path):
    out = tmp_path / "out"
    run(out, *training)
    before = {name: (out / name).read_bytes() for name in ("run_args.yaml", "README.md", "loss.png")}
    evaluation = ["--model_name_or_path", out, "--validation_file", validation_file, "--block_size", 16, "--do_eval"]
    results = run(out, *evaluation)
    assert {name: (out / name).read_bytes() for name in before} == before
    assert results["train_samples"] == 32  # of the training, which all_results.json still has
    repeated = run_clm.main([str(out / "eval_args.yaml")])
    assert repeated["eval_loss"] == results["eval_loss"]


def test_a_terminal_shows_one_bar_below_the_lines(run, training, tmp_path, monkeypatch, capsys):
    """One remaining time, in the bar; each logged loss stays, on a line of its own."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(logging.getLogger("utils"), "level", logging.INFO)
    run(tmp_path / "out", *training, "--disable_tqdm", "false", "--eval_strategy", "steps", "--eval_steps", 2)
    shown = capsys.readouterr().err
    lines = re.split(r"[\r\n]+", shown)
    assert len([line for line in lines if re.search(r"step \d/4 \| epoch .* \| loss \d", line)]) == 4
    assert len([line for line in lines if re.search(r"step \d \| eval loss \d", line)]) == 2
    assert not [line for line in lines if "training:" in line and "loss" in line]
    assert re.search(r"training: 100%.*4/4", shown)
    assert "ETA" not in shown


def test_resuming_warns_of_nothing(run, training, tmp_path, caplog):
    """Not of the tied lm_head.weight, which is not in the file."""
    flags = [*training, "--save_strategy", "steps", "--save_steps", 1]
    with killed_after_checkpoint(run_clm, 2):
        run(tmp_path / "out", *flags)
    assert not any("lm_head" in name for name in load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors"))
    run(tmp_path / "out", *flags)
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_parameters_without_a_gradient_are_found(run, training, tmp_path, change_trainer):
    trainers = change_trainer()
    run(tmp_path / "out", *training, "--max_steps", 1)
    (trainer,) = trainers
    assert unused_parameters(trainer, trainer.train_dataset) == []
    trainer.model.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
    trainer.model.register_parameter("frozen", torch.nn.Parameter(torch.zeros(3), requires_grad=False))
    assert unused_parameters(trainer, trainer.train_dataset) == ["unused"]
