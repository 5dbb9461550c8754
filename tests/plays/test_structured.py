"""TEI and Final Draft: whose words they are and how they stand there, and what is refused."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configurator import UserError
from drama.plays.speakers import cleaned
from drama.plays.structured import read

HEADER = (
    "<teiHeader><profileDesc><particDesc><listPerson>{}</listPerson></particDesc></profileDesc></teiHeader>"
)
PEOPLE = "".join(
    f'<person xml:id="{key}"><persName>{name}</persName></person>'
    for key, name in (("anna", "Anna"), ("just", "Justinius"), ("mad", "Madame Wagner"))
)


@pytest.fixture
def file(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "play.xml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def tei(file):
    """tei(body, ...) is the play that is read of it."""

    def reading(body: str, people: str = PEOPLE, front: str = "", back: str = "") -> str:
        header = HEADER.format(people)
        text = f"<text><front>{front}</front><body>{body}</body><back>{back}</back></text>"
        return read(file(f'<TEI xmlns="http://www.tei-c.org/ns/1.0">{header}{text}</TEI>'))

    return reading


@pytest.fixture
def lines(tei):
    """lines(words) is how one speech of ANNA's comes out."""

    def spoken(words: str) -> list[str]:
        return tei(f'<sp who="#anna"><speaker>ANNA.</speaker>{words}</sp>').text.splitlines()[1:]

    return spoken


def test_speeches_come_out_in_the_one_form_without_what_nobody_says(tei):
    play = tei(
        "<head>Act One</head><stage>Night.</stage>"
        '<sp who="#anna"><speaker>ANNA, <stage>aside.</stage></speaker>'
        "<l>Where is <stage>turns</stage>the well?</l>"
        "<note>A well.</note><l>I saw it<fw>12</fw> once.</l></sp>"
        '<sp who="#ben"><speaker>BEN (laughing):</speaker><p>Behind\n   the  house.</p></sp><p>Nobody.</p>'
    )
    assert play.text == "ANNA:\nWhere is the well?\nI saw it once.\n\nBEN:\nBehind the house.\n"
    assert play.kind == "TEI" and play.cast == {"ANNA": 1, "BEN": 1}
    assert play.left_out == {"headings": 1, "stage directions": 3, "notes": 1, "lines outside speeches": 1}


@pytest.mark.parametrize("words,expected", [
    ("<lg><l>a</l><l>b</l></lg><ab>c</ab>", ["a", "b", "c"]),
    ("<p><s>Go.</s><s>Now!</s></p>", ["Go. Now!"]),
    ("<p><seg>Go.</seg><seg>Now!</seg> <q>Yes</q>, <hi>n</hi>o</p>", ["Go. Now! Yes, no"]),
    ("<q><l>a</l></q>", ["a"]),
    ("<p>one<lb/>two</p>", ["one", "two"]),
    ("<l>a long line that<lb/>turns</l>", ["a long line that turns"]),
    ('<p>moun-<lb break="no"/>\n tain hill<lb break="no"/>side</p>', ["mountain hillside"]),
    ("<p>moun-<lb/>tain, moun¬<pb/>tain, U-<lb/>Boot</p>", ["mountain, mountain, U-Boot"]),
    ("<p>moun<pb n='2'/>tain and <pb/> more</p>", ["mountain and more"]),
    ('<l part="I">Half</l><stage>He sits.</stage><l part="F">a line</l><l>next</l>', ["Half a line", "next"]),
    ('<l part="F">begun by another</l><l>next</l>', ["begun by another", "next"]),
    ("<p><w>Who</w>\n<w>is</w><pc>,</pc>\n<w>there</w></p>", ["Who is, there"]),
    ("<ab><w>Who</w>\n<c> </c>\n<w>is</w>\n<c> </c>\n<w>there</w>\n<pc>?</pc></ab>", ["Who is there?"]),
    ("<ab><w>Who</w><w>is</w><pc>,</pc><pc>(</pc><w>there</w><pc>)</pc></ab>", ["Who is, (there)"]),
    ("<p>he <choice><orig>vp</orig>\n<reg>up</reg></choice>, <choice><corr>a</corr><sic>q</sic></choice></p>",
     ["he up, a"]),
    ("<p><choice><abbr>Mr</abbr><expan>Master</expan></choice> <sic>hym</sic></p>", ["Master hym"]),
    ("<p>a <app><lem>word</lem><rdg>ward</rdg></app> <app><rdg>one</rdg><rdg>two</rdg></app></p>",
     ["a word one"]),
    ("<p>a &amp; b &#8212; c&#173;d</p>", ["a & b — cd"]),
])  # fmt: skip
def test_words_are_put_together_as_they_are_spoken(lines, words, expected):
    assert lines(words) == expected


