"""Progress on a terminal and in a log file."""

import logging

import pytest

from utils import progress as progress_module
from utils.progress import format_duration, progress
from utils.training.log_callbacks import evaluation_line, training_line


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (-5, "0:00:00")])
def test_clock(seconds, text):
    assert format_duration(seconds) == text


def test_log_lines_without_a_terminal(caplog, monkeypatch):
    """They contain the share that is done and the remaining time. A silent process logs none."""
    times = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(times)))
    with caplog.at_level(logging.INFO):
        progress(iter([100] * 4), 400, "tokenizing train", "documents")
        progress(iter([100] * 4), 400, "nothing", "documents", shown=False)
    assert [record.getMessage() for record in caplog.records] == [
        "tokenizing train: 200 of 400 documents, 10 a second, ETA 0:00:20",
        "tokenizing train: 400 of 400 documents, 10 a second, ETA 0:00:00",
    ]


def test_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    taken = []
    progress((taken.append(i) or 1 for i in range(5)), 5, "evaluating", "blocks")
    assert taken == list(range(5))
    assert "evaluating: 100%" in capsys.readouterr().err


def test_lines_of_training_and_evaluation():
    logs = {"loss": 3.14159, "learning_rate": 5e-5, "grad_norm": 1.0, "tokens_per_second": 12345.6, "eta_seconds": 61}
    assert training_line(logs) == "loss 3.1416 | lr 5e-05 | grad norm 1 | 12,346 tokens/s"
    figures = {"loss": 1.0, "perplexity": 2.718, "accuracy": 0.5, "tokens_per_second": 10.0}
    for prefix, name in (("eval", "eval"), ("test", "test"), ("eval_my_books", "eval my_books")):
        line = evaluation_line({f"{prefix}_{figure}": value for figure, value in figures.items()})
        assert line == f"{name} loss 1.0000 | perplexity 2.718 | accuracy 0.5000 | 10 tokens/s"
    assert evaluation_line({"train_loss": 1.0}) is None
