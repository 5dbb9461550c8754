import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import ARCHITECTURES, TINY, tiny_model, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from drama.device import find_dtype, random_stream
from drama.sampling.generation import GraphDecode, Sampling, Threads, generate, pick, prompt_ids
from drama.sampling.packed import KVCache, PackedLinear, halves_weights, pack, ready_to_sample, sampling_dtype
from drama.tokenizer import CharTokenizer, UnknownCharacters


class Dictation:
    """A director under whom a model writes a given text (B, n), whatever it likes: its logits are kept.

    What a model would write by itself differs where it is rounded in another way.
    """

    confines = True

    def __init__(self, text=None):
        self.text, self.logits, self.tokens = text, [], []

    def confine(self, logits):
        self.logits.append(logits.clone())
        if self.text is None:
            return logits
        token = self.text[:, len(self.logits) - 1, None].to(logits.device)
        return torch.full_like(logits, -math.inf).scatter(1, token, 0.0)

    def saw(self, token):
        self.tokens.append(token)

    def done(self):
        return False


def written_logits(gpt, text, prompt: int):
    """The logits (B, n, V) from which each token of text behind the prompt is picked."""
    director = Dictation(text[:, prompt:])
    written = generate(gpt, text[:, :prompt], text.size(1) - prompt, director=director)
    assert torch.equal(written, text)
    return torch.stack(director.logits, dim=1)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from(ARCHITECTURES))
def test_logits_read_in_any_pieces_equal_those_read_at_once(pieces, shape):
    pieces = [n for i, n in enumerate(pieces) if sum(pieces[: i + 1]) <= TINY.block_size]
    gpt, idx = tiny_model(**shape), tokens(2, sum(pieces))
    with torch.no_grad():
        whole = gpt(idx, idx)[0]
        cache, end = KVCache(gpt.config, 2), 0
        for n in pieces:
            end += n
            logits, _ = gpt(idx[:, end - n : end], cache=cache)
            torch.testing.assert_close(logits[:, 0], whole[:, end - 1], rtol=1e-4, atol=1e-4)
    assert cache.length == end


@pytest.mark.parametrize("prompt", [1, 4, 15, 16, 40])
def test_each_token_follows_from_an_uncached_reading_and_past_block_size_from_the_recent_half(prompt):
    gpt, block = tiny_model(), TINY.block_size
    text = tokens(2, prompt + 40)
    expected, held = [], text[:, :prompt][:, -block:]  # what the cache holds, by the documented rule
    for n in range(prompt, prompt + 40):
        expected.append(gpt(held)[0][:, -1])
        held = (
            text[:, n + 1 - block // 2 : n + 1]
            if held.size(1) == block
            else text[:, n - held.size(1) : n + 1]
        )
    found = written_logits(gpt, text, prompt)
    torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=1e-4, atol=1e-4)


def test_at_temperature_0_the_likeliest_token_is_always_taken():
    gpt, director = tiny_model(), Dictation()
    text = generate(gpt, tokens(3, 4), 40, Sampling(temperature=0), director=director)
    assert torch.equal(text[:, 4:], torch.stack(director.logits, dim=1).argmax(-1))
    assert torch.equal(text[:, 4:], torch.cat(director.tokens, dim=1))


