"""Files of torch.save that anybody may have made: read without executing anything, or refused.

torch.load's weights_only still builds whatever a pickle claims, of any size and kind. So the pickle is
looked at first: it may name plain values and tensors and nothing else, and claim no more than the file holds.
"""

import errno
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

# What the readers of zip files and pickles raise where one is damaged, on purpose or not.
DAMAGED = (
    zipfile.BadZipFile, pickle.UnpicklingError, struct.error, EOFError, ValueError, TypeError, LookupError,
    AttributeError, RuntimeError, OverflowError, AssertionError,
)  # fmt: skip


def load_plain(path: Path):
    """The tree of plain values and tensors (on the CPU) in a file of torch.save.

    Raises ValueError for anything else, OSError where the file cannot be read.
    """
    size = path.stat().st_size
    try:
        pickled = read_pickle(path, size)
        operations = [] if pickled is None else [(op.name, arg) for op, arg, _ in pickletools.genops(pickled)]
        if not is_plain(operations):
            raise ValueError("not plain")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not fits(state, size):
            raise ValueError("claims more than the file holds")
        return state
    except DAMAGED as e:
        raise ValueError(f"damaged ({type(e).__name__})") from None
    except OSError as e:
        if e.errno == errno.EINVAL:  # the zip refers to an offset before its beginning
            raise ValueError("damaged (offset)") from None
        raise


def read_pickle(path: Path, size: int) -> bytes | None:
    """The pickle in a file of torch.save's zip format; None where what unpacks is more than size bytes."""
    with zipfile.ZipFile(path) as z:
        members = z.infolist()
        # PyTorch stores without compression: what unpacks to more than the file is a bomb
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > size:
            return None
        pickles = [member for member in members if member.filename.endswith("data.pkl")]
        return z.read(pickles[0]) if len(pickles) == 1 else None


# What torch.save names for plain values and tensors. torch.load takes more: a bytearray of any size, say.
NAMED = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")


def is_plain(operations: list) -> bool:
    """Whether a pickle's operations (name, argument) name nothing but what plain values and tensors need."""
    names = [arg for name, arg in operations if name == "GLOBAL"]
    by_stack = any(name == "STACK_GLOBAL" for name, _ in operations)
    return operations[:1] == [("PROTO", 2)] and not by_stack and all(map(NAMED.fullmatch, names))


def fits(state, size: int) -> bool:
    """Whether a tree claims at most size bytes: strides and shared parts can claim any number.

    A tensor claims what its shape says, anything else a byte at least. Attributes of dictionaries are dropped
    on the way: they could stand in for methods.
    """
    left = [state]
    while left and size >= 0:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            size -= value.numel() * value.element_size()
        else:
            size -= 1
            if isinstance(value, OrderedDict):
                vars(value).clear()
            if isinstance(value, dict):
                left += [*value.keys(), *value.values()]
            elif isinstance(value, (list, tuple)):
                left += value
    return size >= 0
