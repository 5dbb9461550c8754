import pytest
import torch

from muon import Muon, orthogonalize

SHAPES = [(48, 16), (16, 16), (64, 16), (16, 64), (48, 16)]


def steps(make, n=5):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = make(weights)
    for _ in range(n):
        for p in weights:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return weights


@pytest.mark.parametrize("dtype, atol", [(torch.bfloat16, 0), (torch.float32, 3e-3)])
def test_it_takes_the_steps_of_pytorch_s_own(dtype, atol):
    how = dict(lr=0.03, weight_decay=0.2)
    ours = steps(lambda weights: Muon(weights, **how, dtype=dtype))
    theirs = steps(lambda weights: torch.optim.Muon(weights, **how, adjust_lr_fn="match_rms_adamw"))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_orthogonalized_keeps_its_directions_and_loses_its_lengths(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalize(matrices, torch.float32)
    lengths = u.mT @ found @ vt.mT  # diagonal, and near 1
    assert (lengths - torch.diag_embed(lengths.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3
    usual = lengths.diagonal(dim1=1, dim2=2).quantile(0.1), lengths.diagonal(dim1=1, dim2=2).max()
    assert usual[0] > 0.5 and usual[1] < 1.3
