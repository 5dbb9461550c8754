"""Loss curves: what runs wrote into log.csv, as one picture (needs matplotlib, which is optional).

python -m tools.plot                                                 model/log.csv as model/loss.png
python -m tools.plot model/a/log.csv model/b/log.csv --out=both.png  several runs side by side
python -m tools.plot --dark=true                                     light lines on black
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from drama.program import run_program

from configurator import FilePath, configure, split_files
from drama.training.picture import draw


@dataclass(frozen=True)
class Settings:
    """python -m tools.plot [LOG.csv ...] [--name=value ...]"""

    out: FilePath = ""  # the picture, .png, .svg or .pdf; empty: loss.png beside the first log
    dark: bool = False  # light lines on black, for a dark page or slide


def main():
    files, others = split_files(sys.argv[1:], ".csv")
    settings = configure(Settings, others)
    logs = [Path(file) for file in files or ["model/log.csv"]]
    out = Path(settings.out) if settings.out else logs[0].with_name("loss.png")
    draw(logs, out, settings.dark)
    print(f"{out}: {', '.join(map(str, logs))}")


if __name__ == "__main__":
    run_program(main)
