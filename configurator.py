"""Settings: a dataclass's defaults, then config files, then --name=value on the command line.

    settings = configure(Settings, sys.argv[1:])

A config file is plain Python, `name = value` a line. It is the person's own code, and it is executed.
The comment that ends a field's line is that setting's text in --help.
"""

import contextlib
import dataclasses
import difflib
import inspect
import math
import os
import signal
import sys
import types
import typing


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one line that says what to do."""


def configure(cls, argv: list[str]):
    """An instance of the frozen dataclass cls, made from argv. Raises SettingsError; --help exits 0."""
    if "--help" in argv or "-h" in argv:
        print(help_text(cls))
        raise SystemExit(0)
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    from_files, from_line = {}, {}
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            for name, value in read_config(word).items():
                check_name(name, fields, f"{word} sets")
                from_files[name] = convert(name, value, fields[name])
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise SettingsError(f"{word}: settings start with two dashes, as in --seed=1")
        check_name(name, fields, "there is no")
        if not equals:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise SettingsError(f"--{name} has no value; write --{name}=VALUE")
        from_line[name] = convert(name, value, fields[name])
    return cls(**{**from_files, **from_line})


def files(argv: list[str], ending: str) -> tuple[list[str], list[str]]:
    """argv in two: the words that name files with that ending, and the others, which are for `configure`."""
    named = [word for word in argv if word.endswith(ending) and not word.startswith("-")]
    return named, [word for word in argv if word not in named]


def check_name(name: str, fields: dict, prefix: str):
    if name not in fields:
        near = difflib.get_close_matches(name, fields, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else "--help lists them all"
        raise SettingsError(f"{prefix} setting {name!r}; {hint}")


def read_config(path: str) -> dict:
    """The names that a config file sets. Raises SettingsError for a file that cannot be read or run."""
    try:
        with open(path, encoding="utf-8") as f:
            source = f.read()
    except OSError as e:
        raise SettingsError(f"config file {path}: {e.strerror}; a setting is written --name=value") from None
    except UnicodeDecodeError:
        raise SettingsError(f"config file {path} is not UTF-8 text") from None
    names = {}
    try:
        exec(compile(source, path, "exec"), names)
    except SyntaxError as e:
        raise SettingsError(f"config file {path}, line {e.lineno}: {e.msg}") from None
    except (Exception, SystemExit) as e:
        raise SettingsError(f"config file {path}: {type(e).__name__}: {one_line(e)}") from None
    return {
        name: value
        for name, value in names.items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True)
BOOLEANS |= dict.fromkeys(("false", "0", "no", "off"), False)


def convert(name: str, value, kind):
    """value, a string from the command line or an object from a config file, as the field's type."""
    options = typing.get_args(kind) or (kind,)  # `bool | None` has two
    if type(None) in options and (value is None or str(value).lower() == "none"):
        return None
    kind = options[0]
    try:
        if kind is str and isinstance(value, str):
            return value
        if kind is bool:
            return BOOLEANS[str(value).lower()]
        if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            if kind is int and not isinstance(value, float):
                with contextlib.suppress(ValueError):  # 1e3, perhaps
                    number = int(value)
                    if abs(number) < 2**63:
                        return number
            number = float(value)
            if math.isfinite(number) and (kind is float or (number.is_integer() and abs(number) < 2**63)):
                return kind(number)
    except (ValueError, KeyError, OverflowError):
        pass
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}[kind]
    raise SettingsError(f"{name}={value!r} is not {wanted}")


def help_text(cls) -> str:
    """Every setting with its default and its comment, in the order and sections of the source."""
    doc = (cls.__doc__ or "").strip()
    lines = [doc, ""] if doc else []
    for line in inspect.getsource(cls).splitlines():
        code, _, comment = line.strip().partition("# ")
        name, _, rest = code.partition(":")
        if name in cls.__dataclass_fields__ and rest:
            default = cls.__dataclass_fields__[name].default
            default = default if str(default).isprintable() else repr(default)
            left = f"  --{name}={default}"
            lines.append(f"{left:<34} {comment}" if len(left) < 34 else f"{left}\n{'':<34} {comment}")
        elif not code and comment.startswith(" "):  # goes on from the line before
            lines.append(f"{'':<34} {comment.strip()}")
        elif not code and comment:
            lines += ["", comment] if lines[-1:] != [""] else [comment]
    return "\n".join(lines)


def one_line(text) -> str:
    return " ".join(str(text).split())[:500]


class Terminated(BaseException):
    """SIGTERM, raised where the program stands, so that it cleans up as it does for Ctrl-C."""


def terminate(signum, frame):
    raise Terminated


def starting(program: str):
    """Ctrl-C ends a program of this folder at once while torch is imported; a missing package is one line.

    Python's own way, an exception, is a traceback there, is lost, or aborts: torch's C++ code expects none.
    """
    if not os.path.isfile(program) or not ours(program):
        return  # imported by another: a test, a notebook
    sys.excepthook = without_package
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def ours(file: str) -> bool:
    """Whether a file is of this folder."""
    return os.path.dirname(os.path.realpath(file)) == os.path.dirname(os.path.realpath(__file__))


def without_package(kind, error, traceback):
    if not issubclass(kind, ModuleNotFoundError):
        return sys.__excepthook__(kind, error, traceback)
    print(f"{os.path.basename(sys.argv[0])}: {error}; run pip install -r requirements.txt", file=sys.stderr)


starting(sys.argv[0])


def run(main):
    """Run main() as a program: any failure ends in one line on standard error and the right exit status.

    2 for what the person asked wrongly (a ValueError of ours), 1 for what failed underneath, 130 for Ctrl-C,
    143 for SIGTERM.
    """
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    program = os.path.basename(sys.argv[0])
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal lacks is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        if sys.stdout:
            sys.stdout.flush()
    except SystemExit as e:  # --help
        status = e.code
    except BrokenPipeError:  # the reader went away, as in `| head`
        status = 1
    except KeyboardInterrupt:
        print(f"\n{program}: stopped", file=sys.stderr)
        status = 130
    except Terminated:
        print(f"{program}: stopped", file=sys.stderr)
        status = 143
    except OSError as e:
        name = f"{e.filename}: " if e.filename else ""
        print(f"{program}: {name}{e.strerror or one_line(e)}", file=sys.stderr)
        status = 1
    except Exception as e:
        where = e.__traceback__
        while where.tb_next:
            where = where.tb_next
        file = where.tb_frame.f_code.co_filename
        status = 2 if ours(file) and isinstance(e, ValueError) else 1
        message = one_line(e) or "no more is known"
        if not (ours(file) and isinstance(e, (ValueError, FloatingPointError, MemoryError))):
            message = f"{type(e).__name__} at {os.path.basename(file)}:{where.tb_lineno}: {message}"
        print(f"{program}: {message}", file=sys.stderr)
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as e:  # Python would try again, and complain, at the very end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not status:
            print(f"{program}: {e.strerror}", file=sys.stderr)
            status = 1
    raise SystemExit(status)
