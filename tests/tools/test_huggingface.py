"""Both ways between our GPT-2 and Hugging Face's, compared with transformers itself."""

import json
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, SHORT, flags, play

import prepare
from configurator import UserError
from drama import checkpoint
from drama.sampling.generation import Sampling, generate, prompt_ids
from drama.tokenizer import BPETokenizer, CharTokenizer
from drama.training.pretrained import load_start, start_from
from model import GPT, GPTConfig
from tools.export import loaded
from tools.export.huggingface import fast_tokenizer, merges
from train_drama import Settings

transformers = pytest.importorskip("transformers")
FIFTY = CharTokenizer("".join(map(chr, range(65, 115))))
SHAPE = dict(n_layer=2, n_head=2, n_embd=32)
GREEDY = Sampling(temperature=0)


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def started(folder, **settings) -> GPT:
    """The model that a training begins with, of the weights in a folder."""
    folder = str(folder)
    return start_from(load_start(folder, FIFTY), folder, Settings(dropout=0.0, **settings), FIFTY)[0].eval()


def their_gpt2(folder, seed=0, vocab=50, **changes):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=vocab, n_positions=64, **SHAPE, initializer_range=0.2, **changes
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for name, p in theirs.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(std=0.1)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_their_weights_give_their_logits_here(tmp_path, activation):
    theirs = their_gpt2(tmp_path / "theirs", activation_function=activation)
    ours = started(tmp_path / "theirs", block_size=48, n_layer=5, n_head=1)
    assert ours.config.block_size == 48 and ours.config.n_layer == 2
    assert started(tmp_path / "theirs", block_size=65).config.block_size == 64
    idx = torch.randint(50, (3, 48))
    torch.testing.assert_close(ours(idx, idx)[0], theirs(idx).logits, rtol=0, atol=1e-5)


def test_a_hidden_layer_of_the_usual_width_may_be_written_out(tmp_path):
    their_gpt2(tmp_path / "theirs")
    for width, words in {128: "", 64: "holds no GPT-2"}.items():
        change(tmp_path / "theirs", n_inner=width)
        if words:
            with pytest.raises(UserError, match=words):
                started(tmp_path / "theirs")
        else:
            assert started(tmp_path / "theirs").config.n_embd == 32


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_an_exported_model_writes_the_same_greedy_text(call, folder, kind, bias):
    text = play()
    if kind == "char":
        tok = CharTokenizer("".join(sorted(set(text))))
    else:
        pytest.importorskip("rustbpe")
        tok = BPETokenizer.learn(iter([text]), 400)
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=128, vocab_size=tok.vocab_size, bias=bias, **SHAPE)).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    state = {
        **checkpoint.model_state(model, tok, Settings()),
        "iteration": 5,
        "train_loss": 1.0,
        "val_loss": 2.0,
    }
    (folder / "model").mkdir()
    checkpoint.save(folder / "model/ckpt.pt", state)
    status, _, err = call("export.py", "model/ckpt.pt", "--out=hf")
    assert (status, err) == (0, "")
    ids = torch.tensor(tok.encode("LUCIO:\nMy love").astype("int64"))[None]
    expected = tok.decode(generate(model, ids, 60, GREEDY)[0].tolist())
    written = transformers.pipeline("text-generation", str(folder / "hf"))(
        "LUCIO:\nMy love", max_length=len(ids[0]) + 60, do_sample=False
    )  # fmt: skip
    assert written[0]["generated_text"] == expected
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder / "hf")
    idx = torch.randint(tok.vocab_size, (2, 128))
    torch.testing.assert_close(theirs(idx).logits, model(idx, idx)[0], rtol=0, atol=1e-5)
    fast = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    for piece in (text[:2000], "  \n\n the  king; ", "LUCIO:"):
        assert (
            fast(piece)["input_ids"] == tok.encode(piece).tolist()
            and fast.decode(fast(piece)["input_ids"]) == piece
        )
    card = (folder / "hf/README.md").read_text()
    assert "2.0000" in card and "n_layer 2" in card and "from scratch" in card
    assert call("export.py", "model/ckpt.pt", "--out=hf")[0] == 2  # nothing is written over
    assert call("export.py", "model/ckpt.pt", "model/ckpt.pt", "--out=two")[0] == 2  # nor left out in silence


