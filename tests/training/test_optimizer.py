import pytest
import torch
from helpers import CPU, SMALL, tiny_model

from drama.training.machine import Machine
from drama.training.optimizer import (
    Muon,
    even_rows,
    learning_rate_at,
    make_optimizers,
    orthogonalize,
    restore,
)
from model import GPT
from train_drama import Settings

SHAPES = [(48, 16), (16, 16), (64, 16), (16, 64), (48, 16)]


def start_and_gradients(n=5):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    return weights, [[torch.randn(shape) for shape in SHAPES] for _ in range(n)]


def normuon(p, gradients, lr: float, weight_decay: float):
    """PyTorch's Muon, and NorMuon on top as its paper has it: one matrix, corrected as Adam's means are."""
    muon = torch.optim.Muon([p], lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    squares = torch.zeros(len(p), 1)
    for i, p.grad in enumerate(gradients, 1):
        before = p.detach().clone()
        muon.step()
        step = before - p.detach()
        squares = 0.95 * squares + 0.05 * step.square().mean(1, keepdim=True)
        even = step / (squares / (1 - 0.95**i)).sqrt()
        p.data = before * (1 - lr * weight_decay) - lr * even * step.norm() / even.norm()


@pytest.mark.parametrize("dtype, atol", [(torch.bfloat16, 1e-6), (torch.float32, 3e-3)])
def test_it_takes_the_steps_of_pytorch_s_own_with_rows_made_even(dtype, atol):
    how = dict(lr=0.03, weight_decay=0.2)
    ours, gradients = start_and_gradients()
    muon = Muon(ours, **how, dtype=dtype)
    for each in gradients:
        for p, gradient in zip(ours, each, strict=True):
            p.grad = gradient
        muon.step()
    theirs, _ = start_and_gradients()
    for i, p in enumerate(theirs):
        normuon(p, [each[i] for each in gradients], **how)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_rows_are_made_even_and_matrices_keep_their_size():
    torch.manual_seed(0)
    sizes = torch.tensor([0.01, 1.0, 100.0, 0.0])[:, None]  # the last row never learns
    squares = [torch.zeros(4, 1), torch.zeros(4, 1)]
    for _ in range(100):
        steps = torch.randn(2, 4, 64) * sizes
        steps[1] = 0  # as where what follows a matrix is still zero
        even = even_rows(steps, squares)
        torch.testing.assert_close(even.norm(dim=(1, 2)), steps.norm(dim=(1, 2)))
    rows = even[0].square().mean(1).sqrt()
    assert rows[:3].max() < 1.5 * rows[:3].min() and rows[3] == 0 and not even[1].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_orthogonalized_keeps_its_directions_and_loses_its_lengths(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalize(matrices, torch.float32)
    lengths = u.mT @ found @ vt.mT  # diagonal, and near 1
    assert (lengths - torch.diag_embed(lengths.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3
    usual = lengths.diagonal(dim1=1, dim2=2).quantile(0.1), lengths.diagonal(dim1=1, dim2=2).max()
    assert usual[0] > 0.5 and usual[1] < 1.3


def test_the_learning_rate_rises_falls_and_stays():
    s = Settings(learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110)
    rates = [learning_rate_at(s, i) for i in range(200)]
    assert rates[0] == pytest.approx(1 / 11) and rates[10] == 1.0 and rates[60] == pytest.approx(0.55)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert set(rates[110:]) == {0.1}
    assert learning_rate_at(Settings(warmup_iters=0, lr_decay_iters=0), 0) == 1e-4


@pytest.mark.parametrize("arch, optimizer", [("gpt2", "adamw"), ("gpt2", "muon"), ("modern", "muon")])
def test_only_matrices_decay_and_muon_takes_those_of_the_blocks(arch, optimizer):
    settings = Settings(
        bias=True, weight_decay=0.3, beta1=0.7, beta2=0.8, arch=arch, optimizer=optimizer,
        **{k: SMALL[k] for k in ("n_layer", "n_head", "n_embd")},
    )  # fmt: skip
    model = GPT(settings.model_config(9))
    optimizers = make_optimizers(model, settings, CPU)
    assert optimizers[0].defaults["betas"] == (0.7, 0.8)
    decay = {}
    for o in optimizers:
        decay |= {id(p): (type(o), g["weight_decay"]) for g in o.param_groups for p in g["params"]}
    assert len(decay) == sum(len(g["params"]) for o in optimizers for g in o.param_groups)  # each once
    for name, p in model.named_parameters():
        muon = optimizer == "muon" and "blocks" in name and p.dim() == 2
        kind = Muon if muon else torch.optim.AdamW
        assert decay.pop(id(p)) == (kind, 0.3 if p.dim() == 2 else 0.0)
    assert not decay


def test_an_optimizer_takes_over_what_another_gathered_but_not_for_other_weights():
    def made(**shape):
        model = tiny_model(**shape)
        (optimizer,) = make_optimizers(model, Settings(), CPU)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        return optimizer

    stepped, fresh = made(), made()
    restore(fresh, fresh.state_dict()["state"])  # of no step at all
    stepped.step()
    gathered = stepped.state_dict()["state"]
    restore(fresh, gathered)
    again = fresh.state_dict()["state"]
    assert all(torch.equal(again[n][name], gathered[n][name]) for n in gathered for name in gathered[n])
    for other in (made(n_layer=1), made(n_embd=32)):
        with pytest.raises(ValueError):
            restore(other, gathered)


def test_muon_goes_on_from_a_state_that_knows_no_rows_but_not_from_one_of_other_rows():
    """A last.pt of before 29 November 2026 has the means of the gradients alone."""
    weights, gradients = start_and_gradients()
    muon = Muon(weights, 0.03, 0.2, torch.float32)
    state = {i: {"momentum_buffer": gradient} for i, gradient in enumerate(gradients[0])}
    restore(muon, state)
    for p, gradient in zip(weights, gradients[1], strict=True):
        p.grad = gradient
    muon.step()
    assert all(p.isfinite().all() for p in weights)
    assert [tuple(muon.state[p]["row_squares"].shape) for p in weights] == [(rows, 1) for rows, _ in SHAPES]
    state[0]["row_squares"] = torch.zeros(47, 1)
    with pytest.raises(ValueError):
        restore(Muon(weights, 0.03, 0.2, torch.float32), state)


@pytest.mark.parametrize("device, dtype, expected", [
    ("cuda", torch.bfloat16, torch.bfloat16), ("cuda", torch.float16, torch.float16),
    ("cuda", torch.float32, torch.float32), ("cpu", torch.bfloat16, torch.bfloat16),
    ("cpu", torch.float16, torch.float32), ("mps", torch.float16, torch.float32),
])  # fmt: skip
def test_muon_multiplies_in_the_fastest_format_of_the_machine(device, dtype, expected):
    machine = Machine(torch.device(device), dtype)
    shape = dict(arch="modern", n_layer=1, n_head=2, n_embd=32)
    settings = Settings(optimizer="muon", cuda_graph=False, **shape)
    _, muon = make_optimizers(GPT(settings.model_config(11)), settings, machine)
    assert muon.dtype == expected


def test_orthogonalizing_in_float16_is_as_good_as_in_bfloat16():
    torch.manual_seed(0)
    matrices = torch.randn(2, 48, 16) * 1e-4  # as small as gradients
    values = torch.linalg.svdvals(orthogonalize(matrices, torch.float16).float())
    assert values.min() > 0.6 and values.max() < 1.3
