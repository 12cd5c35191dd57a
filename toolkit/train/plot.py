"""The loss curve: training loss, its smoothed curve, and the held-out loss."""

from pathlib import Path
from typing import Any

from toolkit.core.files import writing


def loss_curve(entries: list[dict[str, Any]], path: Path) -> None:
    """Draw the trainer's log as a PNG."""
    import pandas
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [entry["step"] for entry in entries if "loss" in entry]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    axes.plot(steps, losses, color="#9db4d0", linewidth=1, label="training loss")
    axes.plot(
        steps,
        pandas.Series(losses).ewm(alpha=0.2).mean(),
        color="#1f4e8c",
        linewidth=2,
        label="training loss, smoothed",
    )
    held_out = [(entry["step"], entry["eval_loss"]) for entry in entries if "eval_loss" in entry]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="#c2571a", marker="o", label="held-out loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    with writing(path) as file:
        figure.savefig(file, format="png", dpi=120)