OWN_CODE = {
    "modern": dict(arch="modern"), "modern ensemble": dict(arch="modern", match=4, n_ensemble=2),
    "gpt2 ensemble": dict(n_ensemble=2, bias=True),
}  # fmt: skip


@pytest.fixture
def exported(call, folder):
    """exported(**shape): (model, tokenizer, the pipeline that a person's three lines make of its folder)."""

    def export(**shape):
        model, tok = saved_model(folder / "ckpt.pt", **shape)
        status, out, err = call("export.py", "ckpt.pt")
        assert (status, err) == (0, "") and "loads it and predicts the same" in out
        made = transformers.pipeline("text-generation", str(folder / "hf"), trust_remote_code=True)
        return model, tok, made

    return export


def saved_model(path, **shape):
    tok = CharTokenizer("".join(sorted(set(play()))))
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=64, vocab_size=tok.vocab_size, **SHAPE, **shape)).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    ended = dict(iteration=5, train_loss=1.0, val_loss=2.0)
    checkpoint.save(path, {**checkpoint.model_state(model, tok, Settings(), ["LUCIO"]), **ended})
    return model, tok


@pytest.mark.parametrize("kind", OWN_CODE)
def test_a_model_with_its_own_code_writes_the_same_text_and_reads_each_token_once(exported, kind):
    model, tok, write = exported(**OWN_CODE[kind])
    length = 100 if OWN_CODE[kind].get("arch") else 58  # rotary positions go on past block_size
    read = []
    write.model.gpt.register_forward_pre_hook(lambda gpt, inputs: read.append(inputs[0].shape))
    written = write("LUCIO:", max_new_tokens=length, do_sample=False)[0]["generated_text"]
    ids = prompt_ids(tok, "LUCIO:", model)
    assert written == tok.decode(generate(model, ids, length, GREEDY)[0].tolist())
    assert read == [(1, 6)] + [(1, 1)] * (length - 1)
    idx = torch.randint(tok.vocab_size, (2, 64))
    torch.testing.assert_close(write.model(idx).logits, model(idx, idx)[0], rtol=0, atol=1e-5)
    for beams in (1, 3):
        kwargs = dict(max_new_tokens=20, do_sample=False, num_beams=beams)
        cached, again = (write.model.generate(idx[:, :9], use_cache=c, **kwargs) for c in (True, False))
        assert cached.shape == (2, 29) and cached.equal(again)
    write.model.save_pretrained("again")
    again = transformers.AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)
    assert again(idx).logits.equal(write.model(idx).logits)


