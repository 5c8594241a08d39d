"""The plot of the losses: what is drawn where."""

from utils.reports.loss_plot import plot_losses


def drawn(axes) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def test_evaluations_are_in_the_order_of_their_steps():
    """The best model, evaluated at the end, is a point at its own step, and not one after the last."""
    log = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 2.5}, {"step": 2, "loss": 2.0}]
    log += [{"step": 2, "eval_loss": 2.6}, {"step": 2, "train_loss": 2.5}, {"step": 1, "eval_loss": 2.5}]
    (axes,) = plot_losses(log, {"lm": "nats per token"}, []).axes
    assert drawn(axes) == {"training": [(1, 3.0), (2, 2.0)], "evaluation": [(1, 2.5), (2, 2.6)]}
    assert axes.get_ylabel() == "loss (nats per token)"


def test_each_evaluation_set_has_a_line():
    log = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_a_loss": 2.0}, {"step": 1, "eval_b_loss": 4.0}]
    (axes,) = plot_losses(log, {"lm": "nats per token"}, ["a", "b"]).axes
    assert drawn(axes) == {"training": [(1, 3.0)], "evaluation: a": [(1, 2.0)], "evaluation: b": [(1, 4.0)]}


def test_two_losses_are_apart_with_their_units():
    log = [{"step": 1, "loss": 4.0, "train_mlm_loss": 3.0, "train_nsp_loss": 1.0}]
    log += [{"step": 1, "eval_loss": 3.5, "eval_mlm_loss": 2.8, "eval_nsp_loss": 0.7}]
    figure = plot_losses(log, {"mlm": "nats per masked token", "nsp": "nats per pair"}, [])
    above, below = figure.axes
    assert drawn(above) == {"training": [(1, 3.0)], "evaluation": [(1, 2.8)]}
    assert drawn(below) == {"training": [(1, 1.0)], "evaluation": [(1, 0.7)]}
    assert [axes.get_title() for axes in figure.axes] == ["MLM loss", "NSP loss"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats per masked token)", "loss (nats per pair)"]
