"""Where a run's numbers go: log.csv, TensorBoard, Weights & Biases.

Each log has row(iter=..., name=value, ...), which is called for each line that is printed, and close().
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from drama.program import optional

from configurator import UserError, one_line
from drama.disk import write_atomically

if TYPE_CHECKING:
    from train_drama import Settings

# What is logged: a column of log.csv each, and how a printed line shows it
COLUMNS = {
    "loss": "loss {:.4f}",
    "time_ms": "time {:.2f}ms",
    "mfu": "mfu {:.2%}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "grad_norm": "grad norm {:.2f}",
    "lr": "",
    "train_loss": "train loss {:.4f}",
    "val_loss": "val loss {:.4f}",
    "val_bits_per_char": "{:.4f} bits per character",
    "val_part": "on {:.1%} of the validation split",
    "sample": "",
}


def read_rows(path: Path) -> list[dict]:
    """The whole rows of a log.csv. Raises ValueError where it is none, as when a spreadsheet has saved it."""
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as f:
            lines = (line.replace("\0", "") for line in f)  # a computer that went down may leave these
            table = csv.DictReader(lines)
            if "iter" in (table.fieldnames or ["iter"]):
                rows = list(table)
                # a stray quotation mark makes one field of many lines
                if not any("\n" in str(row[name]) for row in rows for name in row if name != "sample"):
                    return [row for row in rows if re.fullmatch("[0-9]+", row["iter"] or "")]
    except csv.Error:
        pass
    raise ValueError(f"{path} is no log")


class Log:
    """log.csv: one row for each line that the run printed."""

    FIELDS = ("iter", *COLUMNS)

    def __init__(self, path: Path, start: int):
        """Continue the log at iteration start: rows from there on are about to be written again."""
        self.path = path
        rows = []
        if start and path.is_file():
            try:
                rows = [row for row in read_rows(path) if int(row["iter"]) < start]
            except ValueError:
                aside = (path.with_name(f"log-damaged-{n}.csv") for n in itertools.count(1))
                damaged = next(name for name in aside if not name.exists())
                os.rename(path, damaged)
                print(f"{path} cannot be read: kept as {damaged.name}, and a new one begins", flush=True)
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


def open_logs(settings: Settings, out: Path, start: int) -> list:
    """What settings ask for, in the folder `out`, from iteration start on."""
    values = dataclasses.asdict(settings)
    logs = [Log(out / "log.csv", start)]
    if settings.tensorboard:
        logs.append(TensorBoard(out / "tensorboard", start, values))
    if settings.wandb:
        logs.append(WandB(out / "wandb", start, values))
    return logs


def require_packages(settings: Settings):
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