def test_a_model_with_its_own_code_learns_and_says_what_it_cannot(exported, folder):
    model, tok, write = exported(arch="modern", dropout=0.0)
    idx = torch.randint(tok.vocab_size, (2, 32))
    theirs = write.model
    loss = theirs.train()(idx, labels=idx).loss
    model.train()
    torch.testing.assert_close(loss, model(idx[:, :-1], idx[:, 1:])[1], rtol=1e-5, atol=1e-5)
    loss.backward()
    with pytest.raises(ValueError, match="training needs labels"):
        theirs(idx)
    theirs.eval()
    with pytest.raises(ValueError, match="equally long"):
        theirs.generate(idx, attention_mask=torch.tensor([[0] + [1] * 31, [1] * 32]), max_new_tokens=2)
    with pytest.raises(ValueError, match="65 positions are more than block_size=64"):
        theirs(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(Exception, match="Missing"):
        write("LUCIO: ☃")
    with pytest.raises(ValueError, match="logits alone"):
        theirs(idx, output_hidden_states=True)
    out = theirs(idx, labels=idx)  # as theirs do: logits of all positions, whose last has no label
    torch.testing.assert_close(out.loss, loss, rtol=1e-4, atol=1e-4)
    assert out.logits.equal(theirs(idx).logits)
    card = (folder / "hf/README.md").read_text()
    assert "out_dir" not in card
    assert "trust_remote_code=True" in card and "code_revision" in card and "write('LUCIO:'" in card
    assert (folder / "hf/model.py").read_text() == (ROOT / "model.py").read_text()


@pytest.mark.parametrize("kind", OWN_CODE)
def test_a_loop_of_one_s_own_with_a_cache_reads_what_a_whole_reading_reads(exported, kind):
    _, tok, write = exported(**OWN_CODE[kind])
    idx, theirs = torch.randint(tok.vocab_size, (2, 30)), write.model
    name = theirs.forward.__globals__["CACHE"]  # transformers has renamed it
    for lengths in ((30,), (5, 1, 1, 23), (1, 1, 1, 27), (2, 28)):
        cache, logits = None, []
        for chunk in idx.split(lengths, dim=1):
            out = theirs(chunk, use_cache=True, **{name: cache})
            cache = out[name]
            logits.append(out.logits)
        torch.testing.assert_close(torch.cat(logits, 1), theirs(idx).logits, rtol=1e-4, atol=1e-4)
    others = transformers.DynamicCache()
    for layer in range(2):
        others.update(torch.zeros(2, 2, 4, 16), torch.zeros(2, 2, 4, 16), layer)
    with pytest.raises(ValueError, match="give before"):
        theirs(idx, **{name: others})
    plain = dict(do_sample=False, max_new_tokens=15)
    whole = theirs.generate(idx[:1, :20], **plain)
    for chunk in (1, 2, 7):
        assert theirs.generate(idx[:1, :20], prefill_chunk_size=chunk, **plain).equal(whole)


def test_of_a_prompt_that_is_too_long_the_end_is_read_as_sample_py_does(exported):
    model, tok, write = exported(arch="modern")
    idx = torch.randint(tok.vocab_size, (1, 100))
    written = write.model.generate(idx, do_sample=False, max_new_tokens=20)
    assert written.equal(generate(model, idx, 20, GREEDY))
    assert write.model.generate(idx[:, :9], max_length=30).shape == (1, 30)  # the person's length counts


@pytest.mark.parametrize("to", ["hf", "onnx", "gguf"])
def test_what_was_written_is_loaded_and_must_predict_what_the_model_does(call, folder, monkeypatch, to):
    library, predict = loaded.PREDICTORS[to]
    pytest.importorskip(library)
    model, _ = saved_model(folder / "ckpt.pt")
    other = dict.fromkeys(range(model.config.vocab_size), 1 / model.config.vocab_size)
    monkeypatch.setitem(loaded.PREDICTORS, to, (library, lambda *files: predict(*files) and other))
    status, _, err = call("export.py", "ckpt.pt", f"--to={to}")
    assert status == 1 and "is off by" in err and not (folder / to).exists()
    monkeypatch.setitem(loaded.PREDICTORS, to, (library, lambda folder, prompt: 1 / 0))
    status, out, _ = call("export.py", "ckpt.pt", f"--to={to}", "--out=b")
    assert status == 0 and f"not checked: {library}" in out and "division by zero" in out
    monkeypatch.setitem(loaded.PREDICTORS, to, ("no_such_library", predict))
    status, out, _ = call("export.py", "ckpt.pt", f"--to={to}", "--out=c")
    assert status == 0 and "checked" not in out


def test_training_goes_on_from_their_weights(call, corpus):
    vocab = len(set(play()))
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=vocab, n_positions=64, **SHAPE)
    transformers.GPT2LMHeadModel(config).save_pretrained(corpus / "theirs")
    settings = dict(init_from="theirs", out_dir="m", block_size=32, batch_size=4, dtype="float32", **SHORT)
    words = flags(n_layer=3, n_head=8, n_embd=64, **settings)  # the shape is that of the weights
    status, out, err = call("train_drama.py", *words)
    assert (status, err) == (0, "") and "step 20:" in out
    config = checkpoint.load("m/ckpt.pt")["config"]
    assert config["n_layer"] == 2 and config["gelu"] == "tanh" and config["block_size"] == 32
    status, out, _ = call("train_drama.py", *words, "--max_iters=25")
    assert status == 0 and "continuing at iteration 21" in out
    resumed = [word for word in words if "init_from" not in word]
    assert call("train_drama.py", *resumed, "--max_iters=30")[0] == 0  # and it is still known where from
    assert checkpoint.load("m/last.pt")["settings"]["init_from"] == "theirs"
    (corpus / "theirs").rename(corpus / "others")
    status, _, err = call("train_drama.py", *words, "--init_from=others")
    assert status == 2 and "init_from (saved 'theirs', asked 'others')" in err and "scratch" not in err


