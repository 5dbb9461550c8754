"""The page of tools.evaluate: in headless Chromium, what it shows is what the models said."""

import math
import string

import numpy as np
import pytest
import torch
from helpers import CPU, flags, play, tiny_model

from drama import checkpoint
from drama.tokenizer import BPETokenizer, CharTokenizer
from tools.evaluate.__main__ import load as load_model
from tools.evaluate.losses import Row, predict
from tools.evaluate.page import columns, write_page
from train_drama import Settings

EVIL = "</script><script>document.title='evil'</script><img src=x onerror=alert(1)>{{header}} \"'&amp;\\"
ODD = "\u2028שלום مرحبا\u202e\u200d\U0001f600x\u0301\x07\x1b\x85\t"
CHARS = CharTokenizer("".join(sorted(set(play() + EVIL + ODD + string.ascii_letters))))
PAIRS = BPETokenizer([*(bytes([b]) for b in range(256)), b"LU", b"\n\n", b"\n\nI", b" day", b"CIO", b":\n"])


@pytest.fixture
def shown(folder, call, browser):
    """shown(text, models={name: (model, tokenizer)}) is their page, with no error."""
    contexts, errors = [], []

    def show(text, name="play.txt", models=None, options=(), **how):
        for model_name, (model, tok) in (
            models or {"m": (tiny_model(vocab_size=len(CHARS.tokens)), CHARS)}
        ).items():
            (folder / model_name).mkdir()
            path = folder / model_name / "ckpt.pt"
            checkpoint.save(path, checkpoint.model_state(model, tok, Settings()))
        (folder / name).write_text(text, encoding="utf-8")
        out_dir = ",".join(models or ["m"])
        argv = flags(out_dir=out_dir, input=name, html="page.html", layout="keep", dtype="float32")
        status, out, err = call("evaluate.py", *argv, *options)
        assert (status, err) == (0, "") and out.endswith(
            f"page.html: {(folder / 'page.html').stat().st_size:,} bytes\n"
        )
        page = opened(folder / "page.html", **how)
        page.out = out
        return page

    def opened(file, **how):
        contexts.append(browser.new_context(offline=True, **how))
        page = contexts[-1].new_page()
        page.set_default_timeout(300_000)  # however busy the machine is
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.goto(file.as_uri())
        page.wait_for_selector("#legend span", state="attached")
        return page

    show.opened = opened
    yield show
    for context in contexts:
        context.close()
    assert errors == []


def wait(page, condition):
    """Until it is true; the browser's own way to wait needs eval, which the page forbids."""
    for _ in range(3000):  # minutes, however busy the machine is
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def likeliest(page) -> list[list[str]]:
    """The rows of the list beside the touched place, of one model: token and percent."""
    return page.eval_on_selector_all(
        "#likeliest tr", "rows => rows.map((row) => [row.cells[0].textContent, row.cells[2].textContent])"
    )


def visible(token: bytes) -> str:
    return token.decode("utf-8", "backslashreplace").replace("\n", "↵").replace(" ", "␣")


LETTERS = CharTokenizer("".join(sorted(set(play() + string.ascii_letters))))


def test_the_page_says_what_had_to_be_left_out(shown):
    model = tiny_model(vocab_size=LETTERS.vocab_size)
    page = shown("LUCIO:\nI am 罗罗.\n", models={"m": (model, LETTERS)})
    assert "a model does not know them: 2 characters" in page.text_content("#note")
    assert "('罗' 2)" in page.text_content("#note")


