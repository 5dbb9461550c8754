"""The page: in headless Chromium, as one file from file://, and served by tools/app.py."""

import itertools
import json
import math
import re
import threading

import pytest
import torch
from helpers import ROOT, play, tiny_model

from drama import checkpoint
from drama.sampling.cast import Cast, Director
from drama.sampling.generation import Sampling, generate, prompt_ids
from drama.speech import fountain, speeches
from drama.tokenizer import BPETokenizer, CharTokenizer, as_known
from tools import app
from train_drama import Settings

CHARS = CharTokenizer("".join(sorted(set(play() + "罗：<>"))))
PAIRS = BPETokenizer(
    [*(bytes([b]) for b in range(256)), b"IO", b"LU", b"LUC", b"\n\n", b" d", b" da", b" day"]
)
KINDS = {
    "gpt2": (CHARS, {}), "gpt2 with biases": (CHARS, dict(bias=True, gelu="tanh")),
    "modern": (CHARS, dict(arch="modern")), "ensemble": (CHARS, dict(arch="modern", match=4, n_ensemble=3)),
    "byte pairs": (PAIRS, dict(n_ensemble=2)),
}  # fmt: skip
SPEAKERS = ("LUCIO", "ISABELLA", "First Lord")
PARTS = (ROOT / "tools" / "page.html", ROOT / "tools" / "export" / "network.js")
REST = sum(len(part.read_bytes()) for part in PARTS) + 3000  # of a page, without its weights


@pytest.fixture
def saved(folder):
    """saved(model, tok) is a checkpoint's file, m/ckpt.pt."""

    def save(model, tok, speakers=SPEAKERS):
        state = checkpoint.model_state(model, tok, Settings(), speakers)
        (folder / "m").mkdir(exist_ok=True)
        losses = dict(iteration=1, train_loss=1.0, val_loss=1.0)
        checkpoint.save(folder / "m" / "ckpt.pt", {**state, **losses})
        return "m/ckpt.pt"

    return save


@pytest.fixture
def exported(saved, call, folder):
    """exported(model, tok, *flags) is the address of its page."""

    def export(model, tok, *argv, speakers=SPEAKERS):
        assert call("export.py", saved(model, tok, speakers), "--to=html", *argv)[0] == 0
        assert {path.name for path in (folder / "html").iterdir()} == {"README.md", "drama.html"}
        return (folder / "html" / "drama.html").as_uri()

    return export


@pytest.fixture
def served(saved):
    """served(model, tok) is the address at which the program serves its page."""
    servers = []

    def serve(model, tok, *_, speakers=SPEAKERS):
        saved(model, tok, speakers)
        servers.append(app.serve(app.Models(app.Settings(models="m", dtype="float32")), 0))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(params=["one file", "served"])
def address_of(request):
    """address_of(model, tok, *flags): where its page is, through each of the two doors."""
    return request.getfixturevalue("served" if request.param == "served" else "exported")


