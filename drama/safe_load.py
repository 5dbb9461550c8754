"""Files of torch.save that anybody may have made: read without executing anything, or refused.

torch.load(weights_only=True) executes nothing either, but takes any time and memory that a file asks for. So
the pickle in it is read here, by a machine that knows plain values and tensors alone. What it has read takes
time and memory in proportion to the file.
"""

import errno
import pickletools
import struct
import zipfile
from pathlib import Path

import torch

# What the readers of zip files and pickles raise where one is damaged, on purpose or not.
DAMAGED = (
    zipfile.BadZipFile, struct.error, EOFError, ValueError, TypeError, LookupError, AttributeError,
    RuntimeError, OverflowError, AssertionError,
)  # fmt: skip
MOST = 500_000  # operations of a pickle; those of GPT-2 XL's training state are 50,000
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


def load_plain(path: Path):
    """The tree of dictionaries, lists, tuples, plain values and tensors (on the CPU) in a file of torch.save.

    Raises ValueError for anything else, OSError where the file cannot be read.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as z:
            members = z.infolist()
            # PyTorch stores without compression: what unpacks to more than the file is a bomb
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > size:
                raise ValueError("unpacks to more than the file")
            (pickled,) = (m.filename for m in members if m.filename.rpartition("/")[2] == "data.pkl")
            state = unpickled(z.read(pickled), Tensors(z, pickled.removesuffix("data.pkl") + "data/"))
        if not fits(state, 2 * size):  # twice, since nanoGPT names the tensor of its embedding twice
            raise ValueError("claims more than the file holds")
        return state
    except DAMAGED as e:
        raise ValueError(f"damaged ({type(e).__name__})") from None
    except OSError as e:
        if e.errno == errno.EINVAL:  # the zip refers to an offset before its beginning
            raise ValueError("damaged (offset)") from None
        raise


class Tensors:
    """The tensors of a file; those that share their bytes there share them here."""

    def __init__(self, z: zipfile.ZipFile, folder: str):
        self.z, self.folder, self.storages = z, folder, {}

    def storage(self, kind: str, key: str) -> torch.Tensor:
        """All numbers of one of the zip's members (n,), of the type that torch.save calls kind."""
        dtype = STORAGES[kind.removeprefix("torch ")]
        if (dtype, key) not in self.storages:
            member = self.z.getinfo(self.folder + key)
            data = bytearray(member.file_size)
            with self.z.open(member) as f:
                f.readinto(data)
                f.read()  # to its end, where its checksum is looked at
            empty = torch.empty(0, dtype=dtype)  # of which frombuffer makes nothing
            self.storages[dtype, key] = torch.frombuffer(data, dtype=dtype) if data else empty
        return self.storages[dtype, key]

    def tensor(self, storage: torch.Tensor, offset: int, shape: tuple, strides: tuple, *_) -> torch.Tensor:
        """Raises RuntimeError for one that reaches beyond its storage."""
        return storage.as_strided(shape, strides, offset)


class Name(str):
    """What a pickle names: a function or a class, never looked up."""


VALUES = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
}  # fmt: skip
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def unpickled(data: bytes, tensors: Tensors):
    """What a pickle of torch.save makes. Raises one of DAMAGED for what it should not hold.

    An OrderedDict becomes a dictionary, without attributes, which could stand in for its methods. Keys are
    strings and whole numbers: the hash of nested tuples can take for ever.
    """
    stack, marks, memo = [], [], {}

    def since_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def set_items(mapping: dict, items: list):
        if type(mapping) is not dict or not all(type(key) in (str, int) for key in items[::2]):
            raise ValueError("a key is neither a string nor a whole number")
        mapping.update(zip(items[::2], items[1::2], strict=True))

    for n, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name = operation.name
        if n > MOST:
            raise ValueError("too many operations")
        elif name in VALUES:
            stack.append(CONSTANTS.get(name, argument))
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in LENGTHS:
            stack[-LENGTHS[name] :] = [tuple(stack[-LENGTHS[name] :])]
        elif name == "APPEND":
            item = stack.pop()
            list.append(stack[-1], item)
        elif name == "APPENDS":
            items = since_mark()
            list.extend(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            set_items(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(Name(argument))
        elif name == "BINPERSID":
            what, kind, key, _, _ = stack.pop()
            if what != "storage" or type(kind) is not Name:
                raise ValueError("no storage")
            stack.append(tensors.storage(kind, key))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if type(function) is not Name or function not in REBUILT:
                raise ValueError(f"names {function}")
            stack.append(REBUILT[function](tensors, *arguments))
        elif name == "BUILD":  # attributes
            stack.pop()
        elif name == "STOP":
            return stack.pop()
        elif (name, argument) != ("PROTO", 2):
            raise ValueError(f"the operation {name}")
    raise ValueError("no end")


REBUILT = {
    "torch._utils _rebuild_tensor_v2": Tensors.tensor,
    "collections OrderedDict": lambda tensors: {},
}


def fits(state, size: int) -> bool:
    """Whether a tree claims at most size bytes: strides and shared parts can claim any number.

    A tensor claims what its shape says, a text and a tree a byte for each character or part.
    """
    left = [state]
    while left and size >= 0:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            size -= value.numel() * value.element_size()
        elif isinstance(value, (str, dict, list, tuple)):
            size -= len(value)
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            left += value
    return size >= 0
