"""The losses in log.csv as a picture."""

import csv
import io
import math
from pathlib import Path

from drama.program import optional

from configurator import UserError
from drama.disk import write_atomically


def read_log(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """(iterations, values) of each column of a log.csv. Raises UserError where it is none."""
    columns = {}
    try:
        with open(path, newline="", encoding="utf-8") as f:
            for row in csv.DictReader(f):
                for name in row.keys() - {"iter", "sample"}:
                    if row[name] and math.isfinite(value := float(row[name])):  # a run may end with NaN
                        iteration = int(row["iter"])
                        if max(iteration, abs(value)) > 1e15:
                            raise ValueError  # which no picture could show
                        iterations, values = columns.setdefault(name, ([], []))
                        iterations.append(iteration)
                        values.append(value)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a training writes it") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{path} is not a training's log.csv") from None
    if "loss" not in columns:
        raise UserError(f"{path} holds no iteration yet")
    if "lr" not in columns or ("val_loss" in columns) != ("train_loss" in columns):
        raise UserError(f"{path} is not a training's log.csv")
    return columns


def draw(logs: list[Path], out: Path):
    """Training and validation loss over the iterations, the best point marked, the learning rate beneath.

    Raises UserError without matplotlib or with a log that cannot be read.
    """
    Figure = optional("matplotlib.figure").Figure  # and not pyplot, which looks for a screen
    runs = [read_log(path) for path in logs]
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    for number, (path, columns) in enumerate(zip(logs, runs, strict=True)):
        color, name = f"C{number}", path.resolve().parent.name.encode("utf-8", "replace").decode()
        above.plot(*columns["loss"], color=color, alpha=0.2, linewidth=0.8, label=f"{name}: batches")
        if "val_loss" in columns:
            above.plot(*columns["train_loss"], color=color, linestyle=":", label=f"{name}: training split")
            iterations, losses = columns["val_loss"]
            best = min(range(len(losses)), key=losses.__getitem__)
            label = f"{name}: validation split, best {losses[best]:.4f} at {iterations[best]:,}"
            above.plot(iterations, losses, color=color, marker=".", label=label)
            ring = dict(color=color, markerfacecolor="none", markersize=10)
            above.plot(iterations[best], losses[best], "o", **ring)
        below.plot(*columns["lr"], color=color)
    above.set_ylabel("loss (nats per token)")
    above.legend(fontsize="small")
    above.grid(alpha=0.3)
    evaluated = [loss for columns in runs for loss in columns.get("val_loss", ([], []))[1][1:]]
    highest = max(columns["loss"][1][0] for columns in runs)
    lowest = min(min(columns["loss"][1]) for columns in runs)
    top = max([min(highest, 3 * lowest), *evaluated])  # the first fall is not what one looks for
    above.set_ylim(0.95 * lowest, 1.02 * top)
    below.set_ylabel("learning rate")
    below.set_xlabel("iteration")
    below.grid(alpha=0.3)
    form = out.suffix[1:] or "png"
    if form not in (known := figure.canvas.get_supported_filetypes()):
        raise UserError(f"{out}: there is no picture of the kind {form!r}; use one of {', '.join(known)}")
    picture = io.BytesIO()
    figure.savefig(picture, format=form)
    write_atomically(out, lambda f: f.write(picture.getvalue()))
