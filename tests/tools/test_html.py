"""The page that is one file: it writes the greedy text of sample.py in headless Chromium, from file://."""

import itertools
import json
import re

import pytest
import torch
from helpers import ROOT, play, tiny_model

from drama import checkpoint
from drama.sampling.generation import Sampling, generate, prompt_ids
from drama.speech import speeches
from drama.tokenizer import BPETokenizer, CharTokenizer, as_known
from train_drama import Settings

CHARS = CharTokenizer("".join(sorted(set(play() + "罗：<>"))))
PAIRS = BPETokenizer(
    [*(bytes([b]) for b in range(256)), b"IO", b"LU", b"LUC", b"\n\n", b" d", b" da", b" day"]
)
KINDS = {
    "gpt2": (CHARS, {}), "gpt2 with biases": (CHARS, dict(bias=True, gelu="tanh")),
    "modern": (CHARS, dict(arch="modern")), "ensemble": (CHARS, dict(arch="modern", n_ensemble=3)),
    "byte pairs": (PAIRS, dict(n_ensemble=2)),
}  # fmt: skip


@pytest.fixture
def exported(call, folder):
    """exported(model, tok, **flags) is the address of its page."""

    def export(model, tok, *argv, speakers=("LUCIO", "ISABELLA")):
        state = checkpoint.model_state(model, tok, Settings(), speakers)
        (folder / "m").mkdir(exist_ok=True)
        checkpoint.save(
            folder / "m" / "ckpt.pt", {**state, "iteration": 1, "train_loss": 1.0, "val_loss": 1.0}
        )
        assert call("export.py", "m/ckpt.pt", "--to=html", *argv)[0] == 0
        assert {path.name for path in (folder / "html").iterdir()} == {"README.md", "drama.html"}
        return (folder / "html" / "drama.html").as_uri()

    return export


@pytest.fixture
def opened(browser):
    """opened(address, **options of the browser) is the page, with no network and no error."""
    contexts, errors = [], []

    def open_page(address, **options):
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(300_000)  # however busy the machine is
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.goto(address)
        page.wait_for_function("!document.getElementById('write').disabled")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def written(page, **fields) -> str:
    """Fill in the form, write, and wait for the end."""
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.click("#write")
    page.wait_for_function("document.getElementById('stop').disabled")
    return page.inner_text("#text") if not fields.get("start") else page.text_content("#text")


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_the_greedy_text_far_past_block_size(exported, opened, kind):
    tok, shape = KINDS[kind]
    gpt = tiny_model(vocab_size=tok.vocab_size, block_size=24, **shape)
    if tok is PAIRS:  # half a character is shown otherwise
        gpt.wte.weight.data[:32] = gpt.wte.weight.data[127:256] = 0
    page = opened(exported(gpt, tok, "--dtype=float32"))
    text = written(page, start="LUCIO:\nI am", temperature=0)
    ids = generate(gpt, prompt_ids(tok, "LUCIO:\nI am", gpt), 400, Sampling(temperature=0))
    assert text[:330] == tok.decode(ids[0].tolist())[:330] and len(text) >= 1000


def test_float16_is_a_quarter_smaller_in_base64_than_float32_and_writes(exported, opened, folder):
    gpt = tiny_model(vocab_size=CHARS.vocab_size, n_embd=64)
    page = opened(exported(gpt, CHARS))
    numbers = sum(p.numel() for p in gpt.parameters())
    rest = len((ROOT / "tools" / "export" / "page.html").read_bytes()) + 3000
    assert (folder / "html" / "drama.html").stat().st_size < numbers * 2 * 4 / 3 + rest
    assert len(written(page, start="LUCIO:")) > 500
    assert re.fullmatch(r"\d+ characters per second", page.text_content("#said"))


