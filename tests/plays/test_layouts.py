"""Plays in the usual layouts: certain and converted, or left alone with the reason."""

import json
import random

import pytest
from helpers import ROOT, play
from hypothesis import given
from hypothesis import strategies as st

from drama.plays.layouts import Layout, Reader, convert
from drama.speech import fountain

draw = random.Random(0)
SAID = ["Where is the well?", "Behind the house.", "I saw it once. Come!", "I say this: not now.", "Why not?"]


def dialogue(*names: str, n: int = 40, said=SAID) -> list[tuple[str, str]]:
    """Speeches whose speakers come in no fixed order; each speaks twice or more."""
    order = []
    for name in [*names, *names[::-1], *draw.choices(names, k=n)]:
        order += [name] if order[-1:] != [name] else []  # nobody answers himself
    return [(name, "\n".join(draw.choices(said, k=draw.choice((1, 1, 2))))) for name in order]


def typed(speeches, heading="{}: ", between="", line="{}") -> str:
    return between.join(
        heading.format(name) + "\n".join(map(line.format, said.split("\n"))) + "\n" for name, said in speeches
    )


def one_form(speeches, colon=":") -> str:
    return "\n".join(f"{name}{colon}\n{said}\n" for name, said in speeches)


SPEECHES = dialogue("ANNA", "BEN", "OLD MAN")
TITLED = [(name.title(), said) for name, said in SPEECHES]
LAYOUTS = [
    ("colon", "{}: "),
    ("colon", "{}:\n"),
    ("colon", "{} (aside): "),
    ("colon", "{}: (softly) "),
    ("dot", "{}. "),
    ("dot", "{} [rising]. "),
    ("dash", "{} — "),
    ("dash", "{}.—"),
    ("dash", "{} - "),
    ("caps", "{}\n"),
    ("caps", "        {}\n    (softly)\n"),
    ("gap", "{}\t"),
    ("gap", "{}  "),
    ("markdown", "**{}** "),
    ("markdown", "**{}:** "),
    ("markdown", "_{}._ "),
    ("markdown", "**{}**  \n"),
    ("brackets", "【{}】"),
]


@pytest.mark.parametrize("between", ["", "\n", "(Exit.)\n", "\n[Enter a boy (running)\nwith a lamp.]\n\n"])
@pytest.mark.parametrize("layout,heading", LAYOUTS)
def test_every_layout_is_found_with_and_without_empty_lines_and_directions(layout, heading, between):
    found = convert(typed(SPEECHES, heading, between))
    assert (found.text, found.reason) == (one_form(SPEECHES), "")
    assert found.layout in (layout, "")  # "" where it was in the one form
    assert set(found.cast) == {"ANNA", "BEN", "OLD MAN"}
    assert convert(typed(SPEECHES, heading, between), layout).text == found.text


@pytest.mark.parametrize(
    "layout,text",
    [
        ("indent", typed(TITLED, "{}\n", line="    {}")),
        ("gap", typed(TITLED, "{}\t")),
        ("colon", typed(TITLED)),
        ("markdown", typed(TITLED, "**{}** ")),
    ],
)
def test_names_need_no_capitals_where_the_layout_shows_them(layout, text):
    found = convert(text)
    assert (found.text, found.layout) == (one_form(TITLED), layout)


def test_title_case_before_a_full_stop_is_taken_where_it_is_named_and_a_line_says_so():
    text = typed(TITLED, "{}. ", "\n")
    assert convert(text).text == text and "--layout=dot" in convert(text).reason
    assert convert(text, "dot").text == one_form(TITLED)


@pytest.mark.parametrize(
    "heading,colon",
    [
        ("{}：", "："),
        ("{}（旁白）：", "："),
        ("{}\u3000", "："),
        ("{}:", ":"),
        ("【{}】", "："),
        ("{}：\n", "："),
    ],
)
def test_chinese_plays(heading, colon):
    speeches = dialogue("安娜", "老人", "王掌柜", said=["井在哪里？", "我见过。", "在屋后，那边。"])
    front = "第1集\n\n人物：王掌柜、安娜\n\n1-1 日 内 客厅\n△安娜上。\n\n第二幕：夜\n\n"
    found = convert(front + typed(speeches, heading, "\n"))
    assert found.text == one_form(speeches, colon) and set(found.cast) == {"安娜", "老人", "王掌柜"}


