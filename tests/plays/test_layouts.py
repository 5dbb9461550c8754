"""Plays in the usual forms: recognised, made into the one form, and nothing is guessed silently."""

import json
from collections import Counter

import pytest
from helpers import ROOT, play
from hypothesis import given
from hypothesis import strategies as st

from drama.plays.layouts import Layout, convert
from drama.speech import fountain

SPEECHES = [
    ("ANNA", ["Where is the well?", "I saw it once."]), ("BEN", ["Behind the house."]),
    ("ANNA", ["Then hear this: come."]), ("OLD MAN", ["I come."]),
] * 10  # fmt: skip


def written(heading="{}:\n", line="{}\n", between="\n", before="", speeches=SPEECHES) -> str:
    parts = [heading.format(name) + "".join(map(line.format, lines)) for name, lines in speeches]
    return before + between.join(parts)


ONE_FORM = written()
TITLE_CASE = [(name.title(), lines) for name, lines in SPEECHES]
FORMS = [
    ("colon", written("{}: ", between="")),
    ("colon", written("{}: ")),
    ("colon", written("{} (aside): ", between="[Enter BEN,\nrunning.]\n")),
    ("colon", written("{}:\n", between="")),  # no empty line between two speeches
    ("dot", written("{}. ", between="", before="ACT I\n\nSCENE 1. A field.\n")),
    ("caps", written("{}\n", before="THE WELL\n\na play by nobody\n\nACT I\n\n")),
    ("caps", written("        {}\n    (softly)\n", "  {}\n", between="")),
    ("markdown", written("**{}**  \n", before="# The Well\n\n## Act I\n\n*Enter\nboth.*\n\n")),
    ("markdown", written("**{}:** ", between="\n_Exit._\n\n")),
    ("fountain", written("{} (O.S.)\n(softly)\n", between="\nShe walks.\n\n", before="INT. HOUSE - DAY\n\n")),
]


@pytest.mark.parametrize("form,text", FORMS)
def test_every_usual_form_becomes_the_one_form(form, text):
    found = convert(text)
    assert (found.text, found.layout) == (ONE_FORM, form)
    assert (found.speeches, found.names) == (40, ["ANNA", "BEN", "OLD MAN"])
    assert convert(text, form) == found and convert(text, "keep").text == text


@pytest.mark.parametrize("form,text", [
    ("indent", written("{}\n", "    {}\n", between="", speeches=TITLE_CASE)),
    ("gap", written("{}\t", between="", speeches=TITLE_CASE)),
    ("colon", written("{}: ", between="", speeches=TITLE_CASE)),
])  # fmt: skip
def test_names_need_no_capitals_where_the_form_shows_them(form, text):
    found = convert(text)
    assert (found.text, found.layout) == (written(speeches=TITLE_CASE), form)


@pytest.mark.parametrize("heading", ["{}：", "{}（旁白）：", "{}\u3000", "{}:"])
def test_chinese_plays(heading):
    speeches = [("安娜", ["井在哪里？", "我见过。"]), ("老人", ["在屋后：那边。"])] * 10
    found = convert(written(heading, before="第一幕\n\n", speeches=speeches))
    colon = ":" if heading == "{}:" else "："
    assert found.text == written("{}" + colon + "\n", speeches=speeches)
    assert (found.names, found.left_out) == (["安娜", "老人"], 1)


def test_a_play_in_the_one_form_stays_and_loses_only_spaces_at_the_ends_of_lines():
    for text in (ONE_FORM, play(), written("{}：\n")):
        assert (convert(text).text, convert(text).layout) == (text, "")
    found = convert(written("{}: \n", "{}  \n"))
    assert (found.text, found.layout, found.speeches) == (ONE_FORM, "", 40)


