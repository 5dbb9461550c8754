"""Where a training runs: one process or several, the peak speed of the device."""

import contextlib
import ctypes
import os
import re
import sys
import time
import uuid
from dataclasses import dataclass

from drama.program import going_without

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, else its functions' defaults would hold it for ever

from configurator import UserError, one_line
from drama.device import find_device, find_dtype

MEASURED_FOR = 0.5  # seconds of matrix products, where the peak is not known
# Dense peak in TFLOP/s for 16-bit inputs, from the makers' data sheets; the first match is used. What is
# not here, a part of a GPU (MIG) and laptops' GPUs are measured.
PEAK_TFLOPS = {
    "GB200": 2500, "B200": 2250, "GH200": 989, "H200 NVL": 835, "H200": 989, "H100 PCIe": 756,
    "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A10G": 70, "A10": 125,
    "A40": 150, "A6000": 155, "RTX 6000 Ada": 364, "RTX 5090": 210, "RTX 4090": 165, "RTX 4080": 97,
    "RTX 3090": 71, "RTX 3080": 60, "V100-PCIE": 112, "V100": 125, "T4": 65,
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Where one process of a training runs."""

    device: torch.device
    dtype: torch.dtype  # of matrix products; weights and sums stay in float32
    rank: int = 0  # of `world` processes
    local_rank: int = 0  # the same on this computer
    world: int = 1

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def all_reduce(self, value: torch.Tensor) -> torch.Tensor:
        """value summed over all ranks, in place. Collective: every rank must call it."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def any_rank(self, flag) -> bool:
        """Whether flag is true on any rank. Collective; waits for a GPU where there are several."""
        if self.world == 1:
            return bool(flag)
        return self.all_reduce(torch.tensor(float(bool(flag)), device=self.device)).item() > 0

    def records(self, cuda_graph: bool | None) -> bool:
        """Whether iterations become a CUDA graph: None where that can be, true to insist, false for never."""
        # a graph cannot skip the step in which float16 overflows
        can_be = self.device.type == "cuda" and self.world == 1 and self.dtype != torch.float16
        return bool(cuda_graph) or (can_be and cuda_graph is None)

    @property
    def any_rank_is_cheap(self) -> bool:
        """Whether `any_rank` need not wait for a GPU."""
        return self.world == 1 or self.device.type == "cpu"

    def broadcast(self, value):
        """Rank 0's value, any that can be pickled, on every rank. Collective."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def wait(self):
        """Wait until the device has done what it was told."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def peak_flops(self) -> tuple[float, str]:
        """(FLOP/s that count as 100 % MFU, where that figure is from)."""
        if self.device.type == "cuda" and self.dtype != torch.float32:
            gpu = torch.cuda.get_device_name(self.device)
            for name, tflops in PEAK_TFLOPS.items():
                # "L4" is not in "L40"
                if re.search(rf"\b{name}\b(?! (?:Ti|SUPER|Laptop))", gpu) and "MIG" not in gpu:
                    return tflops * 1e12, f"the data sheet's {tflops} TFLOP/s"
        n, flops, until = 256, 0.0, time.perf_counter() + MEASURED_FOR
        a = torch.randn(n, n, device=self.device, dtype=self.dtype)
        while time.perf_counter() < until:  # the best of many: other programs may be running
            start = time.perf_counter()
            (a @ a)[0, 0].item()  # waits for the device
            flops = max(flops, 2 * n**3 / (time.perf_counter() - start))
            if 2 * n**3 / flops < 0.005 and n < 8192:  # too small to be at full speed
                n *= 2
                a = torch.randn(n, n, device=self.device, dtype=self.dtype)
        return flops, f"a matmul rate of {flops / 1e12:.2f} TFLOP/s, measured just now"


@contextlib.contextmanager
def others_may_be_gone():
    """Raises ConnectionError where PyTorch says in its own ways that another process no longer answers."""
    try:
        yield
    except RuntimeError as e:  # gloo's are nothing else
        gone = re.search(r"gloo|NCCL|Connection (?:closed|reset)|Timed? ?out|failed to connect", str(e), re.I)
        if not (isinstance(e, dist.DistError) or (dist.is_initialized() and gone)):
            raise
        who = f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}"
        lost = f"{who} no longer hears from the others ({one_line(e)[:160]})"
        raise ConnectionError(f"{lost}; the same command goes on from the last save") from None