def test_japanese_speeches_in_corner_brackets():
    speeches = dialogue("太郎", "花子", said=["井戸はどこ？", "知らない。", "行こう！"])
    quoted = [(name, f"「{said}」") for name, said in speeches]
    found = convert(typed(quoted, "{}"))
    assert (found.text, found.layout) == (one_form(speeches, "："), "quotes")


@pytest.mark.parametrize(
    "layout,heading,names",
    [
        ("colon", "{}: ", ["SGT. PEPPER", "J.R.", "8-BALL", 'EMMETT "DOC" BRANN', "'ENRY"]),
        ("colon", "{}: ", ["MR. SMITH", "MRS. SMITH", "ANNA"]),
        ("colon", "{}: ", ["Nora", "Mrs. Linde", "Dr. Rank"]),
        ("colon", "{}: ", ["1ST CITIZEN", "2ND CITIZEN", "COP #1"]),
        ("dot", "{}. ", ["1. BÜRGER", "2. BÜRGER", "ANNA"]),
        ("dot", "{}. ", ["MRS. WARREN", "REV. S", "VIVIE"]),
        ("caps", "{}\n", ["ANNA", "McGREGOR", "O'BRIEN"]),
        ("colon", "{}: ", ["ANNA", "BEN", "ANNA, BEN", "ANNA and BEN"]),
        ("colon", "\u00a0\u00a0{}: ", ["ANNA", "BEN"]),
        ("colon", "{}: ", ["JEAN-LUC", "ÉMILE", "LE COMTE"]),
        ("colon", "\u200f{}: ", ["ANNA", "BEN"]),
        ("colon", "\u200b{}\u200e: ", ["ANNA", "BEN"]),
        ("colon", "{}: ", ["Анна", "Первый мужик", "Князь Иван"]),
        ("colon", "{}: ", ["Ein alter Mann", "Die Gräfin", "Frau v. Stein"]),
        ("fountain", "{}\n", ["8-BALL", "MR. SMITH"]),
    ],
)
def test_names_of_every_kind_are_kept(layout, heading, names):
    speeches = dialogue(*names)
    between = "\n" if layout == "fountain" else ""
    found = convert(typed(speeches, heading, between), "fountain" if between else "auto")
    assert found.text == one_form(speeches) and found.layout == layout


def test_a_minor_speaker_in_title_case_is_found_among_capitals_and_a_colon_within_a_speech_is_not_one():
    speeches = [
        *dialogue("ANNA", "BEN"),
        ("Groom", "The horses are ready.\nJohn: an earring for you,\nno more."),
    ]
    speeches += dialogue("ANNA", "BEN")
    assert convert(typed(speeches)).text == one_form(speeches)


@pytest.mark.parametrize("shout", ["O WOE", "HELP", "STOP.", "NO!", "**No!**"])
def test_what_is_shouted_within_a_speech_is_no_name(shout):
    speeches = [
        *dialogue("ANNA", "BEN"),
        ("ANNA", f"They come,\n{shout}\nand we are here."),
        *dialogue("ANNA", "BEN"),
    ]
    for heading in ("{}: ", "{}. ", "{}\n", "**{}** "):
        found = convert(typed(speeches, heading, "\n"))
        assert shout.strip("*.!") not in [name.strip(".!") for name in found.cast] and len(
            found.speeches
        ) == len(speeches)


def test_directions_beside_a_known_name_need_no_mark():
    speeches = dialogue("LIZA", "MRS. PEARCE", "CLEO")
    text = typed(speeches, "{}. ", "\n")
    extra = "LIZA [rising] I am here.\n\nMRS. PEARCE [rising (at last)] So am I.\n\n(laughing) CLEO. Yes.\n\n"
    added = [("LIZA", "I am here."), ("MRS. PEARCE", "So am I."), ("CLEO", "Yes.")]
    assert convert(extra + text).text == one_form([*added, *speeches])