@pytest.mark.parametrize("tok", [LETTERS, PAIRS], ids=["characters", "byte pairs"])
def test_the_five_likeliest_are_the_model_s_own(shown, tok):
    model = tiny_model(vocab_size=tok.vocab_size)
    page = shown("LUCIO:\nI am a", models={"m": (model, tok)})
    ids = torch.from_numpy(tok.encode("\n\nLUCIO:\nI am a").astype(np.int64))
    if tok is LETTERS:
        assert len(ids) == 15
    begins = np.cumsum([0, *(len(tok.tokens[i]) for i in ids)]).tolist()
    for i in range(1, len(ids)):
        page.evaluate("(place) => touch(place)", begins[i])
        logits = model(ids[None, :i])[0][0, -1].log_softmax(-1)
        bits = -logits[ids[i]].item() / math.log(2)
        assert page.text_content("#said") == f"\u2068{visible(tok.tokens[ids[i]])}\u2069: {bits:.2f} bits"
        top = logits.exp().topk(5)
        percents = [f"{p} %" if p else "< 1 %" for p in (100 * top.values).round().int().tolist()]
        assert likeliest(page) == [
            [visible(tok.tokens[t]), p] for t, p in zip(top.indices, percents, strict=True)
        ]
        own = page.locator("#likeliest tr.own th").all_text_contents()
        assert own == [visible(tok.tokens[ids[i]])] * (ids[i] in top.indices)
    page.evaluate("touch(0)")
    assert likeliest(page) == [] and "given" in page.text_content("#likeliest")


def test_a_character_that_is_spelled_in_bytes_is_touched_as_one(shown):
    text = "LUCIO:\nno \U0001f600é day\n"
    page = shown(text, models={"m": (tiny_model(vocab_size=PAIRS.vocab_size), PAIRS)})
    ids = PAIRS.encode("\n\n" + text)
    nats = predict(load_model("m", CPU).model, ids, CPU, "context")[0]
    at = [i for i, token in enumerate(ids) if PAIRS.tokens[token][0] >= 0x80]
    assert len(at) == 6
    for place, tokens in (("\U0001f600", at[:4]), ("é", at[4:])):
        page.evaluate("(c) => touch(text.indexOf(c))", place)
        bits = sum(nats[i - 1] for i in tokens) / math.log(2)
        said = page.text_content("#said")
        assert said.startswith(f"\u2068{place}\u2069: ") and abs(float(said.split()[-2]) - bits) < 0.03
    assert page.text_content("#text") == "\n\n" + text


def test_the_table_is_what_was_printed_and_the_tokens_add_up_to_it(shown):
    page = shown(play(30) + "\n" + play(20, seed=1))
    rows = [row for group in page.evaluate("rows") for row in group]
    printed = [line.rsplit(None, 2) for line in page.out.splitlines() if line[:1].isalpha()][-len(rows) - 1 :]
    assert [[name, f"{n:,}", f"{bits:.4f}"] for name, n, (bits,) in rows] in (
        printed,
        printed[:-1],
        printed[1:],
    )
    _, characters, (bits,) = rows[-1]
    told = page.evaluate("models[0].bits.reduce((sum, b) => sum + b, 0) / 100")
    assert abs(told - bits * characters) <= 0.005 * characters + 1e-6
    cells = page.eval_on_selector_all("#rows tbody tr", "rows => rows.map((r) => r.cells[1].textContent)")
    assert cells == [f"{bits:.3f}" for _, _, (bits,) in rows]


def test_a_text_runs_nothing_and_stays_as_it_is(shown):
    evil = f"{EVIL[:58]}:\n{EVIL}\n{ODD}\n\n" * 2
    models = {f"<img src=x {n}>": (tiny_model(n, vocab_size=CHARS.vocab_size), CHARS) for n in (1, 2)}
    page = shown(evil, name="<img src=x onerror=alert(1)>.txt", models=models)
    assert page.title().startswith("<img") and page.locator("img").count() == 0
    assert page.evaluate("text").strip() == evil.strip()
    assert (
        page.eval_on_selector_all("#text div", "all => all.map((e) => e.textContent).join('')").strip()
        == evil.strip()
    )
    for view in range(3):
        page.select_option("#view", index=view)
        wait(page, f"viewed.length === {1 + view // 2}")
        for place in range(0, len(evil), 7):
            page.evaluate("(place) => touch(place)", place)
    assert page.locator("img").count() == 0
    for c, spelled in (("\u202e", "U+202E "), ("\x07", "U+0007 "), ("\u2028", "U+2028 "), ("\t", "U+0009 ")):
        page.evaluate("(c) => touch(text.indexOf(c))", c)
        assert page.text_content("#said").startswith(f"\u2068{spelled}\u2069:")


