"""A GGUF file against llama.cpp itself, where xllamacpp is installed: tokens, probabilities, greedy text."""

import pytest
import torch
from helpers import play, tiny_model

from configurator import UserError
from drama.sampling.generation import Sampling, generate, prompt_ids
from drama.tokenizer import BPETokenizer, CharTokenizer
from model import GPT, GPTConfig
from tools.export.gguf import character_merges, tensors, write_gguf

gguf = pytest.importorskip("gguf")
PAIRS = BPETokenizer(
    [*(bytes([b]) for b in range(256)), b"IO", b"LU", b"LUC", b"\n\n", b" d", b" da", b" day"]
)
TEXTS = {
    "characters": ("LUCIO:\nGood day. Speak!\n\n", None),
    "Chinese": ("罗密欧：\n你好é 😀！\n\n", None),
    "byte pairs": ("LUCIO:\nGood day. Speak!\n\n", PAIRS),
}


def model_for(tok, **changes) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(block_size=64, vocab_size=tok.vocab_size, n_layer=2, n_head=2, n_embd=64, **changes))
    for p in gpt.parameters():
        p.data += 0.2 * torch.randn_like(p)
    if tok is PAIRS:  # half a character would not be printed
        gpt.wte.weight.data[:32] = gpt.wte.weight.data[127:256] = 0
    return gpt.eval()


@pytest.fixture
def ask(tmp_path):
    """ask(model, tok, dtype="auto") returns a function that asks llama.cpp for a completion."""
    xllamacpp = pytest.importorskip("xllamacpp")

    def load(gpt, tok, dtype="auto"):
        write_gguf(tmp_path, gpt, tok, "", dtype)
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = str(tmp_path / "model.gguf"), 64, 1
        params.cpuparams.n_threads, params.verbosity, params.warmup = 1, -1, False
        server = xllamacpp.Server(params)
        return lambda **job: server.handle_completions({"temperature": 0, **job})

    return load


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", TEXTS)
def test_llama_cpp_reads_and_writes_the_same(ask, kind, bias):
    text, tok = TEXTS[kind]
    tok = tok or CharTokenizer("".join(sorted(set(text + "abc 012"))))
    gpt = model_for(tok, bias=bias)
    theirs, ids = ask(gpt, tok), prompt_ids(tok, text, gpt)
    answer = theirs(prompt=text, n_predict=1, n_probs=tok.vocab_size + 1)
    assert answer["usage"]["prompt_tokens"] == ids.numel()
    with torch.no_grad():
        expected = gpt(ids)[0][0, -1].log_softmax(-1)
    (first,) = answer["choices"][0]["logprobs"]["content"]
    logprobs = {token["id"]: token["logprob"] for token in first["top_logprobs"]}
    assert set(range(tok.vocab_size)) <= set(logprobs)
    for n in range(tok.vocab_size):  # theirs approximates GELU
        assert logprobs[n] == pytest.approx(expected[n].item(), abs=0.02)
    written = theirs(prompt=text, n_predict=25)["choices"][0]["text"]
    mine = generate(gpt, ids, 25, Sampling(temperature=0))
    with torch.no_grad():
        best = gpt(mine, mine)[0][0, ids.numel() - 1 : -1].topk(2).values
    close = (best[:, 0] - best[:, 1] < 0.03).nonzero()[:, 0].tolist() or [25]  # where either may be taken
    sure = tok.decode(mine[0, ids.numel() :][: close[0]].tolist())
    assert len(sure) >= 3 and written.startswith(sure)


def test_float16_halves_the_file_and_hardly_changes_it(ask, tmp_path):
    tok = CharTokenizer("".join(sorted(set(play()))))
    gpt = model_for(tok)
    write_gguf(tmp_path, gpt, tok, "", "float32")
    whole = (tmp_path / "model.gguf").stat().st_size
    answer = ask(gpt, tok, "float16")(prompt="LUCIO:\n", n_predict=1, n_probs=3)
    assert (tmp_path / "model.gguf").stat().st_size < 0.6 * whole
    expected = gpt(prompt_ids(tok, "LUCIO:\n", gpt))[0][0, -1].log_softmax(-1)
    for token in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        assert token["logprob"] == pytest.approx(expected[token["id"]].item(), abs=0.05)


def test_unknown_characters_are_left_out_there_and_a_text_ends_with_the_context(ask):
    tok = CharTokenizer("abc\n")
    theirs = ask(model_for(tok), tok)
    answer = theirs(prompt="a☃b?", n_predict=100)
    assert answer["usage"]["prompt_tokens"] == 2 and answer["usage"]["total_tokens"] == 64
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("bias", [False, True])
def test_the_end_of_text_is_never_likely_and_other_tokens_keep_their_logits(bias):
    gpt = tiny_model(bias=bias)
    x = 3 * torch.randn(50, gpt.config.n_embd)
    new = tensors(gpt, gpt.config.vocab_size + 1)
    normal = torch.nn.functional.layer_norm(
        x, x.shape[-1:], new["output_norm.weight"], new["output_norm.bias"]
    )
    logits = normal @ new["output.weight"].T
    torch.testing.assert_close(logits[:, :-1], gpt.head(gpt.ln_f(x)), rtol=1e-4, atol=1e-4)
    assert (logits[:, -1] < logits[:, :-1].min() - 50).all()


def test_characters_of_several_bytes_are_merged_from_them():
    assert character_merges([b"a", b"b"]) == []
    assert character_merges(["é".encode()]) == [("Ã", "©")]
    assert character_merges(["你".encode()]) == [("ä", "½"), ("ä½", "ł")]


@pytest.mark.parametrize("other", [dict(arch="modern"), dict(n_ensemble=2)])
def test_what_llama_cpp_has_no_class_for_is_refused_with_what_takes_it(call, train, other):
    train(**other)
    status, _, err = call("export.py", "model/ckpt.pt", "--to=gguf")
    assert status == 2 and err.count("\n") == 1
    assert "has no counterpart in llama.cpp; --to=html, --to=hf and --to=onnx take it" in err


def test_the_card_s_own_lines_write(call, train, corpus, capfd):
    pytest.importorskip("xllamacpp")
    train()
    assert call("export.py", "model/ckpt.pt", "--to=gguf", "--dtype=float16")[0] == 0
    assert sorted(path.name for path in (corpus / "gguf").iterdir()) == ["README.md", "model.gguf"]
    lines = (corpus / "gguf" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(lines, {})
    assert capfd.readouterr().out.startswith("ISABELLA:")  # who speaks most


def test_a_model_of_no_class_leaves_no_file(tmp_path):
    with pytest.raises(UserError):
        write_gguf(tmp_path, tiny_model(arch="modern"), CharTokenizer("abcdefghijk"), "", "auto")
    assert not list(tmp_path.iterdir())
