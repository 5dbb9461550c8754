import copy
import errno
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from helpers import ROOT, Bomb

from configurator import UserError
from drama import checkpoint
from drama.tokenizer import CharTokenizer
from drama.training.logs import Log
from model import GPT, GPTConfig

TOK = CharTokenizer("abcdefgh")


@dataclass(frozen=True)
class Settings:
    seed: int = 1


def a_model():
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=8, vocab_size=8, n_layer=2, n_head=2, n_embd=8)).eval()


def state(**more):
    return {
        **checkpoint.model_state(a_model(), TOK, Settings(), ["LUCIO"]),
        "val_loss": 1.5,
        "list": [1, (2, "x")],
        **more,
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ckpt.pt"


def refusal(path):
    """The one line with which loading a model from path is refused."""
    with pytest.raises(UserError) as refused:
        checkpoint.load_model(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    return str(refused.value)


def test_what_is_saved_is_loaded(path):
    checkpoint.save(path, state())
    loaded = checkpoint.load(path)
    assert loaded["val_loss"] == 1.5 and loaded["list"] == [1, (2, "x")]
    assert loaded["settings"] == {"seed": 1} and loaded["speakers"] == ["LUCIO"]
    model, tok = checkpoint.build_model(loaded, path)
    idx = torch.randint(8, (2, 8))
    assert torch.equal(model.eval()(idx)[0], a_model()(idx)[0]) and tok.chars == TOK.chars
    assert os.listdir(path.parent) == ["ckpt.pt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(path, monkeypatch, step):
    checkpoint.save(path, state())
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, state(val_loss=1.0))
    assert path.read_bytes() == before and os.listdir(path.parent) == ["ckpt.pt"]


FULL = """
import resource, signal, sys, torch
from drama import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    checkpoint.save("ckpt.pt", {"model": torch.ones(100_000)})
except OSError as e:
    print(e.errno)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files have no largest size there")
@pytest.mark.parametrize("size", [10, 100_000, 400_000])
def test_a_disk_that_takes_a_part_of_the_file_is_an_oserror_with_its_number(path, size):
    """PyTorch's writer says something else."""
    checkpoint.save(path, state())
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(size)], cwd=path.parent, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{errno.EFBIG}\n", "")
    assert path.read_bytes() == before and os.listdir(path.parent) == ["ckpt.pt"]


def test_a_file_cut_short_anywhere_is_refused(path, thorough, figures):
    checkpoint.save(path, state())
    whole = path.read_bytes()
    lengths = sorted({*range(0, len(whole), 1 if thorough else len(whole) // 150), len(whole) - 1})
    for length in lengths:
        path.write_bytes(whole[:length])
        refusal(path)
    figures(f"cut short: {len(lengths)} lengths of {len(whole)}, all refused")


def test_a_changed_byte_never_gives_another_model(path, thorough, figures):
    checkpoint.save(path, state())
    whole = path.read_bytes()
    idx = torch.arange(8)[None]
    right = a_model()(idx)[0]
    draw = torch.Generator().manual_seed(0)
    refused, places = 0, torch.randint(len(whole), (1000 if thorough else 200,), generator=draw).tolist()
    places += range(len(whole) - 98, len(whole))  # where the zip says where everything is
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= int(torch.randint(1, 256, (1,), generator=draw))
        path.write_bytes(damaged)
        try:
            model, tok = checkpoint.load_model(path)
        except UserError as e:
            assert "\n" not in str(e)
            refused += 1
        else:  # a byte that means nothing, such as padding
            assert torch.equal(model.eval()(idx)[0], right) and tok.chars == TOK.chars
    figures(f"changed bytes: {len(places):,}, {refused} refused, the others make no difference")


def test_loading_never_executes_what_a_file_says(path, tmp_path):
    torch.save({"model": Bomb(tmp_path / "ran"), "sha256": "x"}, path)
    refusal(path)
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refusal(path)
    torch.save(Bomb(tmp_path / "ran"), path, _use_new_zipfile_serialization=False)
    refusal(path)
    assert not (tmp_path / "ran").exists()


def test_another_project_s_checkpoint_is_refused(path):
    torch.save({"model": a_model().state_dict(), "model_args": {}, "iter_num": 5}, path)
    assert "nanoGPT" in refusal(path)
    torch.save([1, 2], path)
    refusal(path)
    checkpoint.save(path, {**state(), "format": 99})
    assert "format 99" in refusal(path)


@pytest.mark.parametrize("version", [torch.zeros(3), "2\n" * 300, [2], None, 2.0], ids=lambda v: repr(v)[:15])
def test_a_format_that_is_no_number_is_refused(path, version):
    checkpoint.save(path, {**state(), "format": version})
    refusal(path)


@pytest.mark.parametrize("speakers", ["LUCIO", [1], 1.5, True, torch.zeros(2), {"LUCIO": 1}], ids=repr)
def test_speakers_that_are_no_list_of_names_are_refused(path, speakers):
    checkpoint.save(path, state(speakers=speakers))
    refusal(path)


def test_a_checkpoint_of_an_earlier_version_without_speakers_is_loaded(path):
    older = state()
    del older["speakers"]
    checkpoint.save(path, older)
    checkpoint.load_model(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_weights_that_cannot_be_computed_with_are_refused(path, dtype):
    """Those of all parts or of one, which would fail in the middle of a text."""
    for names in (state()["model"], ["blocks.0.attn.c_attn.weight"]):
        other = state()
        other["model"].update({name: other["model"][name].to(dtype) for name in names})
        checkpoint.save(path, other)
        refusal(path)


@pytest.mark.parametrize("config", [
    {"n_layer": 10**9}, {"n_embd": 10**7}, {"vocab_size": 10**9}, {"block_size": 10**12}, {"n_head": 3},
    {"n_layer": "2"}, {"n_layer": -1}, {"surprise": 1}, {"dropout": float("nan")},
])  # fmt: skip
def test_a_config_that_does_not_fit_the_weights_is_refused_before_memory_is_taken(path, config):
    right = state()
    checkpoint.save(path, {**right, "config": {**right["config"], **config}})
    refusal(path)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(path):
    right = state()
    right["model"]["wte.weight"] = torch.zeros(1).expand(2**40)  # one float, a terabyte of strides
    torch.save({"format": checkpoint.FORMAT, **right, "sha256": "x"}, path)
    refusal(path)


def test_layers_that_share_their_bytes_to_claim_more_than_the_file_holds_are_refused(path):
    right, shared = state(), torch.zeros(1_000_000)
    right["model"].update({f"blocks.{n}.attn.c_attn.weight": shared for n in range(1000)})
    torch.save({"format": checkpoint.FORMAT, **right, "sha256": checkpoint.digest(right)}, path)
    refusal(path)


def test_what_is_no_plain_tree_of_values_is_refused(path):
    loop = state()
    loop["settings"] = loop
    for odd in (loop, {**state(), "model": {"wte.weight": torch.eye(3).to_sparse()}}):
        torch.save({"format": checkpoint.FORMAT, **odd, "sha256": "x"}, path)
        refusal(path)


def test_a_compressed_zip_is_refused_before_it_is_unpacked(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", b"\0" * 50_000_000)
    refusal(path)


def test_a_zip_whose_members_share_their_bytes_is_refused_before_it_is_read(path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *a, **how: pytest.fail("it was read"))
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", b"\0" * 100_000)
        for n in range(1000):  # 100 MB, if each were read
            again = copy.copy(z.filelist[0])
            again.filename = again.orig_filename = f"archive/data/{n}"
            z.filelist.append(again)
    refusal(path)


class Zeros:
    def __reduce__(self):
        return bytearray, (10**12,)


def nested(depth: int, value) -> list:
    """Lists within lists that hold value 2**depth times and share all but a few bytes."""
    for _ in range(depth):
        value = [value, value]
    return value


class Disguised(OrderedDict):
    """Attributes of an OrderedDict are pickled, too, and can stand in for its methods."""

    def __init__(self, content, /, **attributes):
        super().__init__(content)
        self.__dict__.update(attributes)

    def __reduce__(self):
        return OrderedDict, (), self.__dict__, None, iter(OrderedDict.items(self))


@pytest.mark.parametrize("odd", [
    Zeros(), nested(60, []), Disguised({"a": nested(60, [])}, values=OrderedDict),
    Disguised({"a": torch.zeros(1).expand(2**40)}, values=OrderedDict),
], ids=["zeros", "shared", "disguised lists", "disguised tensor"])  # fmt: skip
def test_what_would_take_a_terabyte_or_forever_is_refused_at_once(path, odd):
    torch.save({**state(), "format": checkpoint.FORMAT, "sha256": "x", "list": odd}, path)
    refusal(path)


def zipped(path, pickled: bytes, before: bytes = b""):
    """A file of torch.save's format around a pickle."""
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", pickled)
    path.write_bytes(before + path.read_bytes())


SHARED = b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(60))  # tuples of tuples, 2**60 in all
HOSTILE = {
    "a key whose hash takes for ever": b"\x80\x02})q\x00" + SHARED + b"Ns.",
    "a key that is nested too deep to hash": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
    "a value that is nested too deep": b"\x80\x02}X\x01\x00\x00\x00a)" + b"\x85" * 200_000 + b"s.",
    "millions of dictionaries": b"\x80\x02](" + b"}" * 2_000_000 + b"e.",
    "a list of itself": b"\x80\x02]q\x00(" + b"h\x00" * 400_000 + b"e.",
    "one long text again and again": b"\x80\x02](X\xa0\x86\x01\x00"
    + b"a" * 100_000
    + b"q\x00"
    + b"h\x00" * 99_999
    + b"e.",
    "a function that is called": b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00exit\x85R.",
    "a function by its attributes": b"\x80\x02}cbuiltins\ndict\nb.",
    "an item of no dictionary": b"\x80\x02]X\x01\x00\x00\x00aNs.",
    "nothing on the stack": b"\x80\x02s.",
    "no end": b"\x80\x02}",
}


@pytest.mark.parametrize("pickled", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pickle_is_refused_in_little_time_and_memory(path, pickled):
    zipped(path, pickled)
    tracemalloc.start()
    try:
        refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6 + 15 * path.stat().st_size
    finally:
        tracemalloc.stop()


def test_what_is_looked_at_is_what_is_read(path):
    """A zip is looked for at a file's end, a pickle of torch.save's old format at its beginning."""
    torch.save(Zeros(), path, _use_new_zipfile_serialization=False)
    old, state_ = path.read_bytes(), {**state(), "format": checkpoint.FORMAT}
    checkpoint.save(path, state_)
    path.write_bytes(old + path.read_bytes())
    loaded = checkpoint.load(path)  # the zip, whose checksum is right
    assert loaded["val_loss"] == 1.5


def test_tensors_that_share_their_bytes_do_so_again(path):
    table = torch.arange(12.0).view(3, 4)
    state_ = dict(a=table, b=table[1:], c=table.T, d=torch.empty(0, 3), e=torch.tensor(5), f=table.bfloat16())
    checkpoint.save(path, state_)
    loaded = checkpoint.load(path)
    assert all(torch.equal(loaded[name], value) for name, value in state_.items())
    loaded["a"][1, 0] = -1
    assert loaded["b"][0, 0] == loaded["c"][0, 1] == -1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(path, value):
    wrong = state()
    wrong["model"]["ln_f.weight"] = torch.full_like(wrong["model"]["ln_f.weight"], value)
    checkpoint.save(path, wrong)
    assert "not finite" in refusal(path)


@pytest.mark.parametrize("name", ["get", "pop", "items", "values", "keys"])
@pytest.mark.parametrize("part", ["state", "config", "tokenizer", "settings", "model"])
def test_attributes_that_stand_in_for_a_dictionary_s_methods_do_no_harm(path, part, name):
    right = {**state(), "format": checkpoint.FORMAT}
    if part != "state":
        right[part] = Disguised(right[part], **{name: 5})
    right["sha256"] = checkpoint.digest(right)
    torch.save(Disguised(right, **{name: 5}) if part == "state" else right, path)
    try:
        model, _ = checkpoint.load_model(path)
    except UserError:
        return
    idx = torch.arange(8)[None]
    assert torch.equal(model.eval()(idx)[0], a_model()(idx)[0])


@pytest.mark.parametrize("metadata", [5, {"": 5}, {"blocks": "x"}, None])
def test_what_pytorch_notes_beside_the_weights_is_not_read(path, metadata):
    """It is an attribute of their dictionary, which no checksum covers."""
    right = {**state(), "format": checkpoint.FORMAT}
    right["model"]._metadata = metadata
    torch.save({**right, "sha256": checkpoint.digest(right)}, path)
    model, _ = checkpoint.load_model(path)
    idx = torch.arange(8)[None]
    assert torch.equal(model.eval()(idx)[0], a_model()(idx)[0])


@pytest.mark.parametrize("missing", ["config", "model", "tokenizer", "settings"])
def test_a_file_without_a_part_is_refused(path, missing):
    partial = state()
    del partial[missing]
    checkpoint.save(path, partial)
    refusal(path)


@pytest.mark.parametrize("damaged, read", [
    (b"iter;loss\n0;1.0\n", False), ("iter,loss\n0,1.0\n".encode("utf-8-sig"), True),
    (b'iter,loss\n"0,1.0\n1,1.0\n2,1.0\n', False),
    ("iter,loss\n0,1.0\n".encode("utf-16"), False), (b'iter,loss\n"' + b"0" * 200_000, False),
    (b"\xff\xfe\x00", False), (b"", True), ("iter,loss\n\u00b2,1.0\n".encode(), True),
], ids=lambda value: repr(value)[:25])  # fmt: skip
def test_a_log_that_another_program_has_changed_is_kept_and_the_run_goes_on(tmp_path, capsys, damaged, read):
    for n in (1, 2):
        (tmp_path / "log.csv").write_bytes(damaged)
        Log(tmp_path / "log.csv", 4).row(iter=4, loss=0.25)
        lines = (tmp_path / "log.csv").read_text().splitlines()
        assert lines[0].startswith("iter,loss") and lines[-1].startswith("4,0.25")
        assert len(lines) == 2 + (b"\n0,1.0" in damaged and read)
        kept = tmp_path / f"log-damaged-{n}.csv"
        assert read != kept.exists() and read != (f"kept as {kept.name}" in capsys.readouterr().out)
        assert read or kept.read_bytes() == damaged


def test_a_continued_log_has_each_iteration_once(tmp_path):
    log = Log(tmp_path / "log.csv", 0)
    for i in range(6):
        log.row(iter=i, loss=1.0 - i / 10)
    with open(tmp_path / "log.csv", "a") as f:
        f.write("6,0.3")  # a line that a crash cut short
    log = Log(tmp_path / "log.csv", 4)
    log.row(iter=4, loss=0.25)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [
        ["0", "1.0"], ["1", "0.9"], ["2", "0.8"], ["3", "0.7"], ["4", "0.25"]
    ]  # fmt: skip