def test_a_click_touches_a_character_and_arrows_move_on(shown):
    page = shown("LUCIO:\nGood my crown\nspeak\n\nISABELLA:\nNo\n")
    here = lambda: page.evaluate("text.slice(touched.from)")  # noqa: E731
    for n in range(9, 22):  # each of the second line, at its left and at its right side
        for side in (0.2, 0.8):
            x, y = page.evaluate(
                """([n, side]) => {
                    touch(0);
                    const span = [...document.querySelectorAll("#text span")].findLast((s) => s.start <= n);
                    const range = new Range();
                    range.setStart(span.firstChild, n - span.start);
                    range.setEnd(span.firstChild, n - span.start + 1);
                    const box = range.getBoundingClientRect();
                    return [box.left + side * box.width, box.top + box.height / 2];
                }""",
                [n, side],
            )
            page.mouse.click(x, y)
            assert page.evaluate("touched.from") == n
    assert here().startswith("n\nspeak")
    for key, expected in (
        ("ArrowRight", "\nspeak"), ("ArrowRight", "speak"), ("ArrowLeft", "\nspeak"), ("ArrowRight", "speak"),
        ("ArrowDown", "\nISABELLA"), ("ArrowDown", "ISABELLA"), ("ArrowUp", "\nISABELLA"),
        ("ArrowUp", "speak"), ("ArrowUp", "Good"), ("ArrowUp", "LUCIO"),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert here().startswith(expected), key
        assert page.locator(".here").count() == 1 and page.text_content("#said")
    page.keyboard.press("ArrowUp")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert page.evaluate("touched.from") == 0
    page.reload()
    page.wait_for_selector("#legend span", state="attached")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")  # nothing was touched yet
    assert page.evaluate("document.activeElement.id") == "text" and page.text_content("#said")


def test_two_models_are_compared_across_tokenizers(shown):
    text = "LUCIO:\nGood day\n"
    models = {
        "a": (tiny_model(vocab_size=CHARS.vocab_size), CHARS),
        "b": (tiny_model(1, vocab_size=PAIRS.vocab_size), PAIRS),
    }
    page = shown(text, models=models)
    names = ["\u2068a\u2069", "\u2068b\u2069"]
    assert page.locator("#view option").all_text_contents() == [*names, " − ".join(names)]
    a, b = page.evaluate("rows.at(-1)[0][2]")
    value = lambda: page.text_content("#rows tbody:last-child td")  # noqa: E731
    assert value() == f"{a:.3f}"
    page.evaluate("touch(text.indexOf('d day'))")
    page.select_option("#view", index=1)
    wait(page, f"document.querySelector('#rows tbody:last-child td').textContent === '{b:.3f}'")
    page.select_option("#view", index=2)
    wait(page, f"document.querySelector('#rows tbody:last-child td').textContent === '{a - b:+.3f}'")
    assert page.locator("#likeliest table").count() == 2
    sums = page.evaluate(
        """() => {  // over all places, and what is said of each
            let sum = 0, wrong = 0;
            for (let place = 0; place < text.length; place = touched.to) {
                touch(place);
                sum += touched.bits;
                const better = `\\u2068${touched.bits < 0 ? "a" : "b"}\\u2069 predicts it better`;
                wrong += Math.abs(touched.bits) > 0.01 && !$("said").textContent.includes(better);
            }
            return [sum, wrong];
        }"""
    )
    whole = page.evaluate("models.map((model) => model.bits.reduce((sum, b) => sum + b, 0) / 100)")
    assert sums == [pytest.approx(whole[0] - whole[1], abs=1e-6), 0]
    cool, warm = page.locator("#text .cool").count(), page.locator("#text [class^=n]:not(.cool)").count()
    assert cool and warm


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_every_shade(shown, scheme):
    """By 4.5 to 1, WCAG's contrast for text."""
    model = tiny_model(vocab_size=CHARS.vocab_size), CHARS
    page = shown(play(3), models=dict(a=model, b=model), color_scheme=scheme)

    def contrasts():
        return page.evaluate(
            """() => {
                const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
                const light = (colour) => {
                    context.fillStyle = colour;
                    context.fillRect(0, 0, 1, 1);
                    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((c) => c / 255)
                        .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
                    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
                };
                const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
                const of = (e) => {
                    const {color, backgroundColor} = getComputedStyle(e);
                    return contrast(light(color), light(backgroundColor));
                };
                const found = [...document.querySelectorAll("#legend span")].map(of);
                for (const words of ["ink", "soft", "accent"]) for (const paper of ["desk", "paper"]) {
                    document.body.style.cssText = `color: var(--${words}); background: var(--${paper})`;
                    found.push(of(document.body));
                }
                document.body.style.cssText = "";
                return found;
            }"""
        )

    assert len(contrasts()) == 9 + 6 and min(contrasts()) >= 4.5
    page.select_option("#view", index=2)
    page.wait_for_selector("#legend .cool")
    assert len(contrasts()) == 8 + 6 and min(contrasts()) >= 4.5


@pytest.mark.parametrize("size", [dict(width=1200, height=900), dict(width=360, height=640)])
def test_it_fits_a_desk_and_a_phone_in_chinese_too(shown, size):
    page = shown("W" * 300 + "\n" + play(10), viewport=size, locale="zh-CN")
    assert page.text_content("#scale").startswith("底色") and page.get_attribute("html", "lang") == "zh-CN"
    page.locator("#text").click(position=dict(x=60, y=80))
    assert page.text_content("#said").endswith("比特")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    text, said = page.locator("#text").bounding_box(), page.locator("#said").bounding_box()
    assert text["y"] < 120 and said["y"] < size["height"] - 20
    beside = size["width"] > 800
    assert (said["x"] > text["x"] + text["width"]) == beside


def test_a_long_text_has_few_elements_and_is_painted_where_one_looks(shown, folder):
    class One:
        tok, name = CHARS, "m"

    text = "\n\n" + play(4000)
    assert len(text) > 400_000
    ids, draw = CHARS.encode(text), np.random.default_rng(0)
    n = len(ids) - 1
    told = columns(CHARS, ids, draw.exponential(2, n), draw.random((n, 5)), draw.integers(30, size=(n, 5)))
    row = Row("all", n, np.array([2.0 * n]))
    write_page(folder / "long.html", [("long", text)], [One], [[told]], [[], [], [row]], "")
    page = shown.opened(folder / "long.html")
    for place in ("", "scrollTo(0, document.documentElement.scrollHeight)"):
        page.evaluate(place)
        wait(page, "placeAt(300, innerHeight / 2) !== undefined")
        assert page.evaluate("document.querySelectorAll('*').length") < 20_000
    assert page.evaluate("placeAt(300, innerHeight / 2) > text.length / 2")
    assert page.evaluate("chunks.map(({div}) => div.textContent).join('') === text")
    page.evaluate("touch(9, true)")  # far away
    wait(page, "scrollY < 500")
    assert page.locator(".here").count() == 1


def test_a_vocabulary_of_fewer_than_five_shows_them_all(shown):
    tok = CharTokenizer("\nab")
    page = shown("abba\nab\n", models={"m": (tiny_model(vocab_size=3), tok)})
    page.evaluate("touch(5)")
    assert sorted(token for token, _ in likeliest(page)) == sorted("↵ab")