@pytest.fixture
def opened(browser):
    """opened(address, **options of the browser) is the page, with no error."""
    contexts, errors = [], []

    def open_page(address, **options):
        offline = address.startswith("file:")
        contexts.append(browser.new_context(offline=offline, bypass_csp=True, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(300_000)  # however busy the machine is
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.goto(address)
        page.wait_for_function("!document.getElementById('write').disabled")
        page.evaluate(
            "document.getElementById('settings').open = document.getElementById('more').open = true"
        )
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


DONE = "document.getElementById('stop').disabled"


def fill(page, **fields):
    for name, value in fields.items():
        if isinstance(value, bool):
            page.set_checked(f"#{name}", value)
        else:
            page.fill(f"#{name}", str(value))


def written(page, button="write", **fields) -> str:
    """Fill in the form, press a button, and wait for the end: the whole text."""
    fill(page, **{"turns": 0, **fields})
    page.click(f"#{button}")
    page.wait_for_function(DONE)
    return page.evaluate("text")


def newlines(model, tok, share=0.2):
    """The model, writing a newline that often and all other characters equally often."""
    for p in model.parameters():
        p.data.zero_()
    model.ln_f.bias.data.fill_(1.0)  # all that the head sees
    odds = torch.tensor(share / (1 - share) * (tok.vocab_size - 1))
    model.wte.weight.data[tok.encode("\n").item()] = odds.log() / model.config.n_embd
    return model


@pytest.fixture
def chatty():
    """A model that ends many speeches, whatever it is: nothing hangs on what it learned."""
    return newlines(tiny_model(vocab_size=CHARS.vocab_size, bias=True), CHARS)


# ---------------------------------------------------------------------------- what it writes


@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_the_greedy_text_far_past_block_size(exported, opened, kind):
    tok, shape = KINDS[kind]
    gpt = tiny_model(vocab_size=tok.vocab_size, block_size=24, **shape)
    if tok is PAIRS:  # half a character is shown otherwise
        gpt.wte.weight.data[:32] = gpt.wte.weight.data[127:256] = 0
    page = opened(exported(gpt, tok, "--dtype=float32"))
    text = written(page, start="LUCIO:\nI am", temperature=0, length=400)
    ids = generate(gpt, prompt_ids(tok, "LUCIO:\nI am", gpt), 400, Sampling(temperature=0))
    assert text[:330] == tok.decode(ids[0].tolist())[:330]
    longer = written(page, "continue", temperature=0, length=100)
    assert longer.startswith(text) and len(longer) >= len(text) + 100


def test_the_program_behind_its_page_writes_the_greedy_text_too(served, opened):
    gpt = tiny_model(vocab_size=CHARS.vocab_size, block_size=24, arch="modern")
    page = opened(served(gpt, CHARS))
    text = written(page, start="LUCIO:\nI am", temperature=0, length=100)
    ids = generate(gpt, prompt_ids(CHARS, "LUCIO:\nI am", gpt), 100, Sampling(temperature=0))
    assert text == CHARS.decode(ids[0].tolist())


@pytest.mark.parametrize("kind", ["gpt2 with biases", "ensemble"])
def test_as_int8_each_row_of_a_matrix_is_bytes_and_a_scale(exported, opened, folder, kind):
    tok, shape = KINDS[kind]
    gpt = tiny_model(vocab_size=tok.vocab_size, n_embd=64, **shape)
    gpt.blocks[0].mlp.c_fc.weight.data[3] = 0  # a row without a scale
    page = opened(exported(gpt, tok, "--dtype=int8"))
    size = (folder / "html" / "drama.html").stat().st_size
    for p in gpt.parameters():
        if p.dim() == 2:
            scales = p.data.abs().amax(1, keepdim=True) / 127
            p.data = torch.where(scales > 0, (p.data / scales).round() * scales, 0.0)
    ids = generate(gpt, prompt_ids(tok, "LUCIO:\nI am", gpt), 100, Sampling(temperature=0))
    assert written(page, start="LUCIO:\nI am", temperature=0, length=100) == tok.decode(ids[0].tolist())
    assert size < 4 / 3 * 1.2 * sum(p.numel() for p in gpt.parameters()) + REST


def test_the_page_says_what_its_model_is(exported, opened):
    page = opened(exported(tiny_model(vocab_size=CHARS.vocab_size), CHARS))
    lines = page.locator("#about li").all_text_contents()
    assert lines[0].startswith("trained on drama from scratch: 0.01M parameters")
    assert "n_layer 2" in lines[1] and lines[2].startswith(
        "validation loss 1.0000 nats per token at iteration 1"
    )
    assert "learning_rate 0.001" in lines[3] and "out_dir" not in lines[3]


def test_the_page_in_docs_says_what_its_model_is_and_writes(opened):
    path = ROOT / "docs/drama.html"
    assert path.stat().st_size <= 5_000_000
    page = opened(path.as_uri())
    about = page.locator("#about li").all_text_contents()
    assert about[0].startswith("trained on plays from scratch: 1.75M") and "learning_rate 0.0028" in about[3]
    assert re.match(r"validation loss 1\.\d{4} nats per token", about[2])
    assert re.fullmatch(r"exported at commit [0-9a-f]{12}", about[4])
    text = written(page, start="HAMLET:", temperature=0, length=40)
    assert text.startswith("HAMLET:\n") and len(text) == len("HAMLET:") + 40


def test_float16_is_a_quarter_smaller_in_base64_than_float32_and_writes(exported, opened, folder):
    gpt = tiny_model(vocab_size=CHARS.vocab_size, n_embd=64)
    page = opened(exported(gpt, CHARS))
    numbers = sum(p.numel() for p in gpt.parameters())
    assert (folder / "html" / "drama.html").stat().st_size < numbers * 2 * 4 / 3 + REST
    assert len(written(page, start="LUCIO:")) == len("LUCIO:") + 600
    assert page.text_content("#said") == "Written."


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


def test_write_writes_something_else_each_time_and_a_seed_that_is_kept_the_same(address_of, opened):
    page = opened(address_of(tiny_model(vocab_size=CHARS.vocab_size), CHARS))
    first = written(page, start="LUCIO:", length=100)
    seed = page.input_value("#seed")
    second = written(page, length=100)
    assert second != first and page.input_value("#seed") != seed
    assert written(page, length=100, seed=seed, keep=True) == first
    assert written(page, length=100) == first


# ---------------------------------------------------------------------------- who speaks


def test_the_speakers_are_there_to_be_tapped(address_of, opened, chatty):
    page = opened(address_of(chatty, CHARS))
    chips = page.locator("#chips button")
    assert chips.all_text_contents() == list(SPEAKERS) and page.input_value("#start") == "LUCIO:"
    chips.nth(0).click()
    chips.nth(2).click()
    assert page.input_value("#cast") == "LUCIO, First Lord" and page.input_value("#start") == ""
    assert [chip.get_attribute("aria-pressed") for chip in chips.all()] == ["true", "false", "true"]
    names = [name for name, _ in speeches(written(page, turns=5, temperature=1, top_p=1))]
    assert len(names) == 5 and set(names) == {"LUCIO", "First Lord"}
    assert all(a != b for a, b in itertools.pairwise(names))  # nobody answers himself
    chips.nth(0).click()
    chips.nth(2).click()
    assert page.input_value("#cast") == "" and page.input_value("#start") == "LUCIO:"


def test_they_speak_in_the_order_that_is_given_and_a_changed_cast_is_obeyed(address_of, opened, chatty):
    page = opened(address_of(chatty, CHARS))
    text = written(page, start="", order="ISABELLA, LUCIO, LUCIO", temperature=1, top_p=1)
    assert [name for name, _ in speeches(text)] == ["ISABELLA", "LUCIO", "LUCIO"]
    text = written(page, "continue", order="", cast="First Lord", turns=2)
    assert [name for name, _ in speeches(text)][3:] == ["First Lord", "First Lord"]
    assert text.endswith("\n\n")  # the scene ends where a speech ends


def test_the_page_and_sample_py_end_a_scene_at_the_same_place(address_of, opened):
    """The likeliest tokens of a model that knows only what stood before, with a cast and turns."""
    gpt = tiny_model(vocab_size=CHARS.vocab_size, block_size=24)
    gpt.wte.weight.data[CHARS.encode("\n").item()] *= 1.6  # newlines come often
    page = opened(address_of(gpt, CHARS, "--dtype=float32"))
    ends = set()
    for start in ("LUCIO:\nSpeak.\n", "LUCIO:\nSpeak.\n\n", "LUCIO:\nSp", "First Lord:", "LU"):
        director = Director(CHARS, start, 1, Cast(["LUCIO", "ISABELLA"], CHARS), 2)
        generate(gpt, prompt_ids(CHARS, start, gpt), 2000, Sampling(temperature=0), director)
        text = written(page, start=start, cast="LUCIO,ISABELLA", turns=2, temperature=0)
        assert text.rstrip("\n") == director.written(0).rstrip("\n")
        assert ("Stopped after 2000 tokens" in page.text_content("#said")) != director.done()
        ends.add(director.done())
    assert True in ends


def test_a_speech_that_does_not_end_is_given_up_with_a_note(address_of, opened):
    endless = newlines(tiny_model(vocab_size=CHARS.vocab_size, bias=True), CHARS, 1e-9)
    page = opened(address_of(endless, CHARS))
    assert len(written(page, start="LUCIO:", turns=1)) == len("LUCIO:") + 1000
    assert page.text_content("#said") == "Stopped after 1000 tokens, before the last speech ended."


# ---------------------------------------------------------------------------- working on a scene


def test_a_scene_is_changed_gone_on_with_and_taken_back(address_of, opened, chatty):
    page = opened(address_of(chatty, CHARS))
    first = written(page, cast="LUCIO,ISABELLA", start="", turns=3)
    page.click("#change")
    assert page.input_value("#edit") == first
    changed = first + "First Lord:\nHear the king"
    page.fill("#edit", changed)
    second = written(page, "continue", turns=1)
    assert second.startswith(changed) and len(second) > len(changed)
    assert [name for name, _ in speeches(second)][3:] == ["First Lord"]
    other = written(page, "again", turns=1)
    assert other.startswith(first + "First Lord:\n") and not other.startswith(changed)
    for text in (second, changed, first, ""):
        page.click("#undo")
        assert page.evaluate("text") == text
    assert page.is_disabled("#undo") and page.is_disabled("#continue")


def test_what_was_written_survives_a_reload(address_of, opened, chatty):
    page = opened(address_of(chatty, CHARS))
    text = written(page, cast="ISABELLA", start="", turns=2, temperature=0.5)
    page.reload()
    page.wait_for_function("!document.getElementById('write').disabled")
    assert page.evaluate("text") == text and page.inner_text("#scene").upper().startswith("ISABELLA\n")
    assert page.input_value("#cast") == "ISABELLA" and page.input_value("#temperature") == "0.5"
    assert page.input_value("#start") == ""


def test_writing_stops_and_goes_on_by_mouse_and_keyboard(address_of, opened):
    slow = tiny_model(vocab_size=CHARS.vocab_size, n_layer=24, n_embd=256, n_head=4)
    page = opened(address_of(slow, CHARS))
    fill(page, start="LUCIO:\n", turns=0, length=5000)
    page.focus("#write")
    page.keyboard.press("Enter")
    page.wait_for_function("text.length > 20")
    assert page.evaluate("document.activeElement.id") == "write"  # the focus stays
    page.keyboard.press("Escape")
    before = page.evaluate("text")
    assert page.text_content("#said") == "Stopped." and len(before) < 4000
    page.focus("#cast")
    page.keyboard.press("Control+Enter")  # from everywhere
    page.wait_for_function("!document.getElementById('stop').disabled && text.length > 20")
    page.click("#stop")
    before = page.evaluate("text")
    page.click("#continue")
    page.wait_for_function(f"text.length > {len(before) + 5}")
    page.click("#continue")  # which takes over from the writing under way
    page.wait_for_function(f"text.length > {len(before) + 20}")
    page.click("#stop")
    text = page.evaluate("text")
    assert text.startswith(before)
    with page.expect_download() as got:
        page.click("#save")
    assert got.value.suggested_filename == "scene.txt"
    assert got.value.path().read_text(encoding="utf-8") == text.rstrip("\n") + "\n" * text.endswith("\n")


def test_stop_is_heard_while_a_long_prompt_is_read(exported, opened):
    page = opened(exported(tiny_model(vocab_size=CHARS.vocab_size, block_size=400), CHARS))
    header = dict(json.loads(page.text_content("#header")), kind="char")
    ran = page.evaluate(
        """async ([header, bytes]) => {  // the worker's code, in the page, with a network that counts
            let said = [], steps = 0, postMessage = (message) => said.push(message), onmessage;
            eval(document.getElementById("network").textContent + `;
                Network.prototype.step = function (token, last) {
                    const until = performance.now() + 5;
                    while (performance.now() < until);
                    steps++; this.length++;
                    return this.logits;
                };
                globalThis.hear = (data) => onmessage({data});`);
            hear({header, bytes: new Uint8Array(bytes)});
            const job = {cast: [], turns: 0, length: 1, temperature: 0, top_p: 1, seed: 1};
            hear({...job, job: 1, start: "L".repeat(400)});
            while (!said.some((message) => message.reading)) await new Promise((done) => setTimeout(done, 1));
            hear({stop: true});
            hear({...job, job: 2, start: "U"});
            while (!said.some((message) => message.done)) await new Promise((done) => setTimeout(done, 1));
            return {steps, done: said.filter((message) => message.done).map((message) => message.job)};
        }""",
        [header, 2 * sum(math.prod(shape) for shape in header["shapes"].values())],
    )
    assert ran["steps"] < 400 and ran["done"] == [2]


def test_wrong_values_are_refused_where_they_stand(address_of, opened):
    page = opened(address_of(tiny_model(vocab_size=CHARS.vocab_size), CHARS))
    for wrong in (
        dict(temperature=-1),
        dict(temperature=""),
        dict(top_p=1.5),
        dict(length=0),
        dict(turns=-1),
    ):
        page.evaluate("document.getElementById('more').open = false")
        page.evaluate("document.getElementById('more').open = true")
        fill(page, **wrong)
        page.evaluate("document.getElementById('more').open = false")
        page.click("#write")
        (name,) = wrong
        assert page.evaluate(
            f"document.activeElement.id === '{name}' && !document.activeElement.validity.valid"
        )
        assert page.evaluate("text") == "" and page.evaluate("document.getElementById('more').open")
        fill(page, **{name: {"temperature": 0.8, "top_p": 0.9, "length": 20, "turns": 0}[name]})
    for cast, words in ((",", "names nobody"), ("A" * 61, "at most 200 names"), ("Zoë", "ë")):
        fill(page, cast=cast)
        page.click("#write")
        page.wait_for_function(DONE)
        assert words in page.text_content("#said")
    assert len(written(page, cast="", start="LUCIO:", length=20)) == 26
    assert page.text_content("#said") == "Written."  # the error has gone


def test_an_unknown_character_is_named(address_of, opened):
    page = opened(address_of(tiny_model(vocab_size=CHARS.vocab_size), CHARS))
    written(page, start="Zoë €")
    assert all(c in page.text_content("#said") for c in "Zë€")
    assert "leave" in page.text_content("#said")


def test_what_is_refused_leaves_the_scene_and_enter_in_a_field_writes(address_of, opened, chatty):
    page = opened(address_of(chatty, CHARS))
    text = written(page, cast="LUCIO", start="", turns=2)
    written(page, cast="Zoë", turns=2)
    assert "ë" in page.text_content("#said") and page.evaluate("text") == text
    page.click("#change")
    page.fill("#edit", text + "ISABELLA:\nMine.\n")
    page.click("#undo")  # the change alone
    assert page.evaluate("text") == text and page.is_hidden("#edit")
    fill(page, cast="ISABELLA")
    page.press("#cast", "Enter")
    page.wait_for_function(DONE)
    assert page.evaluate("text").startswith("ISABELLA:\n")  # and the last speech was not written again
    page.reload()
    page.wait_for_function("!document.getElementById('write').disabled")
    page.click("#undo")
    assert page.evaluate("text") == text


def test_a_scene_that_was_pasted_is_gone_on_with(address_of, opened, chatty):
    page = opened(address_of(chatty, CHARS))
    assert page.is_disabled("#continue")
    page.click("#change")
    page.fill("#edit", "LUCIO:\nI am…\n\n")
    text = written(page, "continue", cast="ISABELLA", turns=1)
    assert [name for name, _ in speeches(text)] == ["LUCIO", "ISABELLA"] and "I am...\n" in text
    assert page.text_content("#said").startswith("Written. Punctuation")


def test_marks_that_phones_set_are_written_as_the_model_knows_them(address_of, opened):
    page = opened(address_of(tiny_model(vocab_size=CHARS.vocab_size), CHARS))
    text = written(page, start="LUCIO:\nI am… no！")
    assert text.startswith(as_known("LUCIO:\nI am… no！", CHARS)[0])


# ---------------------------------------------------------------------------- how it looks and sounds


@pytest.mark.parametrize("size", [dict(width=1200, height=900), dict(width=360, height=640)])
def test_it_fits_a_desk_and_a_phone_in_chinese_too(address_of, opened, size):
    address = address_of(tiny_model(vocab_size=CHARS.vocab_size), CHARS)
    page = opened(address, viewport=size, locale="zh-CN", color_scheme="dark")
    assert page.text_content("#write") == "开始写" and page.input_value("#start") == "LUCIO:"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.reload()  # as one finds it
    page.wait_for_function("!document.getElementById('write').disabled")
    for control in ("#write", "#scene"):
        box = page.locator(control).bounding_box()
        assert box["y"] + min(box["height"], 40) < size["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_words_stands_out_from_what_is_behind_it(exported, opened, scheme):
    """By 4.5 to 1, WCAG's contrast for text."""
    page = opened(exported(tiny_model(vocab_size=CHARS.vocab_size), CHARS), color_scheme=scheme)
    colours = page.evaluate(
        """() => Object.fromEntries(["desk", "paper", "ink", "soft", "accent", "on-accent"].map((name) => {
            document.body.style.color = `var(--${name})`;
            return [name, getComputedStyle(document.body).color.match(/[\\d.]+/g).map(Number)];
        }))"""
    )

    def light(name):
        parts = [c / 255 for c in colours[name][:3]]
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    def contrast(a, b):
        a, b = sorted((light(a), light(b)))
        return (b + 0.05) / (a + 0.05)

    pairs = [(ink, behind) for ink in ("ink", "soft", "accent") for behind in ("desk", "paper")]
    assert min(contrast(*pair) for pair in [*pairs, ("on-accent", "accent")]) >= 4.5


def test_a_selection_stays_while_more_is_written_and_sentences_are_read_out(address_of, opened):
    slow = newlines(tiny_model(vocab_size=CHARS.vocab_size, bias=True, n_layer=12), CHARS)
    page = opened(address_of(slow, CHARS))
    page.evaluate(
        """() => { window.read = []; new MutationObserver(() => read.push(spoken.textContent))
            .observe(spoken, {childList: true, characterData: true, subtree: true}); }"""
    )
    fill(page, start="LUCIO:\nSpeak.\n\nISABELLA:\n", turns=0, length=5000)
    page.click("#write")
    page.wait_for_function("text.length > 60")
    page.evaluate("getSelection().selectAllChildren(scene.children[0])")
    page.wait_for_function("text.length > 150")
    assert page.evaluate("String(getSelection())").upper().split() == ["LUCIO", "SPEAK."]
    page.click("#stop")
    told = page.evaluate("read")
    assert page.evaluate("text").endswith("".join(told)) and 0 < len(told) < 30


def test_what_a_checkpoint_holds_runs_nothing(address_of, opened, folder):
    evil = "</script><script>document.title='evil'</script>{{weights}}<img src=x onerror=alert(1)>"
    tok = CharTokenizer("".join(dict.fromkeys(evil + "LUCIO:\n")))
    gpt = tiny_model(vocab_size=tok.vocab_size)
    page = opened(address_of(gpt, tok, speakers=(evil[:59],)))
    assert page.title() == "Drama GPT" and page.input_value("#start").startswith("</script>")
    assert page.locator("#chips button").all_text_contents() == [evil[:59]]
    written(page, start=evil, temperature=1)
    assert page.title() == "Drama GPT" and page.locator("img").count() == 0


SCENES = [
    "A:\nI come.\n\n罗：\nI go.\n\nB: not\n\n" + "n" * 61 + ":\nlong",
    "\nbefore\n\nA:\none\n\ntwo *paragraphs*\n\nB ^:\n[[x]] _y_\n\n\nC:\n\nD:\nend\n\n",
]


@pytest.mark.parametrize("scene", SCENES)
def test_a_screenplay_is_what_sample_py_writes(exported, opened, scene):
    page = opened(exported(tiny_model(vocab_size=CHARS.vocab_size), CHARS))
    assert page.evaluate("(scene) => fountain(scene)", scene) == fountain([scene])