@pytest.mark.parametrize("aside", ["HARPAGON, à part.", "HARPAGON, bas à La Flèche.", "HARPAGON (bas)."])
def test_french_asides_after_a_comma(aside):
    speeches = dialogue("HARPAGON", "CLÉANTE")
    text = typed(speeches, "{}. ") + f"{aside} Où est le puits ?\n"
    assert convert(text).text == one_form([*speeches, ("HARPAGON", "Où est le puits ?")])


def test_what_begins_with_a_name_and_a_comma_is_said_by_another():
    said = "I say.\nAnna, je te défends de le dire à personne: jamais."
    speeches = [*SPEECHES, ("BEN", said), *SPEECHES]
    titled = [(name.title(), words) for name, words in speeches]
    assert convert(typed(titled)).speeches == titled


@pytest.mark.parametrize("group", ["All", "Old men", "Both"])
def test_who_speaks_once_in_the_one_form_without_empty_lines_is_heard(group):
    words = ["All is well.", "Both of them, all night.", "The old men sleep. Why?", "When?"]
    titled = [(name.title(), said) for name, said in dialogue("ANNA", "BEN", "OLD MAN", said=words)]
    speeches = [*titled, (group, "Long live the king!"), *titled]
    assert convert(typed(speeches, "{}:\n")).speeches == speeches


@pytest.mark.parametrize("group", ["All", "Both"])
def test_a_group_that_speaks_once_before_a_colon_is_heard_where_its_name_is_a_common_word(group):
    words = ["We are all here, both of us.", "Are both well? Are all?", "All night. Both nights."]
    titled = [(name.title(), said) for name, said in dialogue("ANNA", "BEN", "CARL", said=words)]
    speeches = [*titled, (group, "Long live the king!"), *titled]
    assert convert(typed(speeches)).speeches == speeches


@pytest.mark.parametrize("heading", ["{}: ", "{}:\n"])
@pytest.mark.parametrize("name", ["Alexander", "1 Old", "All 3", "3", "Time"])
def test_who_speaks_once_before_a_colon_is_heard(heading, name):
    words = ["The old men are all here.", "Old as we, all 3.", "Is it all? Old men,"]
    titled = [(who.title(), said) for who, said in dialogue("ANNA", "BEN", "CARL", said=words)]
    speeches = [*titled, ("Anna", "All are here."), (name, "Long live the king!"), *titled]
    assert convert(typed(speeches, heading)).speeches == speeches


def test_a_line_below_a_name_is_said_though_it_ends_as_names_do_or_is_in_capitals():
    speeches = [*SPEECHES, ("ANNA", "Perhaps oftener:\nwho knows?"), ("BEN", "I, I."), *SPEECHES]
    assert convert(typed(speeches, "{}:\n")).speeches == speeches


def test_a_name_that_reads_as_a_heading_or_has_a_bracket_behind_it_is_heard():
    speeches = [*dialogue("EST", "GORBODUC", "1 SC. LORD"), ("GORBODUC", "Madame (alas) I come.")]
    assert convert(typed(speeches, "{}. ")).speeches == speeches


def test_a_bracket_over_two_lines_of_a_sentence_in_verse_is_said():
    speeches = [*SPEECHES, ("ANNA", "I come,\n(As he who came,\nAnd saw it once)\nto you."), *SPEECHES]
    assert convert(typed(speeches)).speeches == speeches


def test_what_stands_beside_a_name_without_a_mark_is_kept_where_the_speech_is_indented():
    speeches = [*SPEECHES, ("ANNA en le saluant bien bas", "Where is it?"), *SPEECHES]
    found = convert(typed(speeches, "{}\n", "\n", "    {}"))
    assert (found.speeches, found.layout) == (speeches, "indent")


def test_numbered_strophes_are_no_speakers():
    speeches = [*SPEECHES, ("ANNA", "1. Where is it?\n2. Not here.\n3. Come!"), *SPEECHES]
    assert convert(typed(speeches, "{}. ")).speeches == speeches


@pytest.mark.parametrize("heading", ["{}. ", "{}\t", "**{}** "])
def test_who_speaks_once_is_heard_after_a_speech_that_is_broken_off(heading):
    speeches = [*SPEECHES, ("ANNA", "But see,"), ("LOVEALL", "Convey him anywhere."), *SPEECHES]
    assert convert(typed(speeches, heading)).speeches == speeches


