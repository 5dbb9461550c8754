import math

import pytest
import torch
import torch.nn.functional as F
from helpers import ARCHITECTURES, TINY, tiny_model, tokens
from torch.utils.flop_counter import FlopCounterMode

from drama.sampling.generation import Sampling, generate
from drama.sampling.packed import KVCache
from model import GPT, CausalSelfAttention, Dropout, GPTConfig


def reference_logits(gpt, idx, member=0):
    """GPT-2 written out from the paper with plain arithmetic, one head at a time, for comparison."""
    w, c = dict(gpt.named_parameters()), gpt.config

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    T, D = idx.size(1), c.n_embd // c.n_head
    x = w["wte.weight"][idx] + w["wpe.weight"][:T]
    for i in range(member * c.n_layer, (member + 1) * c.n_layer):
        q, k, v = linear(norm(x, f"blocks.{i}.ln_1"), f"blocks.{i}.attn.c_attn").split(c.n_embd, -1)
        heads = []
        for h in range(c.n_head):
            s = slice(h * D, (h + 1) * D)
            scores = q[..., s] @ k[..., s].transpose(1, 2) / math.sqrt(D)
            scores = scores.masked_fill(~torch.ones(T, T).tril().bool(), -math.inf)
            heads.append(torch.softmax(scores, -1) @ v[..., s])
        x = x + linear(torch.cat(heads, -1), f"blocks.{i}.attn.c_proj")
        a = linear(norm(x, f"blocks.{i}.ln_2"), f"blocks.{i}.mlp.c_fc")
        x = x + linear(a * 0.5 * (1 + torch.erf(a / math.sqrt(2))), f"blocks.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def match_rows(tokens, c):
    """For each position, the row of wte_match: of the longest match before it, then of the latest."""
    rows, text = [], [c.vocab_size] * c.match + tokens  # before the text stands one token, again and again
    for t in range(len(tokens)):
        here, longest, row = text[t + 1 : t + 1 + c.match][::-1], 0, c.vocab_size * c.match
        for end in range(max(0, t - c.block_size), t):
            there = text[end + 1 : end + 1 + c.match][::-1]
            n = next((n for n in range(c.match) if here[n] != there[n]), c.match)
            if n and n >= longest:
                longest, row = n, tokens[end + 1] * c.match + n - 1
        rows.append(row)
    return rows


def modern_reference_logits(gpt, idx, member=0):
    """The modern architecture written out for any length: attention to the last block_size positions."""
    w, c = dict(gpt.named_parameters()), gpt.config

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    T, D = idx.size(1), c.n_embd // c.n_head
    angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(D // 2) / (D // 2))
    turn = torch.polar(torch.ones_like(angles), angles)

    def turned(x):
        pairs = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * turn
        return torch.cat([pairs.real, pairs.imag], -1)

    seen = torch.ones(T, T).tril() - torch.ones(T, T).tril(-c.block_size)
    x = w["wte.weight"][idx]
    for distance in (1, 2, 3):
        nothing = torch.full((len(idx), distance), c.vocab_size)
        x = x + w[f"wte_past.{distance - 1}.weight"][torch.cat([nothing, idx], 1)[:, :T]]
    if c.match:
        x = x + w["wte_match.weight"][torch.tensor([match_rows(row, c) for row in idx.tolist()])]
    x = x0 = norm(x)
    for i in range(member * c.n_layer, (member + 1) * c.n_layer):
        b = f"blocks.{i}"
        x = w[f"{b}.mix"][0] * x + w[f"{b}.mix"][1] * x0
        q, k, v = (norm(x) @ w[f"{b}.attn.c_attn.weight"].T).split(c.n_embd, -1)
        heads = []
        for h in range(c.n_head):
            s = slice(h * D, (h + 1) * D)
            scores = turned(norm(q[..., s])) @ turned(norm(k[..., s])).transpose(1, 2) / math.sqrt(D)
            heads.append(torch.softmax(scores.masked_fill(seen == 0, -math.inf), -1) @ v[..., s])
        x = x + torch.cat(heads, -1) @ w[f"{b}.attn.c_proj.weight"].T
        x = x + (norm(x) @ w[f"{b}.mlp.c_fc.weight"].T).clamp(min=0) ** 2 @ w[f"{b}.mlp.c_proj.weight"].T
    return norm(x) @ w["lm_head.weight"].T


def test_the_default_model_has_the_ordered_size():
    gpt = GPT(GPTConfig())
    assert f"{gpt.num_params() / 1e6:.2f}M" == "10.65M"
    assert gpt.num_params() == sum(p.numel() for n, p in gpt.named_parameters() if n != "wpe.weight")
    assert gpt.flops_per_token() == 6 * gpt.num_params() + 12 * 6 * 384 * 256


def test_a_modern_model_starts_as_good_as_guessing_and_is_no_larger():
    gpt = GPT(GPTConfig(arch="modern"))
    idx = torch.randint(65, (4, 256))
    assert gpt(idx, idx.roll(1))[1].item() == pytest.approx(math.log(65), abs=1e-5)
    assert sum(p.numel() for p in gpt.parameters()) <= 10.8e6


def test_initialisation_is_gpt2s():
    gpt = GPT(GPTConfig(bias=True))
    assert gpt.blocks[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert gpt.blocks[3].attn.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(12), rel=0.02)
    assert all(p.abs().max() == 0 for n, p in gpt.named_parameters() if n.endswith("bias"))
    idx = torch.randint(65, (4, 256))
    loss = gpt.eval()(idx, idx.roll(1))[1].item()
    assert loss == pytest.approx(math.log(65), abs=0.2)  # as good as guessing


@pytest.mark.parametrize("shape", ARCHITECTURES)
@pytest.mark.parametrize("training", [False, True])
def test_logits_and_gradients_equal_a_plain_reference(shape, training):
    gpt, idx, targets = tiny_model(**shape).train(training), tokens(3, 16), tokens(3, 16, seed=2)
    logits, loss = gpt(idx, targets)
    reference = modern_reference_logits if "arch" in shape else reference_logits
    expected = torch.stack([reference(gpt, idx, member) for member in range(gpt.config.n_ensemble)])
    if len(expected) == 1 or not training:  # else each member learns by itself
        expected = expected.mean(0)
    if training:
        assert logits is None  # which nobody reads
    else:
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    expected_loss = F.cross_entropy(expected.flatten(0, -2), targets.expand(expected.shape[:-1]).flatten())
    names, parameters = zip(*gpt.named_parameters(), strict=True)
    gradients = (torch.autograd.grad(value, parameters) for value in (loss, expected_loss))
    for name, a, b in zip(names, *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_bfloat16_training_agrees_with_float32_within_its_rounding(arch):
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(dropout=0.0, arch=arch)).train()
    for p in gpt.parameters():
        if p.abs().max() == 0:  # as in a modern model at its start
            torch.nn.init.normal_(p, std=0.02)
    idx, targets = torch.randint(65, (1, 256)), torch.randint(65, (1, 256))
    exact = gpt(idx, targets)[1]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gpt(idx, targets)[1]
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=2**-8)
    exact, rounded = (torch.autograd.grad(x, gpt.blocks[0].mlp.c_fc.weight)[0] for x in (exact, rounded))
    assert F.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_drops_with_its_probability_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, dtype=dtype)
    y = Dropout(p).train()(x).float()
    assert y.unique().numel() == 2 and y.min() == 0
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=1 / 512 + 0.002)
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert (y == 0).float().mean(0).std().item() == pytest.approx(math.sqrt(p * (1 - p) / 1000), rel=0.1)
    assert torch.equal(Dropout(p).eval()(x), x)