@pytest.mark.parametrize("harm, words", [
    (lambda f: (f / "config.json").unlink(), "config.json"),
    (lambda f: (f / "model.safetensors").unlink(), "model.safe"),
    (lambda f: (f / "config.json").write_text("{}"), "no GPT-2"),
    (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "no GPT-2"),
    (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "llama"})), "no GPT-2"),
    (lambda f: change(f, scale_attn_by_inverse_layer_idx=True), "no GPT-2"),
    (lambda f: (f / "tokenizer.json").write_text('{"model": {"vocab": {"a": 1}}}'), "of another kind"),
])  # fmt: skip
def test_a_folder_that_does_not_fit_is_refused_in_one_line(call, corpus, harm, words):
    their_gpt2(corpus / "theirs", vocab=len(set(play())))
    harm(corpus / "theirs")
    status, _, err = call("train_drama.py", *flags(init_from="theirs", block_size=32, out_dir="m", **SHORT))
    assert status in (1, 2) and words in err and len(err.splitlines()) == 1


def test_any_two_tokens_that_make_a_third_are_merged_as_tiktoken_does():
    single = [bytes([b]) for b in range(256)]
    pairs = merges([*single, b"ab", b"bc", b"abc", b"x yz"])
    assert pairs == [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]
    pytest.importorskip("rustbpe")
    tok = BPETokenizer.learn(iter([play()]), 500)
    fast, draw = fast_tokenizer(tok), random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices([*"aeinost \n", "the ", "ing", "你"], k=30))
        assert fast.encode(text).ids == tok.encode(text).tolist()


