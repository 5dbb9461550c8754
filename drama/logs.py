"""Where a run's numbers go: log.csv and its picture, TensorBoard, Weights & Biases.

Each log has row(iter=..., name=value, ...), which is called for each line that is printed, and close().
"""

import csv
import dataclasses
import io
import math
import os
from pathlib import Path

from drama.program import optional

from configurator import UserError, one_line
from drama.disk import write_atomically


class Log:
    """log.csv: every number the run printed, one row for each line."""

    FIELDS = ("iter", "loss", "time_ms", "mfu", "tokens_per_s", "lr")
    FIELDS += ("train_loss", "val_loss", "val_bits_per_char", "sample")

    def __init__(self, path: Path, start: int):
        """Continue the log at iteration start: rows from there on are about to be written again."""
        self.path = path
        rows = []
        if start and path.is_file():
            with open(path, newline="", encoding="utf-8", errors="replace") as f:
                lines = (line.replace("\0", "") for line in f)  # which a computer that went down may leave
                rows = [row for row in csv.DictReader(lines) if (row["iter"] or "").isdigit()]
            rows = [row for row in rows if int(row["iter"]) < start]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.FIELDS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, lambda f: f.write(text.getvalue().encode()))

    def row(self, **values):
        with open(self.path, "a", newline="", encoding="utf-8") as f:
            csv.DictWriter(f, self.FIELDS, lineterminator="\n").writerow(values)

    def close(self):
        pass


def open_logs(settings, out: Path, start: int) -> list:
    """What settings (train_drama's) ask for, in the folder `out`, from iteration start on."""
    values = dataclasses.asdict(settings)
    logs = [Log(out / "log.csv", start)]
    if settings.tensorboard:
        logs.append(TensorBoard(out / "tensorboard", start, values))
    if settings.wandb:
        logs.append(WandB(out / "wandb", start, values))
    return logs


def require_packages(settings):
    """Raise UserError where a package is missing that settings ask for, before anything is written."""
    if settings.tensorboard:
        optional("torch.utils.tensorboard", "tensorboard")
    if settings.wandb:
        wandb = optional("wandb")
        if os.environ.get("WANDB_MODE", "online") == "online":
            try:
                known = wandb.login(prompt=False)
            except wandb.Error as e:
                raise UserError(f"wandb: {one_line(e)}; or set WANDB_MODE=offline") from None
            if not known:
                raise UserError("wandb knows no account here: run wandb login, or set WANDB_MODE=offline")


class TensorBoard:
    """The same for `tensorboard --logdir`."""

    def __init__(self, folder: Path, start: int, settings: dict):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=start)  # what a stopped run wrote after its last save
        if not start:
            lines = [f"    {name} = {value!r}" for name, value in settings.items()]
            self.writer.add_text("settings", "\n".join(lines))

    def row(self, iter: int, **values):
        for name, value in values.items():
            if name == "sample":
                self.writer.add_text(name, "".join(f"    {line}\n" for line in value.splitlines()), iter)
            else:
                self.writer.add_scalar(name, value, iter)

    def close(self):
        self.writer.close()


class WandB:
    """The same at wandb.ai."""

    def __init__(self, folder: Path, start: int, settings: dict):
        import wandb

        folder.mkdir(exist_ok=True)
        name = folder / "id"  # a continued run is the same run there
        known = name.read_text() if start and name.is_file() else None  # what is written twice counts once
        project = os.environ.get("WANDB_PROJECT", "drama")
        self.run = wandb.init(project=project, dir=folder, id=known, resume="allow", config=settings)
        write_atomically(name, lambda f: f.write(self.run.id.encode()))

    def row(self, iter: int, **values):
        self.run.log(values, step=iter)

    def close(self):
        self.run.finish()


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