@pytest.mark.parametrize("p", [1e-6, 1 - 1e-6])
def test_dropout_of_nearly_nothing_or_everything_is_taken_to_the_nearest_256th_that_is_neither(p):
    y = Dropout(p).train()(torch.ones(1000, 1000))
    assert (y == 0).float().mean().item() == pytest.approx(min(max(p, 1 / 256), 255 / 256), abs=1e-3)


def test_gradients_pass_what_dropout_keeps():
    x = torch.ones(10, 100, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_dropout_is_on_embeddings_attention_and_residuals_but_on_attention_only_in_gpt2(arch):
    gpt, idx = tiny_model(arch=arch, dropout=0.5), tokens(2, 16)
    assert torch.equal(gpt(idx)[0], gpt(idx)[0])
    gpt.train()
    places = {name: (m, m.p) for name, m in gpt.named_modules() if isinstance(m, Dropout)}
    assert len(places) == 1 + 3 * TINY.n_layer
    for place, _ in places.values():
        place.p = 0.0
    for name, (place, p) in places.items():  # each by itself
        place.p = p
        drops = not torch.equal(gpt(idx)[0], gpt(idx)[0])
        assert drops == (arch == "gpt2" or "attn_dropout" not in name), name
        place.p = 0.0


def test_fused_attention_drops_in_training_alone():
    layer = CausalSelfAttention(GPTConfig(**{**TINY.__dict__, "dropout": 0.5}), 0).eval()
    q, k, v = torch.randn(3, 3, 2, 5, 8)
    torch.testing.assert_close(layer.attend(q, k, v), layer.attend_cpu(q, k, v))
    assert not torch.equal(layer.train().attend(q, k, v), layer.attend(q, k, v))


@pytest.mark.parametrize("arch, n_ensemble", [("gpt2", 1), ("modern", 1), ("gpt2", 2), ("modern", 3)])
def test_flops_are_those_that_pytorch_counts(arch, n_ensemble):
    shape = dict(n_layer=2, n_head=2, n_embd=64, arch=arch, n_ensemble=n_ensemble)
    gpt = GPT(GPTConfig(block_size=64, vocab_size=50, dropout=0.0, **shape)).train()
    idx = torch.zeros(2, 64, dtype=torch.long)
    with FlopCounterMode(display=False) as counted:
        gpt(idx, idx)[1].backward()
    assert gpt.flops_per_token() == pytest.approx(counted.get_total_flops() / idx.numel(), rel=0.02)


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_a_position_never_sees_what_comes_after_it(arch):
    gpt, idx = tiny_model(arch=arch), tokens(1, 16)
    changed = idx.clone()
    changed[0, 10] = (changed[0, 10] + 1) % TINY.vocab_size
    seen = []
    gpt.ln_f.register_forward_hook(lambda module, given, out: seen.append(out))
    for training in (False, True):
        for x in (idx, changed):
            gpt.train(training)(x, x)
        a, b = seen[-2:]
        assert torch.equal(a[:, :10], b[:, :10]) and not torch.equal(a[:, 10:], b[:, 10:])


@pytest.mark.parametrize("T, length", [(1, 1), (5, 5), (1, 9), (4, 9)])
def test_attention_is_the_same_fused_as_on_gpus_and_spelled_out_as_on_cpus(T, length):
    layer, q, (k, v) = CausalSelfAttention(TINY, 0), torch.randn(3, 2, T, 8), torch.randn(2, 3, 2, length, 8)
    y = layer.attend_cpu(q, k, v)
    torch.testing.assert_close(layer.attend(q, k, v), y)
    if T == 1:  # in a cache that is longer than what it holds
        k, v = (F.pad(x, (0, 0, 0, 3), value=1.0) for x in (k, v))
        mask = (torch.arange(length + 3) < length)[None]
        torch.testing.assert_close(layer.attend(q, k, v, mask), y)


@pytest.mark.parametrize("changes, words", [
    (dict(n_embd=380, n_head=6), "n_embd=380 is not divisible by n_head=6; try n_embd=384"),
    (dict(n_layer=0), "n_layer=0"), (dict(block_size=-1), "block_size=-1"), (dict(vocab_size=1.5), "vocab"),
    (dict(dropout=1.0), "dropout=1.0"), (dict(dropout=-0.1), "dropout"), (dict(dropout=math.nan), "dropout"),
    (dict(arch="gpt3"), "arch='gpt3'"), (dict(arch="modern", n_embd=6, n_head=2), "try n_embd=8"),
    (dict(match=2), "needs arch=modern"), (dict(match=-1), "at least 0"), (dict(bias=3), "bias"),
    (dict(arch="modern", match=4, block_size=40_000), "match=4 needs block_size=32,766 at most"),
    (dict(n_head=True), "n_head"),
])  # fmt: skip
def test_an_impossible_shape_is_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        GPTConfig(**changes)
    assert words in str(refused.value)


def test_too_long_a_context_is_refused():
    with pytest.raises(ValueError, match="17 positions are more than block_size=16"):
        tiny_model()(tokens(1, 17))


@pytest.mark.parametrize("match", [0, 1, 3, 4, 8])
def test_a_single_token_is_read_without_a_cache_as_with_one(match):
    gpt, idx = tiny_model(arch="modern", match=match), tokens(2, 1)
    torch.testing.assert_close(gpt(idx)[0], gpt(idx, cache=KVCache(gpt.config, 2))[0])


@pytest.mark.parametrize("match", [0, 1, 4, 16])
@pytest.mark.parametrize("prompt", [1, 15, 16])
def test_past_block_size_a_modern_model_writes_on_with_positions_that_slide(prompt, match):
    gpt = tiny_model(arch="modern", match=match)
    text = generate(gpt, tokens(2, prompt), 40, Sampling(temperature=0))
    logits = modern_reference_logits(gpt, text)[:, prompt - 1 : -1]
    picked = logits.gather(-1, text[:, prompt:, None])[..., 0]
    torch.testing.assert_close(
        picked, logits.amax(-1), rtol=1e-4, atol=1e-4
    )  # the likeliest, but for rounding
