"""A plot of the losses."""

from pathlib import Path

from matplotlib.figure import Figure


def plot_losses(log_history: list[dict], path: str | Path) -> None:
    """Draw training and evaluation loss (nats per target) over the steps into a PNG file."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "evaluation", "o-")):
        points = [(log["step"], log[key]) for log in log_history if key in log]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per target)")
    axes.set_title("Loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)