@pytest.mark.parametrize("heading", ["{}: ", "{}\n", "{}:\n"])
def test_a_speaker_s_name_is_no_cast_list_where_it_comes_back(heading):
    speeches = dialogue("CAST", "SCA", "VIR")
    assert convert("Cast:\nCASTRUCCIO\n\n" + typed(speeches, heading, "\n")).speeches == speeches


def test_a_name_and_a_word_in_capitals_are_not_one_name():
    speeches = [*SPEECHES, ("ANNA", "I. You. We."), *SPEECHES, ("BEN", "O. Well."), *SPEECHES]
    assert convert(typed(speeches, "{}. ")).speeches == speeches


DIRECTIONS = [
    "(Exit.)",
    "[Enter BEN,\nrunning.]",
    "(He (the boy) falls.)",
    "(Exit.) (A bell.)",
    "[Exit",
    "（下）",
]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("heading", ["{}: ", "{}:\n", "{}. ", "{}\n", "{}\t", "**{}** "])
def test_a_direction_within_a_speech_is_dropped_and_the_speech_goes_on(direction, heading):
    within = ("ANNA", f"Wait (she said so).\n{direction}\nI hear them.")
    told = ("ANNA", "Wait (she said so).\nI hear them.")
    text = typed([*SPEECHES, within, *SPEECHES], heading, "\n")
    assert convert(text).text == one_form([*SPEECHES, told, *SPEECHES])


HEADINGS = [
    "ACT I",
    "Act Two",
    "ACTE PREMIER",
    "ERSTER AUFZUG",
    "Zweiter Akt",
    "JORNADA PRIMERA",
    "ATTO SECONDO",
    "THE END",
    "ДЕЙСТВИЕ ПЕРВОЕ",
    "第二幕：夜",
    "SCENE I. A public place in the city, before the palace of the old duke.",
    "* * *",
    "SCÈNE IV. LE COMTE, LA COMTESSE",
    "Dritte Szene",
    "IM WALDE",
    "----",
    "剧终",
]


@pytest.mark.parametrize("heading", HEADINGS)
@pytest.mark.parametrize("layout", ["{}: ", "{}. ", "{}\n", "{}:\n", "**{}** "])
def test_headings_are_no_speech(heading, layout):
    before, after = dialogue("ANNA", "BEN"), dialogue("ANNA", "BEN")
    text = typed(before, layout, "\n") + f"\n{heading}\n\n" + typed(after, layout, "\n")
    assert convert(text).text == one_form(before + after)


def test_what_is_said_of_acts_and_ends_is_no_heading():
    words = "THE END IS NEAR,\nACT NOW!\nSCENE OF THE CRIME?\n#metoo is a thing\nFine.\n"
    words += "First act well, then speak.\n..."
    speeches = dialogue("ANNA", "BEN", said=[words, "Where?"])
    assert convert(typed(speeches, between="\n")).text == one_form(speeches)


def test_header_and_licence_cast_and_page_numbers_are_no_speech():
    pages = [dialogue("ANNA", "BEN", "CARL") for _ in range(4)]
    body = "".join(typed(page) + f"\n\f{12 + n}\n" for n, page in enumerate(pages))
    front = "The Project Gutenberg eBook\nLanguage: English\n\n"
    front += "*** START OF THE PROJECT GUTENBERG EBOOK 1 ***\n\nTHE WELL\n"
    cast = "\nDramatis Personae\n\nANNA: a cook\nBEN: her son\nCARL: a guest\n\nACT I\nA room.\n\n"
    licence = "\n*** END OF THE PROJECT GUTENBERG EBOOK 1 ***\nSECTION: you may copy it.\n" * 50
    assert convert(front + cast + body + licence).text == one_form(
        [speech for page in pages for speech in page]
    )


def test_a_play_in_the_one_form_stays_and_loses_only_spaces_at_the_ends_of_lines():
    stanzas = [*SPEECHES, ("ANNA", "A song:\nit has two parts.\n\nAnd this is the other."), *SPEECHES]
    for text in (one_form(SPEECHES), play(), one_form(SPEECHES, "："), one_form(stanzas)):
        assert (convert(text).text, convert(text).layout) == (text, "")
    assert convert(one_form(SPEECHES).replace("\n", " \n")).text == one_form(SPEECHES)


