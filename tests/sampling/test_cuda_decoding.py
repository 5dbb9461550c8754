"""Decoding on a GPU: a CUDA graph per token writes what is written without, however many come and go."""

import math
import threading

import pytest
import torch

from drama import checkpoint
from drama.sampling.generation import Sampling, generate, stream
from drama.sampling.packed import pack
from model import GPT, GPTConfig

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def ready(dtype=torch.float32, **changes) -> GPT:
    """A model with random weights, packed."""
    torch.manual_seed(0)
    shape = dict(block_size=64, vocab_size=65, n_layer=2, n_head=2, n_embd=128, dropout=0.0)
    return pack(GPT(GPTConfig(**{**shape, **changes})).to(DEVICE), dtype)


def start(rows: int) -> torch.Tensor:
    return torch.zeros(rows, 1, dtype=torch.long, device=DEVICE)


class Dictated:
    """A director that dictates the tokens and keeps the logits, so that two ways of decoding compare."""

    confines = True

    def __init__(self, tokens):
        self.tokens, self.logits = tokens, []

    def confine(self, logits):
        self.logits.append(logits.clone())
        token = self.tokens[:, len(self.logits) - 1, None]
        return torch.full_like(logits, -math.inf).scatter(1, token, 0.0)

    def saw(self, tokens):
        pass

    def done(self):
        return False


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows", [1, 10])
def test_a_graph_gives_the_logits_that_are_computed_without_past_block_size_too(
    capsys, arch, dtype, atol, rows
):
    model, tokens = ready(dtype, arch=arch), torch.randint(65, (rows, 150), device=DEVICE)
    with_graph, without = Dictated(tokens), Dictated(tokens)
    for director, graph in ((with_graph, True), (without, False)):
        written = generate(model, start(rows), 150, director=director, graph=graph)
        assert written[:, 1:].equal(tokens)
    assert not capsys.readouterr().err  # no graph failed
    expected = torch.stack(without.logits)
    torch.testing.assert_close(torch.stack(with_graph.logits), expected, rtol=0, atol=atol)


def test_a_graph_writes_on_unchanged_while_others_come_and_go():
    model = ready()
    alone = generate(model, start(1), 300)
    written = []
    for n, token in enumerate(stream(model, start(1), 300)):
        written.append(token)
        if n % 50 == 10:
            generate(model, start(1 + n // 50), 40)
            torch.empty(1 << 20, device=DEVICE).normal_()
    assert torch.cat(written, dim=1).equal(alone[:, 1:])


def test_fifty_texts_take_the_memory_of_five():
    model, reserved = ready(), []
    for _ in range(50):
        generate(model, start(1), 20)
        reserved.append(torch.cuda.memory_reserved(DEVICE))
    assert reserved[-1] == reserved[4]


def test_texts_are_written_while_other_models_are_loaded(train):
    """The page does this, in threads."""
    train(device=DEVICE, compile=False, eval_interval=5)
    texts, errors = {}, []

    def write(rows: int):
        try:
            for _ in range(5):
                model, _ = checkpoint.load_model("model/ckpt.pt")
                pack(model.to(DEVICE), torch.float32)
                texts.setdefault(rows, []).append(generate(model, start(rows), 100, Sampling(top_k=10)))
        except Exception as e:  # a thread's would be lost
            errors.append(e)

    threads = [threading.Thread(target=write, args=(rows,)) for rows in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(text.equal(written[0]) for written in texts.values() for text in written)
