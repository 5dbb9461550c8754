import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model import ARCHITECTURES, TINY, model, modern_reference_logits, tokens

import generation
from generation import KVCache, StaticStep, generate, pack, pick
from model import random_stream


@settings(max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from(ARCHITECTURES))
def test_logits_read_in_any_pieces_equal_those_read_at_once(pieces, shape):
    pieces = [n for i, n in enumerate(pieces) if sum(pieces[: i + 1]) <= TINY.block_size]
    gpt, idx = model(**shape), tokens(2, sum(pieces))
    with torch.no_grad():
        whole = gpt(idx, idx)[0]
        cache, end = KVCache(gpt.config, 2), 0
        for n in pieces:
            end += n
            logits, _ = gpt(idx[:, end - n : end], cache=cache)
            torch.testing.assert_close(logits[:, 0], whole[:, end - 1], rtol=1e-4, atol=1e-4)
    assert cache.length == end


def test_greedy_text_up_to_block_size_equals_the_uncached_model_s():
    gpt, idx = model(), tokens(3, 4)
    cached = generate(gpt, idx, 12, temperature=0)
    for _ in range(12):
        idx = torch.cat([idx, gpt(idx)[0][:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(cached, idx)


@pytest.mark.parametrize("prompt", [1, 15, 16, 40])
def test_past_block_size_the_recent_half_is_read_again(prompt):
    gpt, block = model(), TINY.block_size
    text = tokens(2, prompt)
    cached = generate(gpt, text, 40, temperature=0)
    held = text[:, -block:]  # what the cache holds, by the documented rule
    for _ in range(40):
        token = gpt(held)[0][:, -1].argmax(-1, keepdim=True)
        text = torch.cat([text, token], 1)
        held = text[:, -block // 2 :] if held.size(1) == block else torch.cat([held, token], 1)
    assert torch.equal(cached, text)


@pytest.mark.parametrize("prompt", [1, 15, 16])
def test_past_block_size_rotary_positions_slide(prompt):
    gpt, text = model(arch="modern"), tokens(2, prompt)
    slid = generate(gpt, text, 40, temperature=0)
    for _ in range(40):
        text = torch.cat([text, modern_reference_logits(gpt, text)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(slid, text)


@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_a_packed_model_gives_the_same_logits_and_text(shape):
    gpt, idx = model(**shape), tokens(3, 16)
    logits, text = gpt(idx, idx)[0], generate(gpt, idx[:, :4], 40, temperature=0)
    pack(gpt, torch.float32)
    torch.testing.assert_close(gpt(idx, idx)[0], logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(generate(gpt, idx[:, :4], 40, temperature=0), text)


def test_a_long_text_draws_the_numbers_of_one_stream(monkeypatch):
    drawn = []
    monkeypatch.setattr(generation, "pick", lambda logits, u, *how: drawn.append(u) or pick(logits, u, *how))
    generate(model(), tokens(2, 1), 2500, seed=5, first_row=3)
    for row in (0, 1):
        numbers = torch.rand(2500, generator=random_stream(5, 3 + row))
        assert torch.equal(torch.stack(drawn)[:, row], numbers)


def test_a_model_packed_in_bfloat16_gives_autocast_s_logits():
    gpt, idx = model(n_embd=64), tokens(3, 16)
    exact = gpt(idx, idx)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gpt(idx, idx)[0].float()
    error = (pack(gpt, torch.bfloat16)(idx, idx)[0].float() - exact).abs().max()
    assert 0 < error <= 2 * (rounded - exact).abs().max()


@pytest.mark.parametrize("arch, end", [("gpt2", 16), ("modern", 24)])
def test_a_step_of_fixed_shapes_decodes_as_any_other(arch, end):
    gpt, idx = model(arch=arch), tokens(3, end)
    with torch.no_grad():
        caches = [KVCache(gpt.config, 3), KVCache(gpt.config, 3)]
        step = StaticStep(gpt, caches[1])
        for cache in caches:
            gpt(idx[:, :5], cache=cache)
        for n in range(5, end):
            expected, _ = gpt(idx[:, n : n + 1], cache=caches[0])
            torch.testing.assert_close(step(idx[:, n : n + 1]), expected)
    assert caches[0].length == caches[1].length == end


def test_a_block_of_one_token_still_writes():
    assert generate(model(block_size=1), tokens(2, 3), 5).shape == (2, 8)


def test_a_sample_does_not_depend_on_how_many_are_asked_for():
    gpt, prompt = model(), tokens(1, 3)
    many = generate(gpt, prompt.expand(40, -1), 60, seed=7, top_k=5)
    few = generate(gpt, prompt.expand(4, -1), 60, seed=7, top_k=5)
    assert torch.equal(many[:4], few)
    assert torch.equal(generate(gpt, prompt.expand(2, -1), 60, seed=7, top_k=5, first_row=2), few[2:])
    assert torch.equal(generate(gpt, prompt.expand(4, -1), 20, seed=7, top_k=5), few[:, :23])
    assert not torch.equal(few[0], few[1])
    assert not torch.equal(generate(gpt, prompt.expand(4, -1), 60, seed=8, top_k=5), few)


@pytest.mark.parametrize("top_k, top_p, temperature", [
    (None, 1.0, 1.0), (3, 1.0, 1.0), (None, 0.7, 1.0), (4, 0.8, 0.5), (1, 1.0, 1.0), (None, 1e-9, 2.0),
])  # fmt: skip
def test_tokens_are_picked_with_the_model_s_probabilities(top_k, top_p, temperature):
    logits = torch.tensor([0.5, 2.0, -1.0, 1.9, 0.0, 1.0])
    expected = (logits / temperature).softmax(-1)
    order = expected.argsort(descending=True)
    kept = torch.zeros(6, dtype=torch.bool)
    kept[order[: top_k or 6]] = True
    expected = expected * kept / (expected * kept).sum()
    before = expected[order].cumsum(0) - expected[order]
    kept[order[before >= top_p]] = False
    expected = expected * kept / (expected * kept).sum()
    n = 100_000
    u = (torch.arange(n) + 0.5) / n  # each part of [0, 1) as often as any other
    counts = pick(logits.expand(n, -1), u, temperature, top_k, top_p).flatten().bincount(minlength=6)
    torch.testing.assert_close(counts / n, expected, atol=1e-4, rtol=0)


def test_the_largest_uniform_number_still_picks_a_token_that_takes_part():
    u = torch.full((1,), 1 - 2**-24)
    for top_p in (1e-50, 0.3, 0.9, 1.0):
        assert pick(torch.tensor([[1.0, 3.0, 2.0]]), u, 1e-40, None, top_p) == 1
        assert pick(torch.zeros(1, 50), u, 1.0, 7, top_p) < 50
        assert pick(torch.tensor([[9.0, 0.0, -200.0]]), u, 1.0, None, top_p) < 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_cuda_gives_the_cpu_s_logits_and_greedy_text(arch):
    gpt, idx = model(arch=arch), tokens(3, 16)
    here, greedy = gpt(idx, idx)[0], generate(gpt, idx[:, :4], 40, temperature=0)
    gpt.cuda()
    torch.testing.assert_close(gpt(idx.cuda(), idx.cuda())[0].cpu(), here, rtol=1e-3, atol=1e-3)
    assert torch.equal(generate(gpt, idx[:, :4].cuda(), 40, temperature=0).cpu(), greedy)
