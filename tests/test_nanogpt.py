"""For whoever comes from nanoGPT: its checkpoints, through every door, and its settings.

A checkout beside this project, or that NANOGPT names, is asked too.
"""

import dataclasses
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SMALL, Bomb, flags, loaded, play, tiny_model

import sample
import train_drama
from configurator import NANOGPT, UserError, configure
from drama import checkpoint
from drama.sampling.generation import Sampling, generate
from drama.tokenizer import BPETokenizer

CHECKOUT = Path(os.environ.get("NANOGPT", ROOT.parent / "nanoGPT"))  # where docs/speed.md clones it
needs_checkout = pytest.mark.skipif(
    not (CHECKOUT / "train.py").is_file(), reason="no nanoGPT that NANOGPT names, nor beside this project"
)
OUT = Path("out/ckpt.pt")

# ---------------------------------------------------------------------------- its checkpoints


def theirs(model, compiled=False, masks=False, **changes) -> dict:
    """What nanoGPT would have saved of a model."""
    weights = {f"transformer.{name}".replace("blocks.", "h."): w for name, w in model.state_dict().items()}
    if masks:
        mask = torch.ones(1, 1, 32, 32).tril()
        weights |= {f"transformer.h.{n}.attn.bias": mask for n in range(model.config.n_layer)}
    weights["lm_head.weight"] = model.wte.weight.detach()
    shape = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
    return {
        "model": {"_orig_mod." * compiled + name: w for name, w in weights.items()},
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "model_args": {name: getattr(model.config, name) for name in shape},
        "iter_num": 20,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "drama", "out_dir": "out", "max_iters": 20, "init_from": "scratch"},
        **changes,
    }


def save(state: dict):
    OUT.parent.mkdir(exist_ok=True)
    torch.save(state, OUT)


def a_model(**changes):
    """A model of as many characters as the small play has."""
    return tiny_model(**{"vocab_size": loaded().tokenizer.vocab_size, "block_size": 32, **changes})


def refusal() -> str:
    with pytest.raises(UserError) as refused:
        checkpoint.load_model(OUT)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("saved", [{}, dict(compiled=True), dict(masks=True)], ids=str)
def test_its_checkpoint_predicts_what_its_model_does(corpus, bias, saved):
    model = a_model(bias=bias)
    save(theirs(model, **saved))
    state = checkpoint.load(OUT)
    same, tok = checkpoint.build_model(state, OUT)
    ids = torch.from_numpy(tok.encode("LUCIO:\nThe king").astype("int64"))[None]
    assert torch.equal(same.eval()(ids)[0], model(ids)[0])
    assert tok.to_dict() == loaded().tokenizer.to_dict() and state["val_loss"] == 1.5
    assert state["speakers"] == loaded().speakers


def test_every_program_takes_it(corpus, call):
    save(theirs(a_model()))
    scene = ("--cast=LUCIO,ISABELLA", "--max_new_tokens=40", "--num_samples=1")
    status, out, _ = call("sample.py", "--out_dir=out", *scene)
    assert status == 0 and re.match(r"\n?(LUCIO|ISABELLA):", out)
    status, out, _ = call("evaluate.py", "--out_dir=out")
    assert status == 0 and out.startswith("out: val loss ")
    for to, name in (("html", "drama.html"), ("gguf", "model.gguf"), ("hf", "model.safetensors")):
        status, out, err = call("export.py", "out", f"--to={to}")
        assert status == 0 and "characters are taken from data/drama" in err and Path(to, name).is_file()
    assert "nan" not in Path("hf/README.md").read_text("utf-8")
    short = dict(SMALL, block_size=16, max_iters=1, lr_decay_iters=1, eval_interval=1)
    status, out, _ = call("train_drama.py", "--init_from=out", *flags(**short))
    assert status == 0 and "starting from out" in out