def test_without_a_network_one_line_says_what_to_give(call, folder, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    (folder / "a.txt").write_text(play())
    prepare.prepare(prepare.Settings(input="a.txt"))

    def no_network(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "snapshot_download", no_network)
    status, _, err = call("train_drama.py", "--init_from=gpt2", *flags(**SHORT))
    assert status == 1 and "config.json" in err and len(err.splitlines()) == 1


def test_an_exported_folder_is_whole_or_absent_and_writes_as_long_as_it_can(call, corpus, train, monkeypatch):
    train(out_dir="m", bias=True)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    status, _, err = call("export.py", "m/ckpt.pt", "--out=hf")
    assert status == 2 and "pip install tokenizers" in err and not (corpus / "hf").exists()
    monkeypatch.undo()
    assert call("export.py", str(corpus / "m/last.pt"), f"--out={corpus / 'hf'}")[0] == 2
    assert call("export.py", str(corpus / "m/ckpt.pt"), f"--out={corpus / 'hf'}")[::2] == (0, "")
    written = transformers.pipeline("text-generation", str(corpus / "hf"))("LUCIO:")  # as the README does
    assert 6 < len(written[0]["generated_text"]) <= 32


@pytest.mark.parametrize(
    "shape", [dict(bias=True), dict(arch="modern"), dict(arch="modern", match=4, n_ensemble=2)]
)
def test_onnxruntime_writes_the_same_greedy_text_by_the_card_s_own_lines(call, folder, shape):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, tok = saved_model(folder / "ckpt.pt", **shape)
    status, out, err = call("export.py", "ckpt.pt", "--to=onnx")
    assert (status, err) == (0, "") and "loads it and predicts the same" in out
    session = onnxruntime.InferenceSession(folder / "onnx/model.onnx")
    names = [put.name for put in session.get_inputs()][1:]
    for lengths in ((1,), (2,), (64,), (5, 1, 1), (1, 60, 3)):  # all in one, or with what was read before
        idx = torch.randint(tok.vocab_size, (1, sum(lengths)))
        kept = [np.full((1, model.config.n_before), tok.vocab_size)] + [
            np.zeros((1, 2, 0, 16), "float32")
        ] * (len(names) - 1)
        for tokens in idx.split(lengths, dim=1):
            logits, *kept = session.run(
                None, {"tokens": tokens.numpy(), **dict(zip(names, kept, strict=True))}
            )
        torch.testing.assert_close(torch.from_numpy(logits), model(idx)[0][:, 0], rtol=0, atol=1e-4)
    code = re.search(r"```python\n(.*?)```", (folder / "onnx/README.md").read_text(), re.DOTALL)[1]
    length = 58 if model.lm_head else 150  # with learned positions, sample.py too reads half again
    command = [sys.executable, "-c", code.replace("range(200)", f"range({length})")]
    written = subprocess.run(command, capture_output=True, text=True)
    expected = generate(model, prompt_ids(tok, "LUCIO:", model), length, GREEDY)
    assert written.stdout == tok.decode(expected[0].tolist()) + "\n", written.stderr
    long = "LUCIO:\n" * 20  # longer than block_size
    code = code.replace("'LUCIO:'", repr(long)).replace("range(200)", "range(100)")
    written = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = tok.decode(generate(model, prompt_ids(tok, long, model), 100, GREEDY)[0].tolist())
    same = len(long) + (100 if model.wpe else 1)  # sample.py goes on without reading half of it again
    assert written[:same] == expected[:same] and len(written) == len(expected) + 1


def test_a_context_of_one_token_goes_where_it_can(call, folder):
    tok = CharTokenizer("ab")
    state = checkpoint.model_state(GPT(GPTConfig(1, 2, arch="modern", **SHAPE)), tok, Settings())
    checkpoint.save(folder / "ckpt.pt", {**state, "iteration": 5, "train_loss": 1.0, "val_loss": 2.0})
    status, out, err = call("export.py", "ckpt.pt")
    assert (status, err) == (0, "") and "loads it and predicts the same" in out
    status, _, err = call("export.py", "ckpt.pt", "--to=onnx")
    assert status == 2 and "block_size=1 cannot be written as ONNX" in err


def test_an_exported_tokenizer_refuses_what_the_model_does_not_know(folder):
    tok = CharTokenizer("\nab")
    fast_tokenizer(tok).save("tokenizer.json")
    made = transformers.PreTrainedTokenizerFast(tokenizer_file="tokenizer.json")
    assert made("ab\n")["input_ids"] == [1, 2, 0]
    with pytest.raises(Exception, match="Missing"):
        made("abc")


def test_a_card_writes_with_the_model_s_own_text(call, folder):
    for chars, speakers, prompt in (("\n罗：:", ["罗"], "罗："), ("\nab", [], "\n\n"), ("ab", [], "a")):
        tok = CharTokenizer(chars)
        state = checkpoint.model_state(GPT(GPTConfig(64, len(chars), **SHAPE)), tok, Settings(), speakers)
        checkpoint.save(folder / "ckpt.pt", {**state, "iteration": 5, "train_loss": 1.0, "val_loss": 2.0})
        assert call("export.py", "ckpt.pt", f"--out=hf{len(chars)}")[::2] == (0, "")
        assert f"write({prompt!r}, max_length" in (folder / f"hf{len(chars)}/README.md").read_text(
            encoding="utf-8"
        )


@pytest.mark.parametrize("to", ["hf", "onnx"])
def test_a_number_format_that_would_not_be_used_is_refused(call, folder, to):
    status, _, err = call("export.py", f"--to={to}", "--dtype=float16")
    assert status == 2 and f"{to} is written in float32" in err


@pytest.mark.skipif(sys.platform == "win32", reason="files have no largest size there")
def test_a_full_disk_is_one_line_and_leaves_nothing(train, corpus):
    train(out_dir="m")
    limited = (
        "import resource, signal\n"
        "from tools.export import __main__ as export\n"
        "from drama.program import run_program\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "run_program(export.main)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", limited, "m"], capture_output=True, text=True, env=environ)
    assert done.returncode == 1 and "could not be written" in done.stderr and done.stderr.count("\n") == 1
    assert sorted(os.listdir()) == ["data", "m", "play.txt"]