def test_two_layouts_in_one_file_are_left_alone():
    for second in ("{}. ", "**{}** ", "{}\t"):
        text = (
            typed(SPEECHES, between="\n")
            + "\nTHE OTHER PLAY\n\n"
            + typed(dialogue("CARL", "DORA"), second, "\n")
        )
        assert convert(text).text == text and convert(text).reason


def test_paragraphs_that_may_be_directions_are_put_into_nobody_s_mouth():
    speeches = dialogue("ANNA", "BEN", n=300)
    parts = typed(speeches, between="\n").split("\n\n")
    few = "\n\n".join([*parts[:50], "She walks to the door.", *parts[50:]])
    found = convert(few)
    assert found.text == one_form(speeches) and [few.split("\n")[i] for i in found.doubtful] == [
        "She walks to the door."
    ]
    many = "\n\nShe walks to the door.\n\n".join(parts)
    assert convert(many).text == many and "not understood" in convert(many).reason


@pytest.mark.parametrize("name", ["R2;D2", "AN%A", "AN\x1b]0;NA", "<ANNA>"])
@pytest.mark.parametrize("between", ["", "\n"])
def test_a_speaker_whose_name_is_no_name_speaks_in_nobody_else_s_speech(name, between):
    speeches = dialogue(name, "BEN", "CARL", said=[f"Where are the {n} wells?" for n in range(100)])
    for text in (typed(speeches, "{}: ", between), typed(speeches, "{}:\n", between)):
        found = convert(text)
        kept = found.text == text and found.doubtful and "not understood" in found.reason
        assert kept or {speaker for speaker, _ in found.speeches} == {name, "BEN", "CARL"}


def no_plays() -> list[str]:
    names, times = ("Anna", "Ben", "Carl"), range(200)
    said = [draw.choice(SAID) for _ in times]
    who = [draw.choice(names) for _ in times]
    both = list(zip(who, said, times, strict=True))
    prose = "He said: nothing at all.  \nShe left. It rained.\n\n" * 50
    return [
        "",
        "\n",
        prose,
        "".join(f"CHAPTER {n}\n\n{prose}" for n in range(9)),
        "\n".join(f"{name} said: “{words}”" for name, words, _ in both),
        "\n".join(f"{name}: “{words}” The rain fell." for name, words, _ in both),
        "他笑道：“来！”\n她问道：“哪里？”\n" * 40,
        "".join(
            f"{n}\n00:00:{n % 60:02},000 --> 00:00:{n % 60:02},900\n{a}: {words}\n\n" for a, words, n in both
        ),
        "\n".join(f"[12:{n % 60:02}] {name}: {words}" for name, words, n in both),
        "\n".join(f"{name} (12:{n % 60:02}): {words}" for name, words, n in both),
        "\n".join(f"1/2/24, 9:{n % 60:02} PM - {name}: {words}" for name, words, n in both),
        "\n".join(f"12:{n % 60:02} <{name}> {words}" for name, words, n in both),
        "\n".join(f"X:{n}\nT:The Well\nM:6/8\nK:D\nw:{words}\n" for _, words, n in both),
        "\n".join(f"From: {a}\nTo: Ben\nDate: May\nSubject: {words}\n\n{words}\n" for a, words, _ in both),
        "\n".join(f"Pie {n}\n\nIngredients:\nflour\n\nMethod:\nStir. Is it hot?\n" for n in times),
        "\n".join(f"{draw.choice(('INFO', 'ERROR'))}: {words}" for words in said),
        "\n".join(f"{n} {name}. {words}" for name, words, n in both),
        "ab\tc\n" * 300,
        "\n".join(f"commit {n:040}\nAuthor: {a} <a@b>\nDate: Mon\n\n    {words}\n" for a, words, n in both),
        "\n".join(
            f"NAME\n    ls{n}\n\nSYNOPSIS\n    ls\n\nDESCRIPTION\n    Lists. Why not?\n" for n in times
        ),
        "\n".join(f"Version {n}\n\nAdded:\n- {words}\n\nFixed:\n- A bug.\n" for _, words, n in both),
        "\n".join(f"CHAPTER {n}. The Well ......... {3 * n}" for n in times),
        "http://a.b\nhttps://c.d\n" * 40,
        "\n\n".join(f"Q: {words}\nA: Behind the house." for words in said),
        "\n".join(f"word{n}: its meaning" for n in times),
        "    O moon\n  O sun\n\nand stars   \n" * 50,
        "WE ARE THE DAY\nTHEY ARE THE NIGHT\n" * 60,
    ]