@contextlib.contextmanager
def uncompiled():
    """Within, what torch.compile has compiled runs as it is written: it was compiled for training alone."""
    if "torch._dynamo" not in sys.modules:  # loading it takes a second
        yield
    else:
        with torch.compiler.set_stance("force_eager"):
            yield


def training_machine(device: str, dtype: str) -> Machine:
    """Make ready to train, as one of torchrun's processes if it started this one. Raises UserError."""
    environ = {name: int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    rank, local_rank, world = environ["RANK"], environ["LOCAL_RANK"], max(1, environ["WORLD_SIZE"])
    if world > 1:  # a GPU each, or the CPU together
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device not in ("cuda", "cpu"):
            raise UserError(f"device={device!r} cannot be shared by {world} processes; use cuda or cpu")
    device = find_device(f"cuda:{local_rank}" if device == "cuda" and world > 1 else device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32, for what autocast leaves in float32
    if device.type == "cpu":
        keep_freed_memory()
    if world > 1 and not dist.is_initialized():
        store, _, _ = next(dist.rendezvous("env://"))
        store = store_of_this_start(store, rank, world)
        join(store, rank, world, device, ("nccl", "gloo") if cuda else ("gloo",))
    return Machine(device, find_dtype(dtype, device), rank, local_rank, world)


def join(store: dist.Store, rank: int, world: int, device: torch.device, backends: tuple[str, ...]):
    """Join the other processes by the first backend with which all can add up a number.

    Raises what the last one raises.
    """
    for backend in backends:
        own, error = dist.PrefixStore(backend, store), None
        try:
            kwargs = dict(device_id=device) if backend == "nccl" else {}
            dist.init_process_group(backend, store=own, rank=rank, world_size=world, **kwargs)
            one = torch.ones(1, device=device)
            dist.all_reduce(one)
            one.item()  # waits for it
        except Exception as e:  # of NCCL, where GPUs cannot reach each other
            error = e
        if backend == backends[-1]:
            if error:
                raise error
            return
        own.set(f"works/{rank}", str(int(error is None)))
        if all(own.get(f"works/{other}") == b"1" for other in range(world)):  # get waits for the others
            return
        if dist.is_initialized():
            dist.destroy_process_group()
        if error:
            print(going_without(f"process {rank}: {backend}", error), flush=True)


def store_of_this_start(store: dist.Store, rank: int, world: int) -> dist.Store:
    """The part of a store that only the processes of this start of a job read and write.

    torchrun restarts processes with the store of the dead ones, which still holds their addresses, and its
    hosts do not agree on how often they have restarted. So each process announces a name made just now, rank
    0 answers that name, and the others join under rank 0's name. Raises OSError after half an hour.
    """
    me, until = uuid.uuid4().hex, time.monotonic() + 1800

    def wait():
        if time.monotonic() > until:
            raise OSError(0, f"process {rank} of {world} has waited for the others for half an hour")
        time.sleep(0.02)

    if rank:
        store.set(f"called/{rank}", me)
        while not store.check([f"answer/{me}"]):
            wait()
        first = store.get(f"answer/{me}").decode()
        store.set(f"joined/{first}/{rank}", "")
        return dist.PrefixStore(first, store)
    answered, missing = set(), set(range(1, world))
    while missing:
        for other in missing.copy():
            if store.check([f"called/{other}"]):
                name = store.get(f"called/{other}").decode()  # perhaps a dead one's, until it calls again
                if name not in answered:
                    store.set(f"answer/{name}", me)
                    answered.add(name)
            if store.check([f"joined/{me}/{other}"]):
                missing.discard(other)
        wait()
    return dist.PrefixStore(me, store)


def keep_freed_memory():
    """Let glibc keep what is freed. It maps blocks over 32 MB anew each time, and the page faults of
    fresh memory then cost more than the arithmetic done in it. Other C libraries are left as they are."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: take nothing from mmap, everything from the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: do not give the heap's end back