def test_a_vocabulary_of_gpt_2_is_gpt_2_s_own_without_the_rows_for_nothing(corpus, monkeypatch):
    """The vocabulary itself would have to be fetched; this one is as large."""
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)][: 50_256 - 256]
    tok = BPETokenizer([*(bytes([b]) for b in range(256)), *pairs], ("<|endoftext|>",))
    monkeypatch.setattr(BPETokenizer, "gpt2", lambda: tok)
    padded = a_model(vocab_size=50_304)
    save(theirs(padded, config={"dataset": "openwebtext"}))
    model, trained = checkpoint.load_model(OUT)
    ids = torch.from_numpy(trained.encode("LUCIO:").astype("int64"))[None]
    assert trained.vocab_size == model.config.vocab_size == 50_257
    torch.testing.assert_close(model.eval()(ids)[0], padded(ids)[0][..., :50_257])


def test_without_its_text_it_says_how_to_prepare_it(corpus):
    save(theirs(a_model(), config={"dataset": "/home/me/nanoGPT/data/plays"}))
    assert "python prepare.py --dataset=plays --input=ITS_TEXT --layout=keep" in refusal()
    save(theirs(a_model(), config={"dataset": "shakespeare_char"}))
    assert "python prepare.py --dataset=shakespeare_char --source=tinyshakespeare" in refusal()
    save(theirs(a_model(vocab_size=9)))
    assert f"data/drama has {loaded().tokenizer.vocab_size} characters and {OUT} 9" in refusal()


def test_what_is_not_whole_is_refused(corpus):
    state = theirs(a_model())
    for name in state:
        if name != "optimizer":
            save({key: value for key, value in state.items() if key != name})
            refusal()
    for changes in (
        dict(model_args={**state["model_args"], "n_layer": 9}), dict(model_args={}), dict(model_args=[1]),
        dict(model={}), dict(model={**state["model"], "lm_head.weight": torch.zeros(3, 3)}),
        dict(model={**state["model"], "lm_head.weight": 5}), dict(best_val_loss="low"), dict(config=5),
        dict(model={**state["model"], "transformer.wte.weight": "x"}), dict(config={"dataset": 5}),
        dict(model_args={**state["model_args"], "vocab_size": "many"}),
    ):  # fmt: skip
        save({**state, **changes})
        refusal()


def test_nothing_in_it_or_beside_its_data_is_executed(corpus):
    state = theirs(a_model())
    save({**state, "config": {**state["config"], "x": Bomb(corpus / "ran")}})
    refusal()
    (corpus / "data/drama/meta.pkl").write_bytes(pickle.dumps(Bomb(corpus / "ran")))
    save(state)
    checkpoint.load(OUT)
    assert not (corpus / "ran").exists()


ASK = """
import pickle, sys, torch
from model import GPT, GPTConfig
state = torch.load("out/ckpt.pt", weights_only=True)
model = GPT(GPTConfig(**state["model_args"])).eval()
model.load_state_dict(state["model"])
stoi = pickle.load(open("data/drama/meta.pkl", "rb"))["stoi"]
ids = torch.tensor([[stoi[c] for c in "LUCIO:"]])
torch.save((ids, model(ids)[0], model.generate(ids, 26, top_k=1)), "answer.pt")
"""
THEIR_RUN = (
    "config/train_shakespeare_char.py", "--dataset=drama", "--out_dir=out", "--device=cpu",
    "--compile=False", "--dtype=float32", "--eval_iters=2", "--eval_interval=100", "--max_iters=100",
    "--learning_rate=0.01",
    "--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=32", "--batch_size=8",
)  # fmt: skip