@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_a_packed_model_gives_the_same_logits_while_reading_and_writing(shape):
    gpt, idx, text = tiny_model(**shape), tokens(3, 16), tokens(3, 44)
    read, written = gpt(idx, idx)[0], written_logits(gpt, text, 4)
    pack(gpt, torch.float32)
    torch.testing.assert_close(gpt(idx, idx)[0], read, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(written_logits(gpt, text, 4), written, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_packing_replaces_every_linear_layer_and_gives_tied_weights_a_head_of_their_own(shape):
    gpt = pack(tiny_model(**shape), torch.bfloat16)
    assert isinstance(gpt.lm_head, PackedLinear) and "head" not in vars(gpt)
    assert not any(isinstance(module, nn.Linear) for module in gpt.modules())
    assert gpt(tokens(2, 3))[0].dtype == torch.bfloat16  # the head's product is in it, too
    assert isinstance(gpt.wte, nn.Embedding) and gpt.wte.weight.dtype == torch.float32


def test_a_model_packed_in_bfloat16_gives_autocast_s_logits():
    gpt, idx = tiny_model(n_embd=64), tokens(3, 16)
    exact = gpt(idx, idx)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gpt(idx, idx)[0].float()
    error = (pack(gpt, torch.bfloat16)(idx, idx)[0].float() - exact).abs().max()
    assert 0 < error <= 2 * (rounded - exact).abs().max()


NEEDS_FBGEMM = pytest.mark.skipif(not halves_weights(), reason="FBGEMM does not work on this processor")


@NEEDS_FBGEMM
@pytest.mark.parametrize("shape", ARCHITECTURES)
def test_with_weights_in_float16_all_else_stays_in_float32(shape):
    gpt, idx = tiny_model(n_embd=64, **shape), tokens(3, 16)
    rounded = copy.deepcopy(gpt)
    with torch.no_grad():
        for module in rounded.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(module.weight.half())
        if not rounded.lm_head:  # the head alone: embeddings are looked up as they are
            rounded.head = lambda x: F.linear(x, rounded.wte.weight.half().float())
    packed = pack(gpt, torch.float16)
    assert packed(idx)[0].dtype == torch.float32
    torch.testing.assert_close(packed(idx, idx)[0], rounded(idx, idx)[0], rtol=1e-4, atol=1e-5)


@NEEDS_FBGEMM
def test_a_weight_that_float16_cannot_hold_is_the_largest_that_it_can_and_stays_what_it_was_elsewhere(capfd):
    weight = torch.tensor([[1e5, 1.0]])
    assert PackedLinear(weight, None, torch.float16)(torch.eye(2)).flatten().tolist() == [65504, 1]
    assert weight.tolist() == [[1e5, 1]] and not "".join(capfd.readouterr())


@pytest.mark.parametrize("halves", [pytest.param(True, marks=NEEDS_FBGEMM), False])
def test_few_texts_are_written_with_what_is_fastest_on_a_processor(monkeypatch, halves):
    if not halves:
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
    cpu = torch.device("cpu")
    usual = find_dtype("auto", cpu)
    assert sampling_dtype("auto", cpu) == (torch.float16 if halves else usual)
    assert sampling_dtype("float32", cpu) == torch.float32
    weight, bias, x = torch.randn(24, 16), torch.randn(24), torch.randn(3, 1, 16)
    y = PackedLinear(weight, bias, torch.float16)(x)
    assert y.dtype == (torch.float32 if halves else torch.float16)
    torch.testing.assert_close(y.float(), F.linear(x, weight, bias), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("arch, end", [("gpt2", 16), ("modern", 24)])
def test_a_step_of_fixed_shapes_decodes_as_any_other(arch, end):
    gpt, idx = tiny_model(arch=arch), tokens(3, end)
    with torch.no_grad():
        caches = [KVCache(gpt.config, 3), KVCache(gpt.config, 3)]
        step = GraphDecode(gpt, caches[1], Sampling(0.8, 0, 0.9))
        for cache in caches:
            gpt(idx[:, :5], cache=cache)
        for n in range(5, end):
            expected, _ = gpt(idx[:, n : n + 1], cache=caches[0])
            logits, token = step(idx[:, n : n + 1], u := torch.rand(3))
            torch.testing.assert_close(logits, expected[:, -1])
            assert token.equal(pick(logits, u, Sampling(0.8, 0, 0.9)))
    assert caches[0].length == caches[1].length == end


def test_a_block_of_one_token_still_writes():
    assert generate(tiny_model(block_size=1), tokens(2, 3), 5).shape == (2, 8)


def test_a_context_longer_than_memory_takes_only_what_is_written():
    gpt = tiny_model(block_size=10**9, arch="modern")
    assert generate(gpt, tokens(1, 1), 3).shape == (1, 4)


def test_a_prompt_s_tokens_are_one_row_and_what_the_model_never_saw_is_refused():
    tok = CharTokenizer("abcdefghijk")
    ids = prompt_ids(tok, "cab", tiny_model())
    assert ids.tolist() == [[2, 0, 1]] and ids.dtype == torch.int64
    with pytest.raises(UnknownCharacters, match="'z'"):
        prompt_ids(tok, "cabz", tiny_model())


def test_a_long_text_draws_the_numbers_of_one_stream():
    director = Dictation()
    generate(tiny_model(), tokens(2, 1), 2500, Sampling(seed=5), first_row=3, director=director)
    numbers = torch.stack([torch.rand(2500, generator=random_stream(5, row)) for row in (3, 4)], dim=1)
    picked = [pick(logits, u, Sampling()) for logits, u in zip(director.logits, numbers, strict=True)]
    assert torch.equal(torch.cat(picked, dim=1), torch.cat(director.tokens, dim=1))


def test_a_token_gets_as_many_threads_as_its_products_pay_for_and_the_caller_keeps_its_own(monkeypatch):
    threads, seen = [8], []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.__setitem__(0, n))
    for products in (10_650_000, 299_999_999, 300_000_000, 10**10):
        with Threads(products):
            seen.append(threads[0])
        assert threads == [8]
    assert seen == [1, 1, 2, 8]
    with pytest.raises(KeyError), Threads(1):
        raise KeyError
    assert threads == [8]


def test_texts_written_at_the_same_time_leave_the_process_its_threads(monkeypatch):
    threads = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.__setitem__(0, n))
    for first_to_end in (0, 1):
        texts = [Threads(1), Threads(1)]
        for text in texts:
            text.__enter__()
        texts.pop(first_to_end).__exit__()
        texts.pop().__exit__()
        assert threads == [8]


def test_a_sample_does_not_depend_on_how_many_are_asked_for():
    gpt, prompt = tiny_model().double(), tokens(1, 3)  # sums of other batches are rounded in other ways

    def written(rows, n=60, seed=7, **how):
        return generate(gpt, prompt.expand(rows, -1), n, Sampling(seed=seed, top_k=5), **how)

    few = written(4)
    assert torch.equal(written(40)[:4], few) and torch.equal(written(2, first_row=2), few[2:])
    assert torch.equal(written(4, n=20), few[:, :23])
    assert not torch.equal(few[0], few[1]) and not torch.equal(written(4, seed=8), few)


@pytest.mark.parametrize("top_k, top_p, min_p, temperature", [
    (0, 1.0, 0.0, 1.0), (3, 1.0, 0.0, 1.0), (0, 0.7, 0.0, 1.0), (4, 0.8, 0.0, 0.5), (1, 1.0, 0.0, 1.0),
    (0, 1e-9, 0.0, 2.0), (0, 1.0, 0.3, 1.0), (0, 1.0, 1.0, 1.0), (0, 0.8, 0.2, 2.0), (2, 1.0, 0.01, 1.0),
])  # fmt: skip
def test_tokens_are_picked_with_the_model_s_probabilities(top_k, top_p, min_p, temperature):
    logits = torch.tensor([0.5, 2.0, -1.0, 1.9, 0.0, 1.0])
    expected = (logits / temperature).softmax(-1)
    order = expected.argsort(descending=True)
    kept = torch.zeros(6, dtype=torch.bool)
    kept[order[: top_k or 6]] = True
    expected = expected * kept / (expected * kept).sum()
    before = expected[order].cumsum(0) - expected[order]
    kept[order[before >= top_p]] = False
    kept &= expected >= min_p * expected.max()
    expected = expected * kept / (expected * kept).sum()
    n = 100_000
    u = (torch.arange(n) + 0.5) / n  # each part of [0, 1) as often as any other
    counts = (
        pick(logits.expand(n, -1), u, Sampling(temperature, top_k, top_p, min_p))
        .flatten()
        .bincount(minlength=6)
    )
    torch.testing.assert_close(counts / n, expected, atol=1e-4, rtol=0)


def test_the_smallest_temperature_takes_the_likeliest_token():
    logits = torch.tensor([[0.0, 1.0, 0.999, -50.0]])
    for temperature in (1e-3, 1e-30, 1e-46, 5e-324):
        assert pick(logits, torch.tensor([0.5]), Sampling(temperature, 0, 0.9)).item() == 1
        assert pick(logits, torch.tensor([0.5]), Sampling(temperature)).item() == 1


def test_the_largest_uniform_number_still_picks_a_token_that_takes_part():
    u = torch.full((1,), 1 - 2**-24)
    for top_p in (1e-50, 0.3, 0.9, 1.0):
        assert pick(torch.tensor([[1.0, 3.0, 2.0]]), u, Sampling(1e-40, 0, top_p)) == 1
        assert pick(torch.zeros(1, 50), u, Sampling(1.0, 7, top_p)) < 50
        assert pick(torch.tensor([[9.0, 0.0, -200.0]]), u, Sampling(1.0, 0, top_p)) < 2


def test_a_process_that_samples_on_a_gpu_leaves_out_cudnn_s_attention_which_prepares_for_each_length():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        ready_to_sample(tiny_model(), torch.device("cpu"), "float32")
        assert torch.backends.cuda.cudnn_sdp_enabled()
        with pytest.raises((RuntimeError, AssertionError)):  # there is no GPU to go to
            ready_to_sample(tiny_model(), torch.device("cuda", 99), "float32")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_cuda_gives_the_cpu_s_logits_while_reading_and_writing(arch):
    torch.set_float32_matmul_precision("highest")  # trainings in this process use TF32, with fewer digits
    gpt, idx, text = tiny_model(arch=arch), tokens(3, 16), tokens(3, 44)
    read, written = gpt(idx, idx)[0], written_logits(gpt, text, 4)
    gpt.cuda()
    torch.testing.assert_close(gpt(idx.cuda(), idx.cuda())[0].cpu(), read, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(written_logits(gpt, text.cuda(), 4).cpu(), written, rtol=1e-3, atol=1e-3)