def test_what_is_no_play_is_left_as_it_is():
    pages = [
        *ROOT.glob("*.py"),
        *ROOT.glob("drama/**/*.py"),
        *ROOT.glob("docs/[!s]*.md"),
    ]  # samples.md holds scenes
    for text in (*no_plays(), *(path.read_text(encoding="utf-8") for path in pages)):
        found = convert(text)
        assert (found.text, found.layout) == (text, ""), text[:200]


# ----------------------------------------------------------------------------- screenplays


@pytest.mark.parametrize(
    "cue", ["ANNA (V.O.) (CONT'D)", "MR. SMITH", "DR. GRANT (O.S.)", "McCOY ^", "8-BALL", "@Zoé"]
)
def test_screenplays_cues(cue):
    text = f"INT. HOUSE\n\n{cue}\nHello?\n\nHe runs.\n\n141  INT. CABIN - NIGHT  141\n\n"
    text += "BEN\n(softly)\nGo!\n\nCUT TO:\n\n"
    found = convert(text * 10)
    assert found.layout == "fountain" and len(found.speeches) == 20
    assert {said for _, said in found.speeches} == {"Hello?", "Go!"}


def test_two_spaces_keep_a_screenplay_s_speech_together_and_lyrics_are_sung():
    text = "INT. HOUSE\n\nANNA\nOne?\n  \nTwo.\n\nBEN\n~La la!\n[[a note]] *Yes*, _no_.\n\nShe walks.\n\n" * 6
    assert convert(text).text.startswith("ANNA:\nOne?\n\nTwo.\n\nBEN:\nLa la!\nYes, no.\n")