def test_one_person_has_one_name(tei):
    said = [
        ("#just", "Jus."), ("#just", "Iust."), ("#just", "Justinius"),
        ("#anna", "ANNA."), ("#anna", "ANNA, aside."),
        ("#anna", None), ("#mad", "Mad. Wagn."), ("#just #anna", "BOTH."), ("#just #mad", None), ("", "ANNA"),
        ("#stranger", "ANOTHER."), ("#stranger", "A. STRANGER."), ("#stranger", "ANOTHER."),
        ("#anna", "ANNA"), ("#anna", "ANNA"), ("#anna", "ANNA"),
    ]  # fmt: skip
    label = "<speaker>{}</speaker>".format
    play = tei("".join(f'<sp who="{who}">{label(name) if name else ""}<p>x</p></sp>' for who, name in said))
    assert re.findall(r"(.+):\n", play.text) == [
        "Justinius", "Justinius", "Justinius", "ANNA", "ANNA", "ANNA", "Madame Wagner", "BOTH",
        "Justinius, Madame Wagner", "ANNA", "ANOTHER", "ANOTHER", "ANOTHER", "ANNA", "ANNA", "ANNA",
    ]  # fmt: skip


def test_a_play_of_abbreviations_has_the_names_of_its_list(tei):
    said = [("#just", "Jus.")] * 5 + [("#anna", "Hanna.")] * 2
    play = tei("".join(f'<sp who="{who}"><speaker>{name}</speaker><p>x</p></sp>' for who, name in said))
    assert play.cast == {"Justinius": 5, "Anna": 2}


def test_a_group_keeps_the_label_of_each_speech(tei):
    people = '<personGrp xml:id="crowd"><name>Crowd</name></personGrp>'
    play = tei(
        "".join(f'<sp who="#crowd"><speaker>{n}</speaker><p>x</p></sp>' for n in ("ONE", "ALL")), people
    )
    assert play.cast == {"ONE": 1, "ALL": 1}


def test_what_nobody_is_named_for_is_left_out_and_counted(tei):
    play = tei("<sp><p>Who am I?</p></sp><sp><speaker>ANNA</speaker><p>You.</p></sp>")
    assert play.text == "ANNA:\nYou.\n" and play.left_out == {"speeches without a name": 1}


def test_prologues_and_epilogues_are_spoken(tei):
    play = tei(
        "<sp><speaker>ANNA</speaker><p>x</p></sp>",
        front='<div type="prologue"><head>The Prologus</head><l>Hear!</l></div>'
        '<div type="preface"><p>No.</p></div>',
        back="<epilogue><l>Go</l><l>home.</l></epilogue>"
        '<div type="epilogue"><sp><speaker>BEN</speaker><l>Good night.</l></sp></div>',
    )
    assert play.text == "Prologus:\nHear!\n\nANNA:\nx\n\nEpilogue:\nGo\nhome.\n\nBEN:\nGood night.\n"


@pytest.mark.parametrize("label,name", [
    ("ANNA, aside.", "ANNA"), ("ANNA: leise", "ANNA"), ("[BEN]", "BEN"), ("(laughing) CLEO.", "CLEO"),
    ("ANNA, BEN.", "ANNA, BEN"), ("MRS. PEARCE [rising]", "MRS. PEARCE"), ("'ENRY.", "'ENRY"), (" .: ", ""),
    ("A " * 60, ("A " * 30).strip()), ("王掌柜：", "王掌柜"),
])  # fmt: skip
def test_a_label_is_a_name_without_directions(label, name):
    assert cleaned(label) == name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("prolog", [
    "", '<?xml version="1.0" encoding="{}"?>\n',
    '<?xml version="1.0" encoding="{}"?><!DOCTYPE TEI.2 PUBLIC "-//TEI//DTD" "http://127.0.0.1:1/tei2.dtd" '
    "[<!ENTITY % TEI.drama 'INCLUDE'>]>",
])  # fmt: skip
@pytest.mark.parametrize("root", ["TEI", "TEI.2", "tei:TEI"])
def test_all_teis_are_read_in_all_encodings(file, encoding, prolog, root):
    if encoding == "latin-1" and not prolog:
        pytest.skip("nothing tells the encoding")
    p = root[: root.find(":") + 1]
    name = '<castList><castItem><role id="zoe">Zoé</role></castItem></castList>'.replace("<", f"<{p}")
    name = name.replace(f"<{p}/", f"</{p}")
    names = ' xmlns:tei="http://www.tei-c.org/ns/1.0"' if p else ""
    body = f'<{root}{names}><{p}text>{name}<{p}sp who="zoe"><{p}p>À bientôt</{p}p></{p}sp></{p}text></{root}>'
    text = prolog.format(encoding.removesuffix("-sig")) + body
    assert read(file(text.encode(encoding))).text == "Zoé:\nÀ bientôt\n"


def test_the_letters_of_a_dtd_that_is_not_fetched_are_known(file):
    doctype = '<!DOCTYPE TEI.2 SYSTEM "http://127.0.0.1:1/tei2.dtd">'
    body = "<TEI.2><text><sp><speaker>ZO&Eacute;</speaker><p>Caf&eacute; &mdash; {}</p></sp></text></TEI.2>"
    assert read(file(doctype + body.format("x"))).text == "ZOÉ:\nCafé — x\n"
    with pytest.raises(UserError, match="&chapter;"):
        read(file(doctype + body.format("&chapter;")))


BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize("content,words", [
    (f'<!DOCTYPE TEI [<!ENTITY a0 "x">{BOMB}]><TEI>&a9;</TEI>', "declares an entity"),
    ('<!DOCTYPE TEI [<!ENTITY a SYSTEM "file:///etc/passwd">]><TEI>&a;</TEI>', "declares an entity"),
    ('<!DOCTYPE TEI [<!ENTITY % a SYSTEM "http://127.0.0.1:1/a">%a;]><TEI/>', "declares an entity"),
    ("<TEI><text><sp><p>x</p></text></TEI>", "not well-formed"),
    ("<TEI><text>&eacute;</text></TEI>", "not well-formed"), ("", "not well-formed"),
    ("ANNA: x", "not well-formed"),
    ("<TEI><text><p>A novel.</p></text></TEI>", "without a speech"), ("<FinalDraft/>", "without a speech"),
    ("<PLAY><SPEECH/></PLAY>", "another kind (<PLAY>)"), ("<TEI>" + "<div>" * 10_000, "within each other"),
    ("<TEI><note>" + "<note>" * 10_000, "within each other"),
    ('<?xml version="1.0" encoding="gb18030"?><TEI/>', "encoding"),
    ('<?xml version="1.0" encoding="klingon"?><TEI/>', "encoding"),
])  # fmt: skip
def test_what_is_not_safe_or_no_play_is_refused_in_one_line(file, content, words):
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        read(file(content))
    assert "\n" not in str(refused.value) and str(refused.value).count("play.xml") == 1


TAGS = ("sp speaker l p lg stage note head choice orig reg app lem rdg w c s seg lb pb div person persName "
        "text TEI q")  # fmt: skip
ATTRIBUTES = ("", ' type="prologue"', ' who="#a"', ' who="#a #b"', ' xml:id="a"', ' part="I"', ' part="F"')
trees = st.recursive(
    st.sampled_from(["Anna: ", "wo-", " ", "\n", "&lt;"]),
    lambda inner: st.builds(
        lambda tag, attribute, parts: f"<{tag}{attribute}>{''.join(parts)}</{tag}>",
        st.sampled_from(TAGS.split()), st.sampled_from(ATTRIBUTES), st.lists(inner, max_size=4),
    ),
    max_leaves=40,
)  # fmt: skip


@given(trees)
def test_any_nesting_is_read_in_the_one_form_or_refused(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "any.xml"
    path.write_text(f"<TEI><text><sp><speaker>ANNA</speaker>{tree}</sp>{tree}</text></TEI>", encoding="utf-8")
    try:
        play = read(path)
    except UserError as e:
        assert "without a speech" in str(e)
        return
    for speech in play.text[:-1].split("\n\n"):
        assert re.match(r"[^\n:：]{1,60}[:：]\n[^\n]", speech)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", play.text)


@pytest.mark.parametrize(
    "filling", [" ", "-", "<lb/> ", '<lb break="no"/>', "<w>a</w>", '<l part="F"/>', "a"]
)
def test_time_grows_with_the_length_alone(file, filling):
    words = "x" + filling * (1_000_000 // len(filling))
    path = file(f"<TEI><text><sp><speaker>ANNA</speaker><p>{words}</p></sp></text></TEI>")
    started = time.process_time()
    read(path)
    assert time.process_time() - started < 3


def test_a_screenplay_of_final_draft_is_read(file):
    paragraph = '<Paragraph Type="{}"><Text>{}</Text></Paragraph>'.format
    note = "<ScriptNote><Paragraph><Text>Cut?</Text></Paragraph></ScriptNote>"
    dual = paragraph("Character", "BEN") + paragraph("Dialogue", "No!")
    content = "".join((
        paragraph("Scene Heading", "INT. HOUSE"), paragraph("Action", "Anna waits."),
        paragraph("Character", "ANNA (V.O.)"), paragraph("Parenthetical", "(low)"),
        f'<Paragraph Type="Dialogue"><Text>Where is </Text>{note}<Text Style="Bold">the well?</Text>',
        "</Paragraph>", paragraph("Lyrics", "La la"), paragraph("Action", "She goes."),
        paragraph("Character", "ANNA (CONT'D)"), paragraph("Dialogue", "Well?"),
        f"<Paragraph><DualDialogue>{dual}</DualDialogue></Paragraph>",
        paragraph("Transition", "CUT TO:"),
    ))  # fmt: skip
    title = f"<TitlePage><Content>{paragraph('Dialogue', 'By me')}</Content></TitlePage>"
    play = read(file(f'<?xml version="1.0"?><FinalDraft><Content>{content}</Content>{title}</FinalDraft>'))
    assert play.text == "ANNA:\nWhere is the well?\nLa la\n\nANNA:\nWell?\n\nBEN:\nNo!\n"
    assert (
        play.kind == "Final Draft" and play.left_out["action"] == 2 and play.left_out["parentheticals"] == 1
    )
