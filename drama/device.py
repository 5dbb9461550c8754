"""The computer's device and number format, and random streams with an address."""

import hashlib
from typing import Literal

import torch

from configurator import UserError, one_line

Dtype = Literal["auto", "bfloat16", "float16", "float32"]  # of a setting


def seed_at(*address) -> int:
    """A 63-bit seed that follows from an address such as (seed, "batch", iteration) alone."""
    digest = hashlib.sha256(repr(address).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def random_stream(*address) -> torch.Generator:
    """A CPU generator seeded at an address: what it draws can be drawn again at any time."""
    return torch.Generator().manual_seed(seed_at(*address))


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" is cuda, else mps, else cpu. Raises UserError where it is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.empty(1, device=torch.device(name)).device  # "cuda" becomes "cuda:0"
    except (RuntimeError, AssertionError) as e:
        why = one_line(e).partition(". ")[0][:150] or type(e).__name__
        raise UserError(f"device={name!r} cannot be used here ({why}); try --device=auto") from None
    if device.type not in ("cuda", "mps", "cpu"):
        raise UserError(f"device={name!r} is none of cuda, mps, cpu")
    if device.type == "cuda":
        check_kernels(device)
    return device


def check_kernels(device: torch.device):
    """Raise UserError where this build of PyTorch holds no code for a GPU that the driver offers."""
    try:
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError as e:
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        gpu = f"{torch.cuda.get_device_name(device)} (compute capability {capability})"
        built = f"PyTorch {torch.__version__} is built for {', '.join(torch.cuda.get_arch_list())}"
        advice = "docs/gpu.md names the builds for older GPUs; --device=cpu goes without"
        raise UserError(f"{gpu} fails its first sum ({one_line(e)[:80]}); {built}; {advice}") from None


def multiplies(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device's products in that format are right; what a card claims is not always so."""
    a = torch.arange(256, device=device).view(16, 16)  # whole numbers that bfloat16's eight bits can hold
    try:
        return torch.equal((a.to(dtype) @ torch.eye(16, device=device, dtype=dtype)).long(), a)
    except RuntimeError:
        return False


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of that name for matrix products; "auto" is the fastest that device has."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        with torch.cuda.device(device):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        formats = (torch.bfloat16,) * bf16 + (torch.float16,)
        return next((dtype for dtype in formats if multiplies(device, dtype)), torch.float32)
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():  # true with AMX as well
        return torch.bfloat16
    return torch.float32
