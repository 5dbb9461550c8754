"""Running as a program: how it starts, which signals stop it, and how it ends.

A program imports this before torch (the linter's order of imports sees to that) and ends with

    if __name__ == "__main__":
        run_program(main)

Exit status: 0 when all is well, 2 for what the person asked wrongly, 1 for what failed underneath (disk,
network, memory, a loss that is not finite) and for a bug, 130 for Ctrl-C, 143 for SIGTERM.
"""

import builtins
import functools
import importlib
import math
import os
import re
import signal
import sys
import threading
import traceback
from pathlib import Path

from configurator import UserError, one_line

ROOT = Path(__file__).resolve().parent.parent


def starting():
    """Set torch's threads; in a program, Ctrl-C kills it and a missing package is one line until it runs.

    Python's own way, a KeyboardInterrupt, is lost or aborts when it meets torch's C++ code being imported.
    """
    set_threads()
    main = getattr(sys.modules["__main__"], "__file__", None)
    if not main or not is_ours(Path(main).resolve()) or hasattr(builtins, "__IPYTHON__"):
        return  # imported by a test or a notebook
    sys.excepthook = without_package
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_ours(file: Path) -> bool:
    """Whether a file is one of this project's programs or parts."""
    return file.parent == ROOT or any(ROOT / folder in file.parents for folder in ("drama", "tools"))


def set_threads():
    """Say how torch's threads are to work; it reads this when it is loaded. What is set already stays.

    Threads that wait for others go to sleep after some ten microseconds. As they come, they spin for
    milliseconds: beside another program that takes the processor from the very thread they wait for, which
    made an iteration three times as long here and a token ten times.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "500")
    if quota := cpu_quota():
        os.environ.setdefault("OMP_NUM_THREADS", str(quota))


def cpu_quota(root: Path = Path("/")) -> int:
    """How many processors' time Linux lets this process have, in a container for example; 0: all of them."""
    quotas = [math.inf]
    try:
        path = Path((root / "proc/self/cgroup").read_text().strip().rpartition("::")[2])
        for folder in (path, *path.parents):  # a limit of any of them holds
            limit = root / "sys/fs/cgroup" / folder.relative_to("/") / "cpu.max"
            allowed, *period = limit.read_text().split() if limit.is_file() else ["max"]
            if allowed != "max":
                quotas.append(int(allowed) / int(period[0]))
    except (OSError, ValueError):  # another system, or nothing known of it
        return 0
    return math.ceil(min(quotas)) if min(quotas) < (os.cpu_count() or 1) else 0


def without_package(kind, error, trace):
    """sys.excepthook: a package that is not installed gets one line."""
    if not issubclass(kind, ModuleNotFoundError) or (error.name or "").startswith(("drama", "tools")):
        return sys.__excepthook__(kind, error, trace)
    print(f"{program_name()}: {error}; run pip install -r requirements.txt", file=sys.stderr)


starting()


def optional(name: str, package: str = ""):
    """The module of an optional package. Raises UserError where it is not installed."""
    package = package or name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name and e.name.partition(".")[0] in (package, name.partition(".")[0]):
            raise UserError(f"this needs {package}: pip install {package}") from None
        raise UserError(f"{package} is installed but cannot be imported: {one_line(e)}") from None
    except Exception as e:  # a package may raise anything
        reason = f"{type(e).__name__}: {one_line(e)}"
        raise UserError(f"{package} is installed but cannot be imported ({reason})") from None


class Terminated(BaseException):
    """SIGTERM, raised where the program stands, so that it cleans up as it does for Ctrl-C."""


def terminate(signum, frame):
    raise Terminated


class Stop:
    """True once SIGINT, SIGTERM or SIGHUP (the terminal was closed) has come, so that a loop can finish its
    iteration and save. A second signal ends the program at once, except SIGHUP, which comes twice by itself.
    What is ignored, as under nohup, stays ignored.
    """

    def __init__(self):
        self.signum = 0
        self.handlers = {}  # as they were before

    def __bool__(self):
        return self.signum != 0

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may handle signals
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signum = getattr(signal, name, None)  # Windows has no SIGHUP
            if signum and signal.getsignal(signum) != signal.SIG_IGN:
                self.handlers[signum] = signal.signal(signum, self.catch)
        return self

    def catch(self, signum, frame):
        self.signum = signum
        if signum != getattr(signal, "SIGHUP", None):
            self.restore()

    def restore(self):
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)

    def __exit__(self, *exception):
        self.restore()


