from types import SimpleNamespace

from drama.program import cpu_quota

import pytest
import torch
import torch.distributed as dist
from helpers import CPU, PROGRAMS

from configurator import UserError
from drama.device import find_device, find_dtype, random_stream
from drama.training.machine import Machine, others_may_be_gone

CUDA = Machine(torch.device("cuda"), torch.bfloat16)


def test_random_streams_follow_from_their_address_alone():
    def draw(*address):
        return tuple(torch.rand(4, generator=random_stream(*address)).tolist())

    assert draw(1, "batch", 2) == draw(1, "batch", 2)
    addresses = [(1, 2), (2, 1), (1, 2, 0), ("1", 2), (12,), (1337, "batch", 7)]
    assert len({draw(*address) for address in addresses}) == len(addresses)


@pytest.mark.parametrize("name, number", [("cuda", 0), ("cuda:3", 3)])
def test_a_gpu_is_named_by_its_number(monkeypatch, name, number):
    here = {"cuda": "cuda:0"}  # PyTorch puts a tensor for "cuda" on the current one

    def empty(size, device):
        return SimpleNamespace(device=torch.device(here.get(str(device), device)))

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr("drama.device.check_kernels", lambda device: None)
    assert find_device(name) == torch.device("cuda", number)  # what torch.cuda.set_device takes


def test_a_gpu_that_the_build_has_no_code_for_is_named_at_once(monkeypatch):
    def no_kernel(size, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "empty", lambda size, device: SimpleNamespace(device=torch.device("cuda:0")))
    monkeypatch.setattr(torch, "ones", no_kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    with pytest.raises(UserError, match=r"^Tesla V100 \(compute capability 7.0\) fails [^\n]*sm_75, sm_90;"):
        find_device("cuda")


@pytest.mark.parametrize("name, words", [
    ("toaster", "'toaster' cannot be used here"), ("meta", "'meta' is none of cuda, mps, cpu"),
])  # fmt: skip
def test_a_device_that_is_not_here_is_refused_in_one_line(name, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as refused:
        find_device(name)
    assert words in str(refused.value)


@pytest.mark.parametrize("has, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_multiplies_in_bfloat16_where_it_can(monkeypatch, has, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    assert find_dtype("auto", find_device("cpu")) == dtype
    assert find_dtype("float16", find_device("cpu")) == torch.float16


@pytest.mark.parametrize("gpu, tflops", [
    ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H200", 989), ("NVIDIA L40S", 362),
    ("NVIDIA L4", 121), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A40", 150), ("Tesla T4", 65),
    ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA H200 NVL", 835), ("NVIDIA L40", 181), ("NVIDIA A10", 125),
    ("NVIDIA A10G", 70), ("Tesla V100-PCIE-16GB", 112), ("Tesla V100-SXM2-32GB", 125),
    ("NVIDIA RTX 6000 Ada Generation", 364), ("NVIDIA GH200 480GB", 989), ("NVIDIA GB200", 2500),
    ("NVIDIA B200", 2250), ("NVIDIA RTX A6000", 155),
])  # fmt: skip
def test_a_gpu_s_peak_is_its_data_sheet_s(monkeypatch, gpu, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    assert CUDA.peak_flops()[0] == tflops * 1e12


@pytest.mark.parametrize("machine, name", [
    (CPU, ""), (CUDA, "GH1"), (CUDA, "NVIDIA GeForce RTX 4080 SUPER"),
    (CUDA, "NVIDIA GeForce RTX 4090 Laptop GPU"), (CUDA, "NVIDIA A100-SXM4-40GB MIG 1g.5gb"),
])  # fmt: skip
def test_the_peak_of_what_is_not_in_the_table_is_measured_at_two_operations_a_multiplication(
    monkeypatch, machine, name
):
    randn, clock = torch.randn, [0.0]

    def tick():
        clock[0] += 0.1
        return clock[0]

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch, "randn", lambda *shape, device, dtype: randn(*shape, dtype=dtype))
    monkeypatch.setattr("time.perf_counter", tick)
    monkeypatch.setattr("drama.training.machine.MEASURED_FOR", 0.5)
    flops, source = machine.peak_flops()
    assert flops == pytest.approx(2 * 256**3 / 0.1) and "measured" in source


def test_one_quiet_moment_is_enough_to_measure_the_peak(monkeypatch):
    """A busy computer interrupts most products, and each of them by some milliseconds."""
    clock, n = [0.0], [0]

    def tick():
        n[0] += 1
        clock[0] += 0.001 if n[0] % 10 < 4 else 0.02
        return clock[0]

    monkeypatch.setattr("time.perf_counter", tick)
    monkeypatch.setattr("drama.training.machine.MEASURED_FOR", 0.5)
    monkeypatch.setattr(torch, "randn", lambda *shape, **how: torch.ones(1, 1))  # the products cost nothing
    assert CPU.peak_flops()[0] >= 2 * 512**3 / 0.001


@pytest.mark.parametrize("files, quota", [
    ({}, 0),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 0),
    ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "50000 100000",
      "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 1),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 0),  # more than there are
    ({"proc/self/cgroup": "nonsense"}, 0),
])  # fmt: skip
def test_a_container_s_share_of_the_processor_is_read(tmp_path, monkeypatch, files, quota):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize("error, several, lost", [
    (RuntimeError("[.../gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True, True),
    (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), True, True),
    (dist.DistNetworkError("The client socket has failed to connect"), False, True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), True, False),
    (RuntimeError("Connection closed"), False, False),
])  # fmt: skip
def test_that_another_process_has_gone_is_said_in_one_line(call, monkeypatch, error, several, lost):
    monkeypatch.setattr(dist, "is_initialized", lambda: several)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def main():
        with others_may_be_gone():
            raise error

    for local_rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        monkeypatch.setitem(PROGRAMS, "train_drama.py", SimpleNamespace(main=main))
        status, _, err = call("train_drama.py")
        assert status == 1 and ("process 0 of 2 no longer hears from the others" in err) == (lost and lines)
        assert err.count("\n") == lines if lost else "this is a bug" in err
