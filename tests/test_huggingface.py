"""Both ways between our GPT-2 and Hugging Face's, compared with transformers itself."""

import json
import re
import subprocess
import sys

import pytest
import torch
from helpers import SHORT, flags, play

import prepare
from configurator import UserError
from drama import checkpoint
from drama.generation import generate
from drama.huggingface import fast_tokenizer, from_gpt2, merges, to_gpt2
from drama.tokenizer import BPETokenizer, CharTokenizer
from model import GPT, GPTConfig
from train_drama import Settings

transformers = pytest.importorskip("transformers")
FIFTY = CharTokenizer("".join(map(chr, range(65, 115))))
SHAPE = dict(n_layer=2, n_head=2, n_embd=32)


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def their_gpt2(place, seed=0, vocab=50, **changes):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=vocab, n_positions=64, **SHAPE, initializer_range=0.2, **changes
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for name, p in theirs.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(std=0.1)
    theirs.save_pretrained(place)
    return theirs


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_their_weights_give_their_logits_here(tmp_path, activation):
    theirs = their_gpt2(tmp_path / "theirs", activation_function=activation)
    ours = from_gpt2(str(tmp_path / "theirs"), block_size=48, dropout=0.0, tok=FIFTY).eval()
    assert ours.config.block_size == 48
    with pytest.raises(UserError, match="block_size=65 is more than the 64"):
        from_gpt2(str(tmp_path / "theirs"), block_size=65, dropout=0.0, tok=FIFTY)
    idx = torch.randint(50, (3, 48))
    torch.testing.assert_close(ours(idx, idx)[0], theirs(idx).logits, rtol=0, atol=1e-5)


def test_a_hidden_layer_of_the_usual_width_may_be_written_out(tmp_path):
    their_gpt2(tmp_path / "theirs")
    for width, words in {128: "", 64: "holds no GPT-2"}.items():
        change(tmp_path / "theirs", n_inner=width)
        if words:
            with pytest.raises(UserError, match=words):
                from_gpt2(str(tmp_path / "theirs"), 48, 0.0, FIFTY)
        else:
            assert from_gpt2(str(tmp_path / "theirs"), 48, 0.0, FIFTY).config.n_embd == 32


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
    expected = tok.decode(generate(model, ids, 60, temperature=0)[0].tolist())
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


@pytest.mark.parametrize("other", [dict(arch="modern"), dict(n_ensemble=2)])
def test_a_model_that_they_have_no_class_for_is_refused(other):
    with pytest.raises(UserError, match=f"train with --{next(iter(other))}="):
        to_gpt2(GPT(GPTConfig(**SHAPE, **other)))


def test_training_goes_on_from_their_weights(call, corpus):
    vocab = len(set(play()))
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=vocab, n_positions=64, **SHAPE)
    transformers.GPT2LMHeadModel(config).save_pretrained(corpus / "theirs")
    shape = dict(init_from="theirs", block_size=32, bias=True, **SHAPE)
    how = flags(**shape, batch_size=4, out_dir="m", dtype="float32", **SHORT)
    status, out, err = call("train_drama.py", *how)
    assert (status, err) == (0, "") and "step 20:" in out
    config = checkpoint.load("m/ckpt.pt")["config"]
    assert config["n_layer"] == 2 and config["gelu"] == "tanh" and config["block_size"] == 32
    status, out, _ = call("train_drama.py", *how, "--max_iters=25")
    assert status == 0 and "continuing at iteration 21" in out
    resumed = [word for word in how if "init_from" not in word]
    assert call("train_drama.py", *resumed, "--max_iters=30")[0] == 0  # and it is still known where from
    assert checkpoint.load("m/last.pt")["settings"]["init_from"] == "theirs"
    (corpus / "theirs").rename(corpus / "others")
    status, _, err = call("train_drama.py", *how, "--init_from=others")
    assert status == 2 and "init_from (saved 'theirs', asked 'others')" in err and "scratch" not in err


@pytest.mark.parametrize("harm, words", [
    (lambda f: (f / "config.json").unlink(), "config.json"),
    (lambda f: (f / "model.safetensors").unlink(), "model.safe"),
    (lambda f: (f / "config.json").write_text("{}"), "no GPT-2"),
    (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "no GPT-2"),
    (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "llama"})), "no GPT-2"),
    (lambda f: change(f, scale_attn_by_inverse_layer_idx=True), "no GPT-2"),
    (lambda f: (f / "tokenizer.json").write_text('{"model": {"vocab": {"a": 1}}}'), "other tokens"),
    (lambda f: None, "--n_layer=2 --n_head=2 --n_embd=32 --bias=True"),
])  # fmt: skip
def test_a_folder_that_does_not_fit_is_refused_in_one_line(call, corpus, harm, words):
    their_gpt2(corpus / "theirs", vocab=len(set(play())))
    harm(corpus / "theirs")
    status, _, err = call("train_drama.py", *flags(init_from="theirs", block_size=32, out_dir="m", **SHORT))
    assert status in (1, 2) and words in err and len(err.splitlines()) == 1


def test_every_merged_token_has_the_pair_it_was_merged_from():
    pytest.importorskip("rustbpe")
    tok = BPETokenizer.learn(iter([play()]), 500)
    pairs = merges(tok.tokens)
    assert [a + b for a, b in pairs] == tok.tokens[256:]


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


@pytest.mark.parametrize("shape", [dict(arch="gpt2", bias=True), dict(arch="modern", n_ensemble=2)])
def test_onnxruntime_writes_the_same_greedy_text_by_the_card_s_own_lines(call, folder, shape):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    tok = CharTokenizer("".join(sorted(set(play()))))
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=64, vocab_size=tok.vocab_size, **SHAPE, **shape)).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    ended = dict(iteration=5, train_loss=1.0, val_loss=2.0)
    checkpoint.save(
        folder / "ckpt.pt", {**checkpoint.model_state(model, tok, Settings(), ["LUCIO"]), **ended}
    )
    status, _, err = call("export.py", "ckpt.pt", "--to=onnx")
    assert (status, err) == (0, "")
    run = onnxruntime.InferenceSession(folder / "onnx/model.onnx").run
    for length in (1, 2, 64):
        idx = torch.randint(tok.vocab_size, (1, length))
        logits = torch.from_numpy(run(["logits"], {"tokens": idx.numpy()})[0])
        torch.testing.assert_close(logits, model(idx)[0][:, 0], rtol=0, atol=1e-4)
    code = re.search(r"```python\n(.*?)```", (folder / "onnx/README.md").read_text(), re.DOTALL)[1]
    command = [sys.executable, "-c", code.replace("200", "58")]
    written = subprocess.run(command, capture_output=True, text=True)
    ids = torch.tensor(tok.encode("LUCIO:").astype("int64"))[None]
    assert written.stdout == tok.decode(generate(model, ids, 58, temperature=0)[0].tolist()) + "\n"


def test_an_exported_tokenizer_refuses_what_the_model_does_not_know(folder):
    tok = CharTokenizer("\nab")
    fast_tokenizer(tok).save("tokenizer.json")
    made = transformers.PreTrainedTokenizerFast(tokenizer_file="tokenizer.json")
    assert made("ab\n")["input_ids"] == [1, 2, 0]
    with pytest.raises(Exception, match="Missing"):
        made("abc")


def test_a_card_writes_with_the_model_s_own_text(call, folder):
    for chars, speakers, prompt in (("\n罗：:", ["罗"], "罗："), ("\nab", [], "\n"), ("ab", [], "a")):
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