def run_program(main):
    """Call main() and exit with its status, or with one line on standard error and the status that fits.

    Anything but what the module's docstring names is a bug: it shows its traceback.
    """
    before = signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal lacks is no reason to stop
            stream.reconfigure(errors="backslashreplace")
            if stream.isatty():
                stream.write = functools.partial(write_visibly, stream.write)
            elif stream is sys.stdout:  # files are UTF-8, which is what all programs here read
                stream.reconfigure(encoding="utf-8")
    try:
        status = main() or 0
        if sys.stdout:
            sys.stdout.flush()
    except SystemExit as e:  # --help
        status = e.code
    except (Exception, KeyboardInterrupt, Terminated) as e:
        status = explain(e)
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as e:  # Python would try again, and complain, at the very end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not status:
            status = explain(e)
    signal.signal(signal.SIGTERM, before)  # a notebook that ran this goes on
    raise SystemExit(status)


CLEAR = "\r\x1b[K"  # the terminal's line
CONTROL = re.compile(rf"({re.escape(CLEAR)})|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write_visibly(write, text: str):
    """Write text to a terminal; what would command it, as a model or a play may hold, is shown as U+FFFD."""
    return write(CONTROL.sub(lambda found: found[1] or "\ufffd", text))


def explain(error: BaseException) -> int:
    """Print what ended the program; returns its exit status.

    Of torchrun's processes on a computer the first alone says what is true of all: that the request was
    wrong, or that another process has gone.
    """
    match error:
        case BrokenPipeError():  # the reader went away, as in `| head`
            return 1
        case KeyboardInterrupt() | Terminated():
            status, message = 130 if isinstance(error, KeyboardInterrupt) else 143, "stopped"
        case _ if int(os.environ.get("LOCAL_RANK") or 0) and isinstance(error, (UserError, ConnectionError)):
            return 2 if isinstance(error, UserError) else 1
        case UserError():
            status, message = 2, one_line(error)
        case OSError():
            file = f"{error.filename}: " if error.filename else ""
            status, message = 1, file + (error.strerror or one_line(error) or type(error).__name__)
        case _ if is_out_of_memory(error):
            status, message = 1, one_line(error) or "out of memory"
        case FloatingPointError():
            status, message = 1, one_line(error)
        case _:
            traceback.print_exception(error)
            status, message = 1, f"this is a bug; {where_to_look(error)}"
    newline = "\n" if isinstance(error, KeyboardInterrupt) else ""  # after the terminal's ^C
    print(f"{newline}{program_name()}: {message}", file=sys.stderr)
    return status


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class for it, which is a RuntimeError; MPS and the CPU, by system, have their words."""
    if isinstance(error, RuntimeError):
        return bool(re.search("out of memory|allocate memory|not enough memory", str(error)))
    return isinstance(error, MemoryError)


def going_without(what: str, error: Exception) -> str:
    """A line for people: something fast fails, and its plain path is taken.

    Raises the error itself where memory is short: the plain path would need as much or more.
    """
    if is_out_of_memory(error):
        raise error
    reason = one_line(error)[:120] or type(error).__name__
    return f"{what} does not work here ({reason}); going on without"


def where_to_look(error: BaseException) -> str:
    """For a bug: the innermost file of this project, where someone's edit may be at fault."""
    files = [Path(frame.filename).resolve() for frame in traceback.extract_tb(error.__traceback__)]
    ours = [file.relative_to(ROOT) for file in files if is_ours(file)]
    look = f"if you edited {ours[-1]}, the lines above show where it failed; " if ours else ""
    return f"{look}if you edited nothing, please report it with these lines (CONTRIBUTING.md says where)"


def program_name() -> str:
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name  # tools/export/ is export