@needs_checkout
@pytest.mark.parametrize("bias", [False, True])
def test_a_checkpoint_that_nanogpt_trained_predicts_and_writes_what_nanogpt_does(corpus, bias):
    for name in ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py"):
        copy = corpus / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((CHECKOUT / name).read_bytes())
    tok = loaded().tokenizer
    meta = dict(vocab_size=tok.vocab_size, stoi={c: n for n, c in enumerate(tok.chars)})
    (corpus / "data/drama/meta.pkl").write_bytes(pickle.dumps(meta))
    for command in (("train.py", *THEIR_RUN, f"--bias={bias}"), ("-c", ASK)):
        subprocess.run([sys.executable, *command], cwd=corpus, check=True, capture_output=True)
    ids, logits, written = torch.load("answer.pt")
    model, tok = checkpoint.load_model(OUT)
    model.eval()
    assert torch.equal(ids, torch.from_numpy(tok.encode("LUCIO:").astype("int64"))[None])
    torch.testing.assert_close(model(ids)[0], logits, atol=1e-4, rtol=0)
    assert generate(model, ids, written.size(1) - ids.size(1), Sampling(temperature=0)).equal(written)
    assert sorted(set(play())) == list(tok.chars)


# ---------------------------------------------------------------------------- its settings

PROGRAMS = {"train.py": train_drama, "sample.py": sample}


def documented(program: str) -> set[str]:
    """nanoGPT's settings in the page's table for one of its programs."""
    text = (ROOT / "docs/nanogpt.md").read_text(encoding="utf-8")
    table = text.split(f"## Settings of its {program}\n")[1].split("\n## ")[0]
    return {name for names in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"\w+", names)}


def settings_of(module) -> dict:
    return {field.name: field.default for field in dataclasses.fields(module.Settings)}


def test_a_setting_of_nanogpt_is_answered_with_its_line(call):
    refused = "eval_only is nanoGPT's; here: python -m tools.evaluate\n"
    assert call("train_drama.py", "--eval_only=True") == (2, "", f"train_drama.py: {refused}")
    for program, module in PROGRAMS.items():
        lacking = documented(program) - settings_of(module).keys()
        assert lacking and lacking <= NANOGPT.keys()
        for name in lacking:
            with pytest.raises(UserError) as error:
                configure(module.Settings, [f"--{name}=x"])
            assert str(error.value) == f"{name} is nanoGPT's; here: {NANOGPT[name]}"
    assert set.union(*map(documented, PROGRAMS)) >= NANOGPT.keys()


def test_a_config_file_of_nanogpt_is_told_which_settings_are_not_here(folder):
    for lines, told in (
        ("backend = 'gloo'", "mini.py: backend is nanoGPT's; here: leave it out;"),
        ("backend = 'gloo'\ndecay_lr = False", "mini.py: these are nanoGPT's, .*: backend, decay_lr$"),
    ):
        Path("mini.py").write_text(f"out_dir = 'mini'\n{lines}\nn_layer = 6\n")
        with pytest.raises(UserError) as error:
            configure(train_drama.Settings, ["mini.py"])
        assert re.match(told, str(error.value)) and "docs/nanogpt.md" in str(error.value)


def test_its_dataset_and_its_folder_are_told_what_to_run(call, folder):
    status, _, err = call("train_drama.py", "--dataset=shakespeare_char")
    assert status == 2 and "prepare.py --dataset=shakespeare_char --source=tinyshakespeare" in err
    status, _, err = call("sample.py", "--out_dir=out-shakespeare-char")
    assert status == 2 and err.endswith("config/laptop.py --out_dir=out-shakespeare-char\n")
    assert call("sample.py")[2].endswith("config/laptop.py\n")


@needs_checkout
def test_the_page_has_every_setting_of_a_checkout_and_the_defaults_are_its_small_model_s():
    for program in PROGRAMS:
        settings = (CHECKOUT / program).read_text().split("exec(open")[0]
        assert documented(program) == set(re.findall(r"^(\w+) = ", settings, re.M)) - {"config_keys"}
    ours, others = settings_of(train_drama), {"out_dir", "dataset", "eval_iters"}
    configs = {path.name: path.read_text() for path in (CHECKOUT / "config").glob("*.py")}
    for text in configs.values():
        assert set(re.findall(r"^(\w+) ?= ?", text, re.M)) <= documented("train.py")
    small = dict(re.findall(r"^(\w+) = ([\d.e-]+)", configs["train_shakespeare_char.py"], re.M))
    assert len(small) > 10
    assert all(ours[name] == float(value) for name, value in small.items() if name not in others)
