"""Training on a GPU learns what it learns elsewhere, and goes on where it can."""

import pytest
import torch
from helpers import ROOT, SHORT, SMALL, flags, rows, start, weights

from drama.training import report

DEVICE = "cuda"
DEFAULT = dict(n_layer=6, n_head=6, n_embd=384, block_size=256, batch_size=64)  # the default model's
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_resumed_run_ends_where_an_unbroken_one_does(train, compile, cuda_graph):
    settings = dict(device=DEVICE, dtype="float32", compile=compile, cuda_graph=cuda_graph)
    whole = train(out_dir="whole", **settings)
    train(out_dir="parts", **{**settings, "max_iters": 7})
    parts = train(out_dir="parts", **settings)
    assert parts["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-2) and whole["val_loss"] < 3.4


@pytest.mark.parametrize(
    "settings", [{}, dict(arch="modern", optimizer="muon"), dict(gradient_accumulation_steps=2)]
)
def test_a_cuda_graph_trains_the_same_model_dropout_and_all(train, capsys, settings):
    for graph in (False, True):
        how = dict(device=DEVICE, dtype="float32", compile=False, cuda_graph=graph, **settings)
        train(report=report.Report(), out_dir=f"{graph}", **how)
    assert "does not work here" not in capsys.readouterr().out
    for name, a in weights("False").items():
        torch.testing.assert_close(a, weights("True")[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "auto"])
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_losses_are_those_of_the_cpu(train, arch, dtype, compile):
    settings = dict(arch=arch, dropout=0.0, max_iters=8, eval_interval=4)
    expected = train(out_dir="cpu", device="cpu", dtype="float32", **settings)["val_loss"]
    loss = train(out_dir="gpu", device=DEVICE, dtype=dtype, compile=compile, **settings)["val_loss"]
    assert loss == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_float16_learns_as_bfloat16_does(train, optimizer):
    """As a T4 trains. Its first iterations overflow until the scale of the loss fits, and change nothing."""
    settings = dict(device=DEVICE, compile=False, optimizer=optimizer, max_iters=200, lr_decay_iters=200)
    a, b = (train(out_dir=dtype, dtype=dtype, **settings)["val_loss"] for dtype in ("bfloat16", "float16"))
    assert a == pytest.approx(b, rel=0.03)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_the_default_run_takes_less_than_2_5_gb(train, cuda_graph):
    others = torch.cuda.memory_allocated(DEVICE)  # what tests before it left: cuBLAS keeps what it has
    torch.cuda.reset_peak_memory_stats(DEVICE)
    how = dict(compile=False, cuda_graph=cuda_graph, eval_iters=1)
    train(device=DEVICE, **how, **{**DEFAULT, "max_iters": 6})
    assert torch.cuda.max_memory_allocated(DEVICE) - others < 2.5e9


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_blocks_are_compiled_as_one_or_two_graphs_without_breaks(train, arch):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    train(device=DEVICE, compile=True, arch=arch, n_layer=6, dropout=0.2)
    assert 1 <= counters["stats"]["unique_graphs"] <= 2 and not counters["graph_break"]


def test_out_of_memory_in_a_sample_is_one_line_and_training_goes_on(train, monkeypatch, capsys):
    def too_large(*args, **kwargs):
        torch.empty(1 << 50, device=DEVICE)  # more than any GPU has

    monkeypatch.setattr(report, "generate", too_large)
    result = train(report=report.Report(), device=DEVICE, compile=False, sample_interval=10)
    assert capsys.readouterr().out.count("no sample: ") == 2 and result["iteration"] == 21


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one_does(train, corpus):
    settings = dict(device=DEVICE, compile=False, dropout=0.0)
    train(report=report.Report(), out_dir="one", **settings)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train_drama.py"]
    process = start(corpus, *command, *flags(**{**SMALL, **SHORT, **settings}, out_dir="two"))
    assert process.wait(120) == 0, process.communicate()
    one, two = ([float(row["loss"]) for row in rows(name) if row["loss"]] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=0.02)
