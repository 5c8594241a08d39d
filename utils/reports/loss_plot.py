"""A plot of the losses."""

from matplotlib.figure import Figure


def plot_losses(log_history: list[dict], units: dict[str, str], set_names: list[str]) -> Figure:
    """Draw training and evaluation losses over the steps, each loss of the model in a plot of its own.

    Args:
        log_history: of TrainerState.
        units: for each loss of the model, by its name, the unit, e.g. "nats per token".
        set_names: of the evaluation sets; empty for a single set without a name.
    """
    figure = Figure(figsize=(8, 5 if len(units) == 1 else 3.5 * len(units)), layout="constrained")
    all_axes = figure.subplots(len(units), sharex=True, squeeze=False)[:, 0]
    prefixes = {f"evaluation: {name}": f"eval_{name}_" for name in set_names} or {"evaluation": "eval_"}
    for axes, (loss, unit) in zip(all_axes, units.items(), strict=True):
        name = f"{loss}_loss" if len(units) > 1 else "loss"
        training = {"training": "loss" if len(units) == 1 else f"train_{name}"}
        for label, key in (training | {label: prefix + name for label, prefix in prefixes.items()}).items():
            points = {log["step"]: log[key] for log in log_history if key in log}  # the last of each step
            if points:
                style = "-" if label == "training" else "o-"
                axes.plot(*zip(*sorted(points.items()), strict=True), style, label=label, markersize=4, linewidth=1.5)
        axes.set_ylabel(f"loss ({unit})")
        axes.set_title("Loss" if len(units) == 1 else f"{loss.upper()} loss")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    all_axes[-1].set_xlabel("step")
    return figure
