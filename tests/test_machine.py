from types import SimpleNamespace

import pytest
import torch
from helpers import CPU

from configurator import UserError
from drama.machine import Machine, find_device, find_dtype, random_stream

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
    assert find_device(name) == torch.device("cuda", number)  # what torch.cuda.set_device takes


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
    ("NVIDIA GeForce RTX 4090", 165),
])  # fmt: skip
def test_a_gpu_s_peak_is_its_data_sheet_s(monkeypatch, gpu, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    assert CUDA.peak_flops()[0] == tflops * 1e12


@pytest.mark.parametrize("machine, name", [
    (CPU, ""), (CUDA, "GH1"), (CUDA, "NVIDIA GeForce RTX 4080 SUPER"),
    (CUDA, "NVIDIA GeForce RTX 4090 Laptop GPU"),
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
    flops, source = machine.peak_flops()
    assert flops == pytest.approx(2 * 256**3 / 0.1) and "measured" in source
