"""The losses in log.csv as a picture."""

import csv
import io
import itertools
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


def smoothed(values: list[float]) -> list[float]:
    """Running means, each over a fifth of the run so far: the first fall stays steep, the rest is calm."""
    sums = [0.0, *itertools.accumulate(values)]
    windows = [(i - i // 10, min(i + i // 10 + 1, len(values))) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in windows]


def after_start(column: tuple[list[int], list[float]]) -> list[tuple]:
    """The same without iteration 0, unless it is alone: a line from there would hide the first fall."""
    points = list(zip(*column, strict=True))
    return list(zip(*[point for point in points if point[0]] or points, strict=True))


def plot(figure, runs: list[tuple[str, dict]]):
    """Draw (name, columns of the log) of each run; the training split only where there is one run."""
    above, below = figure.subplots(2, sharex=True, height_ratios=(5, 1))
    shown, ends, bests = [], [], []  # losses to find room for; names and best values, each with its point
    for number, (name, columns) in enumerate(runs):
        color, prefix = f"C{number}", f"{name}: " * (len(runs) > 1)
        below.plot(*columns["lr"], color=color)
        iterations, losses = columns["loss"]
        curve = smoothed(losses)
        above.plot(iterations, losses, color=color, alpha=0.3, linewidth=0.8)
        above.plot(iterations, curve, color=color)
        ends.append((curve[-1], iterations[-1], f"{prefix}batches", color))
        shown += [min(losses), *curve[min(1 + len(curve) // 20, len(curve) - 1) :]]  # after the first fall
        if "val_loss" in columns:
            best, at = min(zip(*reversed(columns["val_loss"]), strict=True))
            cut = after_start if at else tuple  # fine-tuning may never improve on its first model
            iterations, losses = cut(columns["val_loss"])
            if len(runs) == 1:
                color, (x, train) = "C1", cut(columns["train_loss"])
                above.plot(x, train, ":.", color="C0")
                above.fill([*x, *reversed(iterations)], [*train, *reversed(losses)], color=color, alpha=0.15)
                ends.append((train[-1], x[-1], "training split", "C0"))
                shown += train
            above.plot(iterations, losses, "--.", color=color)
            ends.append((losses[-1], iterations[-1], f"{prefix}validation", color))
            above.plot(at, best, "o", color=color, markerfacecolor="none", markersize=10)
            bests.append((best, at, f"best {best:.4f}", color))
            shown += losses
    for axes in (above, below):
        axes.margins(x=0.01)
        axes.grid(alpha=0.2)
    row = (max(shown) - min(shown)) / 20 or 0.1  # a text is less high than this
    above.set(ylabel="loss (nats per token)", ylim=(min(shown) - row, max(shown) + row))
    below.set(ylabel="learning rate", xlabel="iteration")
    left, right = above.get_xlim()
    for texts in (ends, bests):  # from the lowest up, so that none overlaps another
        y = -math.inf
        for loss, x, text, color in sorted(texts):
            y = max(y + row, loss + row * (texts is bests))
            place = (right + 0.03 * (right - left) if texts is ends else x, y)
            align = "right" if texts is bests and x > (left + right) / 2 else "left"
            line = dict(arrowstyle="-", linestyle=":", color=color, alpha=0.5)
            font = dict(color=color, fontsize="small", ha=align, va="center", parse_math=False)
            above.annotate(text, (x, loss), place, arrowprops=line, **font)


def draw(logs: list[Path], out: Path, dark: bool = False):
    """The losses over the iterations, the learning rate beneath; with the folders' names for several runs.

    Raises UserError without matplotlib or with a log that cannot be read.
    """
    names = [path.resolve().parent.name.encode("utf-8", "replace").decode()[:20] for path in logs]
    runs = list(zip(names, map(read_log, logs), strict=True))
    Figure = optional("matplotlib.figure").Figure  # and not pyplot, which looks for a screen
    with optional("matplotlib.style").context(["dark_background"] * dark):
        figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
        plot(figure, runs)
        form = out.suffix[1:] or "png"
        if form not in (known := figure.canvas.get_supported_filetypes()):
            raise UserError(f"{out}: there is no picture of the kind {form!r}; use one of {', '.join(known)}")
        picture = io.BytesIO()
        figure.savefig(picture, format=form)
    write_atomically(out, lambda f: f.write(picture.getvalue()))