def test_what_is_no_play_is_left_as_it_is():
    prose = "He said: nothing at all.  \nShe left. It rained.\n\n" * 50
    recipe = "".join(f"Step {n}: stir.\nNote: do not boil.\n" for n in range(50))
    words = "".join(f"word{n}: its meaning\n" for n in range(200))
    chapters = "".join(f"CHAPTER {n}\n\n{prose}" for n in range(9))
    verse = "    O moon\n  O sun\n\nand stars   \n" * 50
    pages = [*ROOT.glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/[!s]*.md")]  # samples.md holds scenes
    files = [path.read_text(encoding="utf-8") for path in pages]
    for text in (prose, recipe, words, chapters, verse, "", "\n", *files):
        assert (convert(text).text, convert(text).layout) == (text, "")


@given(st.text(max_size=60), st.sampled_from(Layout.__args__))
def test_any_text_has_an_answer_in_any_form(text, form):
    found = convert(text, form)
    assert found.speeches >= len(found.names)
    convert((text + "\n") * 10, form)


SAID = "Where is the well?\nBehind the house.\nThen come.\n"


@pytest.mark.parametrize("heading,names", [
    ("{}:\n", ["MR. SMITH", "MRS. SMITH"]), ("{}: ", ["MR. SMITH", "MRS. SMITH", "ANNA"]),
    ("{}: ", ["Nora", "Mrs. Linde", "Dr. Rank"]), ("{}. ", ["MRS. WARREN", "REV. S", "VIVIE"]),
    ("{}: ", ["1ST CITIZEN", "2ND CITIZEN"]), ("{}. ", ["1. BÜRGER", "2. BÜRGER"]),
    ("{}: ", ["ANNA", "BEN", "ANNA, BEN", "ANNA and BEN"]), ("{}\n", ["ANNA", "McGREGOR", "O'BRIEN"]),
    ("\u00a0\u00a0{}: ", ["ANNA", "BEN"]), ("{}: ", ["JEAN-LUC", "ÉMILE", "COP #1"]),
])  # fmt: skip
def test_names_of_every_kind_are_kept(heading, names):
    parts = [heading.format(name) + SAID for name in names * 10]
    found = convert("\n".join(parts))
    assert found.names == names and found.speeches == 10 * len(names) and not found.left_out
    assert found.text == "\n".join(f"{name}:\n{SAID}" for name in names * 10)


@pytest.mark.parametrize("aside", ["HARPAGON, à part.", "HARPAGON, bas à La Flèche.", "HARPAGON (bas)."])
def test_french_asides_after_a_comma(aside):
    found = convert(f"{aside} {SAID}\nCLÉANTE. {SAID}\n" * 10)
    assert found.names == ["HARPAGON", "CLÉANTE"] and found.speeches == 20


@pytest.mark.parametrize("cue", ["ANNA (V.O.) (CONT'D)", "MR. SMITH", "DR. GRANT (O.S.)", "McCOY ^"])
def test_screenplays_cues(cue):
    found = convert(f"INT. HOUSE\n\n{cue}\nHello.\n\nHe runs.\n\nBEN\nGo.\n\n" * 10)
    assert found.layout == "fountain" and found.speeches == 20 and found.names[1] == "BEN"


def test_a_bracket_that_is_not_closed_takes_no_speech_with_it():
    for form, text in (
        ("fountain", written("{}\n(softly\n")),
        ("colon", written("{}: ", between="[Enter\n")),
    ):
        found = convert(text + "\nBEN\n(loud)\nGo.\n" * (form == "fountain"), form)
        assert found.speeches >= 40 and "I come." in found.text


def test_what_is_said_of_acts_and_ends_is_no_heading():
    words = ["THE END IS NEAR", "ACT NOW", "SCENE OF THE CRIME", "#metoo is a thing", "第二场雨下了。"]
    speeches = [("ANNA", words), ("BEN", ["FADE INTO DARKNESS"])] * 10
    assert convert(written("{}: ", speeches=speeches)).text == written(speeches=speeches)


def test_a_form_that_would_leave_out_most_of_a_text_is_not_taken():
    text = "WE ARE THE DAY\nTHEY ARE THE NIGHT\n" * 60
    assert convert(text).text == text


def test_novels_and_addresses_have_no_speakers():
    for text in ("他笑道：“来。”\n她问道：“哪里？”\n" * 40, "http://a.b\nhttps://c.d\n" * 40):
        assert convert(text).text == text


def test_marks_within_words_and_sums_stay():
    text = "**Anna** 5 * 3 * 2 = a_b_c and *this* _that_.\n\n**Ben** So.\n\n" * 10
    assert convert(text).text.startswith("Anna:\n5 * 3 * 2 = a_b_c and this that.\n")


def test_names_without_capitals_are_taken_where_the_form_is_named():
    text = "".join(f"{name}. {SAID}" for name in ("Nora", "Helmer") * 10)
    assert convert(text).text == text and convert(text, "dot").names[:2] == ["Nora", "Helmer"]


@pytest.mark.parametrize(
    "piece", [" ", "\u3000", "\t", "(\n", "[\n", "[[", "/*", "*", "_", "**", "A", "A ", "A,"]
)
def test_no_text_takes_long(piece):
    """Where a pattern looks back from every character, each of these takes minutes: a test that hangs."""
    for form in ("auto", "fountain", "markdown", "colon"):
        convert("a" + piece * 200_000 + "b\nINT. HOUSE\n", form)


LINES = st.lists(st.text("abc '.,?!-*_[]àé", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=3)
PLAYS = st.lists(st.tuples(st.sampled_from(["ANNA", "BEN", "First Lord"]), LINES), min_size=1, max_size=8)


@given(PLAYS)
def test_a_screenplay_of_ours_is_read_back(speeches):
    def spoken(line):
        return not (line.startswith("[") or "[[" in line or "]]" in line or set(line) <= set("-*_ "))

    speeches = [(name, [line for line in lines if spoken(line)]) for name, lines in speeches]
    text = written(speeches=[(name, lines) for name, lines in speeches if lines])
    assert convert(fountain([text]), "fountain").text == text


def test_prepare_says_what_it_found_and_the_names_are_the_model_s(call, folder):
    (folder / "a.txt").write_text("The Well\n\n" + written("{}: ", between="") * 3)
    (folder / "b.fountain").write_text(written("{}\n", between="\nA tree.\n\n") * 3)
    status, out, _ = call("prepare.py", "--input=.", "--dataset=mine")
    assert status == 0
    assert "(--layout=keep takes it as it is); 1 lines left out (headings, stage directions)" in out
    assert "120 speeches by 3 speakers (ANNA, BEN, OLD MAN)" in out and "the layout fountain" in out
    assert json.loads((folder / "data/mine/meta.json").read_text())["speakers"] == ["ANNA", "BEN", "OLD MAN"]


def test_a_form_that_a_text_is_not_in_is_refused(call, folder):
    (folder / "a.txt").write_text(ONE_FORM * 3)
    status, _, err = call("prepare.py", "--input=a.txt", "--dataset=mine", "--layout=markdown")
    assert status == 2 and "a.txt: no speech in the layout markdown; try another --layout" in err


def test_no_line_of_a_speech_is_lost():
    for _, text in FORMS:
        lost = Counter(ONE_FORM.split("\n")) - Counter(convert(text).text.split("\n"))
        assert not lost
