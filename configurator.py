"""Settings: a dataclass's defaults, then config files, then --name=value on the command line.

    settings = configure(Settings, sys.argv[1:])

A config file is plain Python, one `name = value` per line. It is the person's own code, and it is executed.
The comment at the end of a field's line is that setting's text in --help.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import math
import os
import types
import typing

FilePath = typing.Annotated[str, "of a file or folder"]  # of a setting: ~ is the home folder


class UserError(ValueError):
    """What a person asked cannot be done; the message is one line that says what to do instead."""


def configure(cls, argv: list[str]):
    """An instance of the frozen dataclass cls, made from argv. --help prints and exits.

    Raises UserError for a setting that does not exist or cannot have its value.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(cls))
        raise SystemExit(0)
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    from_files, from_line = {}, {}
    words = iter(argv)
    for word in words:
        if word.startswith(DASHES[1:]):
            short = f"--{word.lstrip(''.join(DASHES))}"
            raise UserError(f"{word} begins with a dash that a word processor made long; write {short}")
        if not word.startswith("-"):
            if not word.endswith(".py"):
                raise UserError(f"{word} is not a config file, NAME.py; a setting is written --name=value")
            read = read_config(word, fields)
            theirs = [name for name in read if name in NANOGPT and name not in fields]
            if len(theirs) > 1:
                listed = ", ".join(theirs)
                raise UserError(f"{word}: these are nanoGPT's, docs/nanogpt.md says what is here: {listed}")
            for name, value in read.items():
                check_name(name, fields, f"{word}: ")
                from_files[name] = convert(name, value, fields[name])
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UserError(f"{word}: settings start with two dashes, as in --seed=1")
        check_name(name, fields)
        if not equals:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise UserError(f"--{name} has no value; write --{name}=VALUE")
        from_line[name] = convert(name, value, fields[name])
    return cls(**{**from_files, **from_line})


def split_files(argv: list[str], ending: str) -> tuple[list[str], list[str]]:
    """argv in two: the words that name files with that ending, and the others, which are for `configure`."""
    files = [word for word in argv if word.endswith(ending) and not word.startswith("-")]
    return files, [word for word in argv if word not in files]


def check(settings, at_least: dict[str, float] | None = None):
    """Raise UserError where a value is none of its Literal's choices, or below its bound in at_least."""
    for field in dataclasses.fields(settings):
        value, choices = getattr(settings, field.name), typing.get_args(field.type)
        if typing.get_origin(field.type) is typing.Literal and value not in choices:
            raise UserError(f"{field.name}={value!r} is none of {', '.join(choices)}")
    for name, bound in (at_least or {}).items():
        if getattr(settings, name) < bound:
            raise UserError(f"{name}={getattr(settings, name)} is below {bound}")


DASHES = tuple("-\u2010\u2011\u2012\u2013\u2014\u2015\u2212")  # the first is a keyboard's


NANOGPT = {  # settings of nanoGPT that a program here lacks, and what to do; docs/nanogpt.md has the others
    "eval_only": "python -m tools.evaluate",
    "always_save_checkpoint": "leave it out; ckpt.pt is the best model, last.pt the latest state",
    "wandb_log": "--wandb=true, or leave it out",
    "wandb_project": "the environment variable WANDB_PROJECT",
    "wandb_run_name": "the environment variable WANDB_NAME",
    "decay_lr": "for a constant rate, min_lr equal to learning_rate and warmup_iters=0",
    "backend": "leave it out; it is NCCL for GPUs, Gloo for CPUs",
    "init_from": "out_dir names the model; to train one from GPT-2, config/finetune_gpt2.py",
    "compile": "leave it out; only training is compiled",
}


def check_name(name: str, fields: dict, prefix: str = ""):
    """Raise UserError for a name that is no field's; prefix says which config file sets it."""
    if name in fields:
        return
    if name in NANOGPT:
        others = " (docs/nanogpt.md has its other settings)" * bool(prefix)
        raise UserError(f"{prefix}{name} is nanoGPT's; here: {NANOGPT[name]}{others}")
    near = [field for field in fields if field.startswith(name) and len(name) > 2]
    near += difflib.get_close_matches(name, fields, 1, 0.71)  # at 0.7, vocab_size would be block_size
    hint = f"did you mean {near[0]}?" if near else "--help lists them all"
    raise UserError(f"{prefix}there is no setting {name!r}; {hint}")


def read_config(path: str, fields: dict) -> dict:
    """The settings in a config file. Raises UserError for a file that cannot be read or run.

    Modules, functions, classes, names that begin with _ and names that the file itself uses are no settings.
    """
    try:
        with open(os.path.expanduser(path), encoding="utf-8-sig") as f:
            source = f.read()
    except OSError as e:
        raise UserError(f"config file {path}: {e.strerror}; a setting is written --name=value") from None
    except UnicodeDecodeError:
        raise UserError(f"config file {path} is not UTF-8 text") from None
    names = {"__file__": path}
    try:
        tree = ast.parse(source, path)
        exec(compile(tree, path, "exec"), names)
    except SyntaxError as e:
        raise UserError(f"config file {path}, line {e.lineno}: {e.msg}") from None
    except (Exception, SystemExit) as e:
        raise UserError(f"config file {path}: {type(e).__name__}: {one_line(e)}") from None
    read = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    used = {node.id for node in read}
    others = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    return {
        name: value
        for name, value in names.items()
        if name in fields or not (name.startswith("_") or name in used or isinstance(value, others))
    }


BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True)
BOOLEANS |= dict.fromkeys(("false", "0", "no", "off"), False)


def convert(name: str, value, kind):
    """value, a string from the command line or an object from a config file, as the field's type."""
    if kind is FilePath and isinstance(value, str):
        value = os.path.expanduser(value)
    if kind is FilePath or typing.get_origin(kind) is typing.Literal:
        kind = str
    options = typing.get_args(kind) or (kind,)  # `bool | None` has two
    if type(None) in options and (value is None or str(value).lower() == "none"):
        return None
    kind = options[0]
    try:
        if kind is str and isinstance(value, str) and "\0" not in value:  # which no file's name may hold
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
    shown = "a number of very many digits" if type(value) is int and abs(value) >= 2**63 else repr(value)
    raise UserError(f"{name}={shown} is not {wanted}")


def help_text(cls) -> str:
    """Every setting with its default and its comment, in the order and sections of the source."""
    doc, defaults = (
        (cls.__doc__ or "").strip(),
        {field.name: field.default for field in dataclasses.fields(cls)},
    )
    lines = [doc, ""] if doc else []
    for line in inspect.getsource(cls).splitlines():
        code, _, comment = line.strip().partition("# ")
        name, _, rest = code.partition(":")
        if name in defaults and rest:
            default = defaults[name]
            default = default if str(default).isprintable() else repr(default)
            left = f"  --{name}={default}"
            lines.append(f"{left:<34} {comment}" if len(left) < 34 else f"{left}\n{'':<34} {comment}")
        elif not code and comment.startswith(" "):  # continues the line before
            lines.append(f"{'':<34} {comment.strip()}")
        elif not code and comment:
            lines += ["", comment] if lines[-1:] != [""] else [comment]
    return "\n".join(lines)


def one_line(text) -> str:
    """Any text, such as an exception's, as one line of at most 500 characters."""
    return " ".join(str(text).split())[:500]
