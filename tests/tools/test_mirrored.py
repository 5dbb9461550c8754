"""Someone edits model.py: every export computes the edited network, or one line says that it cannot."""

import importlib.util
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, play

import train_drama
from drama import checkpoint
from drama.tokenizer import CharTokenizer
from model import GPT, GPTConfig
from tools.export import mirrored
from tools.export.loaded import nothing_read

KINDS = [dict(gelu="exact"), dict(gelu="tanh"), dict(arch="modern"), dict(arch="modern", match=8)]
SHAPES = [{}, dict(n_ensemble=3), dict(bias=True), dict(bias=True, n_ensemble=2)]

GELU = 'nn.GELU("tanh" if config.gelu == "tanh" else "none")'
NORM = 'nn.LayerNorm(config.n_embd, elementwise_affine=config.arch == "gpt2", bias=config.bias)'
FUTURE = "future = q.new_full((T, length), -math.inf).triu(1 + length - T)"
LN_2, LN_F = "self.ln_2 = norm(config)", "self.ln_f = norm(config)"
TARGETS = "logits.flatten(0, -2).float(), targets.flatten()"
SILU, RMS = {GELU: "nn.SiLU()"}, {NORM: "nn.RMSNorm(config.n_embd)"}
RELU = {"squared_relu if config.arch": "F.relu if config.arch"}
GATE = {
    LN_2: f"{LN_2}; self.gate = nn.Parameter(torch.ones(config.n_embd))",
    "x + self.mlp(self.ln_2(x))": "x + self.gate * self.mlp(self.ln_2(x))",
}


def edited(folder, changes: dict[str, str]):
    """model.py with these changes, written into a folder and imported."""
    text = (ROOT / "model.py").read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "model.py").write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("edited", folder / "model.py")
    module = sys.modules["edited"] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_are_those_of_model_py_for_every_kind(kind, shape):
    assert mirrored.is_mirrored(GPTConfig(**kind, **shape, n_embd=96, vocab_size=500, block_size=32))


@pytest.mark.parametrize("changes, arch", [
    (SILU, "gpt2"), (RMS, "gpt2"), (RMS, "modern"), (GATE, "gpt2"), (GATE, "modern"), (RELU, "modern"),
    ({NORM: NORM.replace("bias=", "eps=1e-6, bias=")}, "gpt2"),
    ({"alpha=q.size(-1) ** -0.5": "alpha=1 / q.size(-1)"}, "gpt2"),
    ({"x + self.attn(self.ln_1(x), angles, cache)": "self.ln_1(x + self.attn(x, angles, cache))"}, "gpt2"),
    ({FUTURE: f"{FUTURE} + q.new_full((T, length), -math.inf).tril(-128)"}, "gpt2"),  # a window
    ({"10000.0 **": "500000.0 **"}, "modern"), ({"+ self.mix[1] * x0": ""}, "modern"),
    ({"4 * config.n_embd": "3 * config.n_embd"}, "gpt2"), ({"c_fc": "up"}, "gpt2"),
    ({LN_F: f"{LN_F}; self.unused = nn.Parameter(torch.zeros(3))"}, "gpt2"),
    ({'Literal["gpt2", "modern"]': "str", NORM: "nn.LayerNorm(config.n_embd)"}, "mine"),
])  # fmt: skip
def test_an_edit_of_what_is_computed_or_of_the_parameters_is_noticed(tmp_path, monkeypatch, changes, arch):
    module = edited(tmp_path, changes)
    monkeypatch.setattr(checkpoint, "GPT", module.GPT)
    assert not mirrored.is_mirrored(module.GPTConfig(arch=arch))


@pytest.mark.parametrize("changes", [
    {"self.dropout(self.c_proj": "(self.c_proj"},
    {TARGETS: f"{TARGETS}, label_smoothing=0.1"}, {"# q, k, v side by side": "# three in one"},
    {"std=0.02": "std=0.01"}, {"squared_relu": "relu2"},
])  # fmt: skip
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_an_edit_of_training_alone_is_none(tmp_path, monkeypatch, changes, arch):
    module = edited(tmp_path, changes)
    monkeypatch.setattr(checkpoint, "GPT", module.GPT)
    assert mirrored.is_mirrored(module.GPTConfig(arch=arch))


EXPORT_TO_ALL = """
import sys
from drama.program import run_program
from tools.export.__main__ import main
for to in ("hf", "onnx", "gguf", "html"):
    sys.argv = ["export", f"--to={to}"]
    try:
        run_program(main)
    except SystemExit as status:
        print(f"{to} ended with {status}")
"""


@pytest.mark.parametrize("changes, arch", [({**SILU, **RMS, **GATE}, "gpt2"), (RELU, "modern")])
def test_exports_of_an_edited_model_follow_it_or_say_that_they_cannot(clone, tmp_path, changes, arch):
    transformers, onnxruntime = map(pytest.importorskip, ("transformers", "onnxruntime"))
    pytest.importorskip("onnxscript")
    folder = tmp_path / "drama"
    shutil.copytree(clone, folder)
    module = edited(folder, changes)

    def run(*command) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)

    torch.manual_seed(0)
    tok = CharTokenizer("".join(sorted(set(play()))))
    shape = dict(block_size=32, vocab_size=tok.vocab_size, n_layer=1, n_head=2, n_embd=32, dropout=0.0)
    model = module.GPT(module.GPTConfig(**shape, arch=arch)).eval()
    for p in model.parameters():  # far from the initialisation, where every path matters
        p.data += 0.3 * torch.randn_like(p)
    state = checkpoint.model_state(model, tok, train_drama.Settings())
    losses = dict(iteration=1, train_loss=1.0, val_loss=1.0)
    checkpoint.save(folder / "model" / "ckpt.pt", {**state, **losses})
    done = run("-c", EXPORT_TO_ALL)

    unedited = GPT(GPTConfig(**state["config"])).eval()
    unedited.load_state_dict(state["model"], strict=False)
    idx = torch.randint(model.config.vocab_size, (1, 20))
    expected = model(idx, idx)[0]
    assert (unedited(idx, idx)[0] - expected).abs().max() > 0.01

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", trust_remote_code=True).eval()
    torch.testing.assert_close(theirs(idx).logits, expected, rtol=0, atol=1e-4)
    cached = theirs.generate(idx, max_new_tokens=5, do_sample=False)
    assert cached.equal(theirs.generate(idx, max_new_tokens=5, do_sample=False, use_cache=False))
    told = "model.py holds another network than transformers' GPT-2, so it goes into the folder\n"
    assert (told in done.stdout) == (arch == "gpt2")

    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    kept = nothing_read(session, model.config.vocab_size)
    logits = torch.from_numpy(session.run(None, {"tokens": idx.numpy(), **kept})[0])
    torch.testing.assert_close(logits, expected[:, -1], rtol=0, atol=1e-4)
    assert done.stdout.count("loads it and predicts the same") == 2

    for to, line in zip(("gguf", "html"), done.stderr.splitlines(), strict=True):
        assert f"another network than --to={to} has code for; --to=hf and --to=onnx follow" in line
        assert f"{to} ended with 2" in done.stdout and not (folder / to).exists()