def test_a_seed_writes_its_text_again_and_another_seed_another(exported, opened):
    page = opened(exported(tiny_model(vocab_size=CHARS.vocab_size), CHARS))
    texts = [written(page, start="LUCIO:", seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_tokens_are_drawn_with_the_model_s_probabilities_within_top_p(exported, opened):
    gpt = tiny_model(vocab_size=CHARS.vocab_size, n_layer=1)
    for p in gpt.blocks.parameters():
        p.data.zero_()
    gpt.wpe.weight.data.zero_()
    gpt.wte.weight.data = torch.nn.functional.normalize(torch.randn(CHARS.vocab_size, 16)) * 0.3
    page = opened(exported(gpt, CHARS, "--dtype=float32"))
    text = written(page, start="L", top_p=0.6, temperature=1)
    logits = gpt(prompt_ids(CHARS, "L", gpt))[0][0, -1].softmax(-1).sort(descending=True)
    kept = int((logits.values.cumsum(-1) - logits.values < 0.6).sum())
    assert text[1] in CHARS.decode(logits.indices[:kept].tolist())
    follows = {a + b for a, b in itertools.pairwise(text)}
    assert len(follows) > 50  # and not always the same


def test_only_the_cast_speaks_and_the_scene_has_its_turns(exported, opened):
    gpt = tiny_model(vocab_size=CHARS.vocab_size, bias=True)
    for p in gpt.parameters():
        p.data.zero_()  # all characters equally likely, and newlines often
    gpt.ln_f.bias.data.fill_(1.0)
    gpt.wte.weight.data[CHARS.encode("\n").item()] = 4.5 / gpt.config.n_embd
    page = opened(exported(gpt, CHARS))
    text = written(page, start="", cast="LUCIO, ISABELLA", turns=4, temperature=1, top_p=1)
    names = [name for name, _ in speeches(text)]
    assert 4 <= len(names) <= 5 and set(names) <= {"LUCIO", "ISABELLA"}


def test_writing_stops_and_goes_on_by_mouse_and_keyboard(exported, opened):
    slow = tiny_model(vocab_size=CHARS.vocab_size, n_layer=24, n_embd=256, n_head=4)
    page = opened(exported(slow, CHARS))
    page.fill("#start", "LUCIO:\n")
    page.focus("#start")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("document.getElementById('text').textContent.length > 20")
    page.keyboard.press("Escape")
    before = page.text_content("#text")
    assert page.is_enabled("#continue") and len(before) < 900
    page.click("#continue")
    page.wait_for_function(f"document.getElementById('text').textContent.length > {len(before) + 20}")
    assert page.text_content("#text").startswith(before)
    page.click("#stop")
    with page.expect_download() as saved:
        page.click("#fountain")
    assert saved.value.suggested_filename == "scene.fountain"
    assert (saved.value.path()).read_text(encoding="utf-8").startswith("@LUCIO\n")
    with page.expect_download() as saved:
        page.click("#save")
    assert saved.value.path().read_text(encoding="utf-8") == page.text_content("#text")


def test_marks_that_phones_set_are_written_as_the_model_knows_them(exported, opened):
    page = opened(exported(tiny_model(vocab_size=CHARS.vocab_size), CHARS))
    written(page, start="LUCIO:\nI am\u2026 no\uff01")
    assert page.text_content("#text").startswith(as_known("LUCIO:\nI am\u2026 no\uff01", CHARS)[0])


def test_an_unknown_character_is_named_and_not_sent(exported, opened):
    page = opened(exported(tiny_model(vocab_size=CHARS.vocab_size), CHARS))
    assert written(page, start="Zoë €") == ""
    assert page.text_content("#said") == "The model does not know: Z ë €"
    assert len(written(page, start="LUCIO:")) > 500


@pytest.mark.parametrize("size", [dict(width=1200, height=900), dict(width=360, height=640)])
def test_it_fits_a_desk_and_a_phone_in_chinese_too(exported, opened, size):
    address = exported(tiny_model(vocab_size=CHARS.vocab_size), CHARS)
    page = opened(address, viewport=size, locale="zh-CN", color_scheme="dark")
    assert page.text_content("#write") == "开始写" and page.input_value("#start") == "LUCIO:"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_a_checkpoint_holds_runs_nothing(exported, opened, folder):
    evil = "</script><script>document.title='evil'</script>{{weights}}<img src=x onerror=alert(1)>"
    tok = CharTokenizer("".join(dict.fromkeys(evil + "LUCIO:\n")))
    gpt = tiny_model(vocab_size=tok.vocab_size)
    page = opened(exported(gpt, tok, speakers=(evil[:59],)))
    assert page.title() == "Drama GPT" and page.input_value("#start").startswith("</script>")
    written(page, start=evil, temperature=1)
    assert page.title() == "Drama GPT" and page.locator("img").count() == 0
    header = re.search(r'id="header">(.*)</script>', (folder / "html" / "drama.html").read_text())[1]
    assert json.loads(header)["prompt"].startswith(evil[:59])


def test_a_screenplay_takes_for_a_speech_what_the_project_does(exported, opened):
    page = opened(exported(tiny_model(vocab_size=CHARS.vocab_size), CHARS))
    scene = "A:\nI come.\n\n罗：\nI go.\n\nB: not\n\n" + "n" * 61 + ":\nlong"
    page.evaluate("(scene) => { text = scene; busy(false); }", scene)
    with page.expect_download() as saved:
        page.click("#fountain")
    blocks = saved.value.path().read_text(encoding="utf-8").split("\n\n")
    assert blocks == ["@A\nI come.", "@罗\nI go.", "!B: not", "!" + "n" * 61 + ":\nlong"]
