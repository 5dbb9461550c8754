"""Loss curves: what runs wrote into log.csv, as one picture (needs matplotlib, which is optional).

python plot.py                                                 model/log.csv as model/loss.png
python plot.py model/a/log.csv model/b/log.csv --out=both.png  several runs side by side
"""

from configurator import configure, files, run  # first: see starting() there

# isort: split
import csv
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from checkpoint import write_atomically


@dataclass(frozen=True)
class Settings:
    """python plot.py [LOG.csv ...] [--name=value ...]"""

    out: str = ""  # the picture, .png, .svg or .pdf; empty: loss.png beside the first log


def read_log(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """(iterations, values) of each column of a log.csv. Raises ValueError where it is none."""
    columns = {}
    try:
        with open(path, newline="", encoding="utf-8") as f:
            for row in csv.DictReader(f):
                for name in row.keys() - {"iter", "sample"}:
                    if row[name]:
                        iterations, values = columns.setdefault(name, ([], []))
                        iterations.append(int(row["iter"]))
                        values.append(float(row[name]))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; a training writes it") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise ValueError(f"{path} is not a training's log.csv") from None
    if "loss" not in columns:
        raise ValueError(f"{path} holds no iteration yet")
    if "lr" not in columns or ("val_loss" in columns) != ("train_loss" in columns):
        raise ValueError(f"{path} is not a training's log.csv")
    return columns


def draw(logs: list[Path], out: Path):
    """Training and validation loss over the iterations, the best point marked, the learning rate beneath.

    Raises ValueError without matplotlib or with a log that cannot be read.
    """
    try:
        from matplotlib.figure import Figure  # and not pyplot, which looks for a screen
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install matplotlib") from None
    runs = [read_log(path) for path in logs]
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    for number, (path, columns) in enumerate(zip(logs, runs, strict=True)):
        color, name = f"C{number}", path.resolve().parent.name
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
    above.set_ylabel("loss (nats a token)")
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
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=out.suffix[1:] or "png")
    except ValueError as e:
        raise ValueError(f"out={str(out)!r}: {e}") from None
    write_atomically(out, lambda f: f.write(picture.getvalue()))


def main():
    given, others = files(sys.argv[1:], ".csv")
    settings = configure(Settings, others)
    logs = [Path(word) for word in given or ["model/log.csv"]]
    out = Path(settings.out) if settings.out else logs[0].with_name("loss.png")
    draw(logs, out)
    print(f"{out}: {', '.join(map(str, logs))}")


if __name__ == "__main__":
    run(main)
