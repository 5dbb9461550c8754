"""Where a run's numbers go: log.csv always, TensorBoard and Weights & Biases when asked for.

All have row(iter=..., name=value, ...), which is called where a line is printed, and close().
"""

import csv
import dataclasses
import importlib
import io
from pathlib import Path

from checkpoint import write_atomically


class Log:
    """log.csv: every number the run printed, one row a line."""

    FIELDS = (
        "iter", "loss", "time_ms", "mfu", "tokens_per_s", "lr", "train_loss", "val_loss", "val_bits_per_char",
        "sample",
    )  # fmt: skip

    def __init__(self, path: Path, start: int):
        """Continue the log at iteration start: rows from there on are about to be written again."""
        self.path = path
        rows = []
        if start and path.is_file():
            with open(path, newline="", encoding="utf-8") as f:
                rows = [
                    r for r in csv.DictReader(f) if (r.get("iter") or "").isdigit() and int(r["iter"]) < start
                ]
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
    """Raises ValueError where a package is missing that settings ask for, before anything is written."""
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")):
        if getattr(settings, name):
            try:
                importlib.import_module(module)
            except ImportError:
                raise ValueError(f"--{name} needs a package: pip install {name}") from None


class TensorBoard:
    """The same for `tensorboard --logdir`."""

    def __init__(self, folder: Path, start: int, settings: dict):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=start)  # what a stopped run wrote after its last save
        if not start:
            self.writer.add_text(
                "settings", "\n".join(f"    {name} = {settings[name]!r}" for name in settings)
            )

    def row(self, iter, **values):
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
        name = folder / "id"  # a run that goes on is the same run there
        known = name.read_text() if start and name.is_file() else None  # what it wrote twice counts once
        self.run = wandb.init(project="drama", dir=folder, id=known, resume="allow", config=settings)
        write_atomically(name, lambda f: f.write(self.run.id.encode()))

    def row(self, iter, **values):
        self.run.log(values, step=iter)

    def close(self):
        self.run.finish()
