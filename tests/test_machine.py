import os
import signal
from types import SimpleNamespace

import pytest
import torch

from machine import Machine, Stop, find_device, find_dtype, peak_flops


@pytest.mark.parametrize("name, number", [("cuda", 0), ("cuda:3", 3)])
def test_a_gpu_is_named_by_its_number(monkeypatch, name, number):
    here = {"cuda": "cuda:0"}  # PyTorch puts a tensor for "cuda" on the current one
    monkeypatch.setattr(
        torch,
        "empty",
        lambda size, device: SimpleNamespace(device=torch.device(here.get(str(device), device))),
    )
    assert find_device(name) == torch.device("cuda", number)  # what torch.cuda.set_device takes


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
    assert peak_flops(Machine(torch.device("cuda"), torch.bfloat16))[0] == tflops * 1e12


@pytest.mark.parametrize(
    "gpu", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4080 SUPER", "GH1"]
)
def test_the_peak_of_a_gpu_that_is_not_in_the_table_is_measured(monkeypatch, gpu):
    randn = torch.randn
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    monkeypatch.setattr(torch, "randn", lambda *shape, device, dtype: randn(*shape, dtype=dtype))
    flops, source = peak_flops(Machine(torch.device("cuda"), torch.bfloat16))
    assert "measured" in source and flops > 1e8


def test_what_is_measured_is_two_operations_a_multiplication(monkeypatch):
    clock = [0.0]

    def tick():
        clock[0] += 0.1
        return clock[0]

    monkeypatch.setattr("machine.time.perf_counter", tick)
    flops, _ = peak_flops(Machine(torch.device("cpu"), torch.float32))
    assert flops == pytest.approx(2 * 256**3 / 0.1)


def test_a_second_signal_ends_at_once():
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop and stop.signum == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)


def test_a_closed_terminal_is_heard_but_under_nohup():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
        ended = []  # as the default action would
        signal.signal(signal.SIGHUP, lambda *_: ended.append(True))
        with Stop() as stop:
            for _ in range(2):  # from the shell and from the kernel
                os.kill(os.getpid(), signal.SIGHUP)
            assert stop and stop.signum == signal.SIGHUP and not ended
        os.kill(os.getpid(), signal.SIGHUP)
        assert ended
    finally:
        signal.signal(signal.SIGHUP, before)