LINES = st.lists(st.text("abc '.,?!-*_[]àé", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=3)
PLAYS = st.lists(st.tuples(st.sampled_from(["ANNA", "BEN", "First Lord"]), LINES), min_size=1, max_size=8)


@given(PLAYS)
def test_a_screenplay_of_ours_is_read_back(speeches):
    def spoken(line):
        return not (line.startswith("[") or "[[" in line or "]]" in line or set(line) <= set("-*_ "))

    speeches = [(name, [line for line in lines if spoken(line)]) for name, lines in speeches]
    text = one_form([(name, "\n".join(lines)) for name, lines in speeches if lines])
    assert convert(fountain([text]), "fountain").text == text


# ----------------------------------------------------------------------------- any text at all


@given(st.text(max_size=60), st.sampled_from(Layout.__args__))
def test_any_text_has_an_answer_in_any_layout(text, layout):
    found = convert(text, layout)
    assert len(found.speeches) >= len(found.cast)
    convert((text + "\n") * 10, layout)


@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "\u3000",
        "\t",
        "(\n",
        "[\n",
        "(",
        "[[",
        "/*a",
        "*",
        "_",
        "**",
        "A",
        "A ",
        "A,",
        "A\n",
        "A:\n",
        "ANNA: (\n",
        "_a\n",
        "12\n",
        "ACT I\n",
        "「",
        "Mr. ",
        "Personen\n",
        "ANNA\nWhat?\nBEN\nNo.\n",
    ],
)
def test_no_text_takes_long(piece):
    """Where a pattern looks back from every character, each of these takes minutes: a test that hangs."""
    for layout in ("auto", "fountain", "markdown", "colon"):
        convert("a" + piece * (400_000 // len(piece)) + "b\nINT. HOUSE\n", layout)


def test_a_long_text_is_read_whole_in_few_layouts(monkeypatch):
    """Each layout that is read costs as much as all else."""
    read, lines = Reader.read, []

    def counted(reader, *args, **kwargs):
        lines.append(len(reader.lines))
        return read(reader, *args, **kwargs)

    monkeypatch.setattr(Reader, "read", counted)
    forms = [heading for _, heading in LAYOUTS if heading.count("\n") < 2]
    mixed = "".join(
        draw.choice(forms).format(name) + said + "\n" for name, said in dialogue("ANNA", "BEN", n=20_000)
    )
    assert convert(mixed).reason and sum(lines) < 4 * mixed.count("\n")
    lines.clear()
    text = typed(dialogue("ANNA", "BEN", "CARL", n=20_000))
    assert convert(text).layout == "colon" and sum(lines) < 2 * text.count("\n")


def test_of_a_long_text_that_is_no_play_only_a_beginning_is_read(monkeypatch):
    read, lines = Reader.read, []
    monkeypatch.setattr(Reader, "read", lambda r, *a, **k: (lines.append(len(r.lines)), read(r, *a, **k))[1])
    text = "ANN:\nBEN:\nBEN:\n" * 60_000
    assert convert(text).text == text and convert(text).reason and sum(lines) < 2 * text.count("\n")


def test_a_long_text_of_lines_too_short_for_speech_is_left_alone_unless_its_layout_is_named():
    text = typed([(name, "x") for name, _ in dialogue("A", "B", "C", n=90_000)], "{}\n")
    assert convert(text).text == text and "short" in convert(text).reason
    assert len(convert(text, "caps").cast) == 3


# ----------------------------------------------------------------------------- what prepare.py says


def test_prepare_says_what_it_found_and_the_names_are_the_model_s(call, folder):
    (folder / "a.txt").write_text("The Well\n\n" + typed(SPEECHES * 3))
    (folder / "b.fountain").write_text(typed(SPEECHES * 2, "{}\n", "\nA tree.\n\n"))
    status, out, _ = call("prepare.py", "--input=.", "--dataset=mine")
    assert status == 0 and "from the layout colon (--layout=keep takes it as it is)" in out
    assert "1 lines left out (headings 1, stage directions 0)" in out and "from the layout fountain" in out
    assert f"{3 * len(SPEECHES)} speeches by 3 speakers" in out
    speakers = json.loads((folder / "data/mine/meta.json").read_text())["speakers"]
    assert set(speakers) == {"ANNA", "BEN", "OLD MAN"}


def test_a_preview_shows_the_cast_what_is_left_out_and_what_is_doubtful_and_writes_nothing(call, folder):
    (folder / "a.txt").write_text("The Well\n\n" + typed(SPEECHES * 3) + "(Exit.)\n(not closed\nANNA: Yes.\n")
    status, out, _ = call("prepare.py", "a.txt", "--preview=true")
    assert status == 0 and not (folder / "data").exists()
    for words in ("layout: colon", "OLD MAN: ", "line 1: The Well", "(Exit.)", "doubtful", "(not closed"):
        assert words in out


def test_lines_that_stood_in_the_way_are_named(call, folder):
    text = "\n\nShe walks to the door.\n\n".join(typed(SPEECHES, between="\n").split("\n\n"))
    (folder / "a.txt").write_text(text * 3)
    status, out, _ = call("prepare.py", "a.txt")
    assert (
        status == 0
        and "the text is taken as it is" in out
        and "'She walks to the door.'" in out
        and "line 3" in out
    )


def test_a_layout_that_a_text_is_not_in_is_refused(call, folder):
    (folder / "a.txt").write_text(one_form(SPEECHES) * 3)
    status, _, err = call("prepare.py", "--input=a.txt", "--dataset=mine", "--layout=markdown")
    assert status == 2 and "a.txt: no speech in the layout markdown; try another --layout" in err


def test_many_lines_of_a_letter_or_two_are_no_play_but_chinese_ones_may_be(monkeypatch):
    monkeypatch.setattr("drama.plays.layouts.MANY", 100)
    assert "lines as short" in convert("A:\nx\n" * 60).reason
    speeches = "罗：\n好。\n\n茱：\n不。\n\n罗：\n为何？\n\n茱：\n走！\n\n"
    assert convert(speeches * 20).reason == convert(speeches * 5).reason
    assert "lines as short" not in convert(speeches * 20).reason


def test_a_place_among_speeches_without_empty_lines_is_nobody_s_word():
    typed = "\n".join(4 * ["ANNA: Where are we?", "BEN: In a wood!"])
    play = convert(typed)
    found = convert(typed.replace("\nANNA", "\nScene: a wood.\nANNA"))
    assert play.speeches == found.speeches and found.kinds.count("heading") == 3
