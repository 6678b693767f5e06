"""Header fields of strangers become text and addresses, whatever they hold, in time that grows with their length."""

import encodings
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deliver.headers import addresses, decode

CORPORA = Path(__file__).resolve().parent.parent.parent / "shared" / "corpora"
FIELD = re.compile(rb"(?m)^([!-9;-~]+)[ \t]*:((?:.*(?:\n|\Z))(?:[ \t].*(?:\n|\Z))*)")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        # RFC 2047 section 8, but for the parentheses, which are there in what is shown, too.
        (b"(=?ISO-8859-1?Q?a?=)", "(a)"),
        (b"(=?ISO-8859-1?Q?a?= b)", "(a b)"),
        (b"(=?ISO-8859-1?Q?a?= =?ISO-8859-1?Q?b?=)", "(ab)"),
        (b"(=?ISO-8859-1?Q?a?=  =?ISO-8859-1?Q?b?=)", "(ab)"),
        (b"(=?ISO-8859-1?Q?a?=\n   =?ISO-8859-1?Q?b?=)", "(ab)"),
        (b"(=?ISO-8859-1?Q?a_b?=)", "(a b)"),
        (b"(=?ISO-8859-1?Q?a?= =?ISO-8859-2?Q?_b?=)", "(a b)"),
        (b"=?US-ASCII?Q?Keith_Moore?= <moore@cs.utk.edu>", "Keith Moore <moore@cs.utk.edu>"),
        (b"=?ISO-8859-1?Q?Keld_J=F8rn_Simonsen?= <keld@dkuug.dk>", "Keld Jørn Simonsen <keld@dkuug.dk>"),
        (
            (
                b"=?ISO-8859-1?B?SWYgeW91IGNhbiByZWFkIHRoaXMgeW8=?=\n "
                b"=?ISO-8859-2?B?dSB1bmRlcnN0YW5kIHRoZSBleGFtcGxlLg==?="
            ),
            "If you can read this you understand the example.",
        ),
        # RFC 2231 section 5
        (b"=?US-ASCII*EN?Q?Keith_Moore?= <moore@cs.utk.edu>", "Keith Moore <moore@cs.utk.edu>"),
        (b"=?iso-8859-2*sl?Q?Doma=E8e?=", "Domače"),
    ],
)
def test_the_examples_of_the_standards_are_decoded(raw: bytes, text: str) -> None:
    assert decode(raw) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" one\n two\n", "one two"),
        (b" one\r\n\ttwo\r\n", "one two"),
        (b" one\n\t two\tthree\n", "one  two\tthree"),
        (b"\n one\n", "one"),
        (b" a =?utf-8?q?b?=\n c\n", "a b c"),
    ],
)
def test_folded_lines_become_one(raw: bytes, text: str) -> None:
    assert decode(raw) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Grüße".encode(), "Grüße"),
        ("Grüße".encode("latin-1"), "Grüße"),
        ("Grüße =?utf-8?q?=C3=A9?=".encode(), "Grüße é"),
    ],
)
def test_raw_8_bit_is_utf_8_or_else_latin_1(raw: bytes, text: str) -> None:
    assert decode(raw) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"=?no-such-charset?q?Gr=FC=DFe?=", "Grüße"),
        (b"=?no-such-charset?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        (b"=??q?Gr=FC=DFe?=", "Grüße"),
        (b"=?us-ascii?q?Gr=FC=DFe?=", "Grüße"),
        (b"=?us-ascii?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        (b"=?utf-8?q?Gr=FC=DFe?=", "Grüße"),
        (b"=?rot13?q?abc?=", "abc"),
        (b"=?punycode?q?abc-?=", "abc-"),
        (b"=?unicode_escape?q?=5Cu0041?=", "\\u0041"),
        (b"=?undefined?q?abc?=", "abc"),
        (b"=?a\x00b?q?abc?=", "abc"),
        (b"=?\xff?q?abc?=", "abc"),
    ],
)
def test_an_unknown_or_untrue_charset_does_not_hide_the_text(raw: bytes, text: str) -> None:
    assert decode(raw) == text


@pytest.mark.parametrize(
    ("charset", "encoded", "text"),
    [
        ("windows-1252", b"=93Hi=94", "“Hi”"),
        ("x-windows-1252", b"=93Hi=94", "“Hi”"),
        ("cp-1252", b"=93Hi=94", "“Hi”"),
        ("win-1251", b"=CF=F0=E8", "При"),
        ("windows1251", b"=CF=F0=E8", "При"),
        ("windows-874", b"=A1", "ก"),
        ("windows-31j", b"=82=A0", "あ"),
        ("x-sjis", b"=82=A0", "あ"),
        ("x-gbk", b"=C4=E3", "你"),
        ("ks_c_5601-1987", b"=8Cc=B9=E6", "똠방"),
        ("iso-8859-8-i", b"=F9", "ש"),
        ("utf8mb4", b"=F0=9F=98=80", "😀"),
    ],
)
def test_charsets_that_python_calls_by_another_name_or_not_at_all_are_known(
    charset: str, encoded: bytes, text: str
) -> None:
    assert decode(b"=?" + charset.encode() + b"?Q?" + encoded + b"?=") == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"=?utf-8?b?w6TDtg?=", "äö"),  # no padding
        (b"=?utf-8?b?w6Q=w7Y=?=", "äö"),  # two pieces in one
        (b"=?utf-8?b?w6 T\tDtg==?=", "äö"),  # blanks within
        (b"=?utf-8?b?w6TDtgA?=", "äö\ufffd"),  # its NUL shows
        (b"=?utf-8?b?YWJjZ?=", "abc"),  # six bits too many
        (b"=?utf-8?b?????=", ""),
        (b"=?utf-8?q?100%_=zz_=3?=", "100% =zz =3"),
        (b"=?utf-8?q?what??=", "what?"),
        (b"=?utf-8?q?really?=?", "really?"),
        (b"=?utf-8?q?=C3?= =?utf-8?q?=A9?=", "é"),  # cut within a character
        (b"=?utf-8?b?w?==?utf-8?q?x?=", "x"),  # no blank between two words
        (b"=?utf-8?q?=E4=BD=A0=E5=A5?=", "你\ufffd"),  # cut at the end
        (b"x=?utf-8?q?=C3=B6?=y", "xöy"),
        (b'"=?utf-8?q?=C3=B6?=" <a@b.org>', '"ö" <a@b.org>'),
    ],
)
def test_damaged_encoded_words_are_read_as_far_as_they_go(raw: bytes, text: str) -> None:
    assert decode(raw) == text


@pytest.mark.parametrize(
    "raw", [b"=?", b"=?=", b"=?utf-8", b"=?utf-8?x?abc?=", b"=?utf-8?q?abc", b"a =?utf-8?q b?= c", b"=??", b"=?=?=?="]
)
def test_what_is_no_encoded_word_stays(raw: bytes) -> None:
    assert decode(raw) == raw.decode()


def test_blanks_before_what_is_no_encoded_word_stay() -> None:
    assert decode(b"=?utf-8?q?a?=  =?utf-8") == "a  =?utf-8"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a\x00b", "a\ufffdb"),
        (b"a\rb\nc", "a b c"),
        (b"=?utf-8?q?a=0D=0AX-Evil:_1=00?=", "a  X-Evil: 1\ufffd"),
        (b"=?utf-7?q?+2AA-?=", "\ufffd"),  # a lone surrogate
    ],
)
def test_no_line_end_nul_or_surrogate_comes_out(raw: bytes, text: str) -> None:
    assert decode(raw) == text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        # RFC 5322 appendix A.1.2, A.1.3, A.5, A.6.1, A.6.3
        (b'"Joe Q. Public" <john.q.public@example.com>', ["john.q.public@example.com"]),
        (
            b'Mary Smith <mary@x.test>, jdoe@example.org,\n Who? <one@y.test> , "Giant; \\"Big\\" Box" <s@e.net>',
            ["mary@x.test", "jdoe@example.org", "one@y.test", "s@e.net"],
        ),
        (
            b"A Group:Ed Jones <c@a.test>,joe@where.test,John <jdoe@one.test>;",
            ["c@a.test", "joe@where.test", "jdoe@one.test"],
        ),
        (b"Undisclosed recipients:;", []),
        (b"Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>", ["pete@silly.test"]),
        (
            (
                b"A Group(Some people)\n     :Chris Jones <c@(Chris's host.)public.example>,\n"
                b"         joe@example.org,\n  John <jdoe@one.test> (my dear friend); (the end of the group)"
            ),
            ["c@public.example", "joe@example.org", "jdoe@one.test"],
        ),
        (b"(Empty list)(start)Hidden recipients  :(nobody(that I know))  ;", []),
        (
            b"Mary Smith <@node.test:mary@example.net>, , jdoe@test  . example",
            ["mary@example.net", "jdoe@test.example"],
        ),
        (b"<@a.test,@b.test:c@d.test>", ["c@d.test"]),
        (b"Mary <@a.test,@b.test:c@d.test>, e@f.test", ["c@d.test", "e@f.test"]),
        (b"John Doe <jdoe@machine(comment).  example>", ["jdoe@machine.example"]),
        (b"(a) John (b) <jdoe (c) @ (d) machine (e) . (f) example> (g)", ["jdoe@machine.example"]),
        # RFC 5321 section 4.1.2: quotes that quote nothing make no other mailbox
        (b'"john"@example.org, "john doe"@example.org', ["john@example.org", '"john doe"@example.org']),
        (b'"a\\"b@c"@example.org', ['"a\\"b@c"@example.org']),
        (b"jdoe@[192.0.2.1]", ["jdoe@[192.0.2.1]"]),
        ("Jörg <jörg@bücher.example>".encode(), ["jörg@bücher.example"]),
        (b"=?utf-8?q?boss=40corp.example=2C?= <real@example.org>", ["real@example.org"]),
    ],
)
def test_the_addresses_of_a_field_are_found(raw: bytes, expected: list[str]) -> None:
    assert addresses(raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'"boss@corp.example" <real@example.org>', ["real@example.org"]),
        (b"boss@corp.example <real@example.org>", ["real@example.org"]),
        (b'"boss@corp.example" real@example.org', ["real@example.org"]),
        (b"real@example.org (boss@corp.example)", ["real@example.org"]),
    ],
)
def test_an_address_in_a_display_name_or_comment_is_none(raw: bytes, expected: list[str]) -> None:
    assert addresses(raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", []),
        # what programs write of their own host has no domain
        (b"MAILER-DAEMON", ["MAILER-DAEMON"]),
        (b"Mail Delivery Subsystem <MAILER-DAEMON>", ["MAILER-DAEMON"]),
        (b"MAILER-DAEMON <>", ["MAILER-DAEMON"]),
        (b"root (Cron Daemon)", ["root"]),
        (b"root, ann@b.test", ["ann@b.test"]),
        (b"Mail Delivery System <>", []),
        (b'"Mail" <>', []),
        (b"=?utf-8?q?a=40b.test?=", []),
        (b"@", []),
        (b"a@, @b", []),
        (b"<>", []),
        (b"a@b.test <>", ["a@b.test"]),
        (b"Joe <a@b.test", ["a@b.test"]),
        (b"Joe <a@b.test, Jim <c@d.test>", ["a@b.test", "c@d.test"]),
        (b"<<a@b.test>>", ["a@b.test"]),
        (b"Joe a@b.test", ["a@b.test"]),
        (b"a@b.test c@d.test", ["a@b.test", "c@d.test"]),
        (b"a@b.test; c@d.test", ["a@b.test", "c@d.test"]),
        (b'"Joe <a@b.test>', ["a@b.test"]),
        (b"Joe (x <a@b.test>", ["a@b.test"]),
        (b"a@b\x00c\r\xff.test", ["a@b\ufffdc"]),
        (b"mailto:a@b.test", ["a@b.test"]),
    ],
)
def test_broken_fields_give_the_addresses_that_can_be_told(raw: bytes, expected: list[str]) -> None:
    assert addresses(raw) == expected


HOSTILE = [
    b"(",
    b"()",
    b"(\\",
    b'"',
    b'"\\',
    b'"a"@',
    b"<",
    b">",
    b"[",
    b"@",
    b":",
    b",",
    b". ",
    b"a,",
    b"a@b,",
    b"\n ",
    b"=?",
    b"=?=",
    b"=?a?q?",
    b"=?a?b?",
    b"=?u?q?x?= ",
    b"=?u?b?====",
    b"\xff",
]


@pytest.mark.parametrize("unit", HOSTILE, ids=repr)
@pytest.mark.parametrize("read", [decode, addresses])
def test_time_grows_with_the_length_only(read: Callable[[bytes], object], unit: bytes) -> None:
    raw = unit * (100 * 1024 // len(unit))
    start = time.process_time()
    read(raw)
    # Linear takes at most half a second; what reads to the end from every position, minutes.
    assert time.process_time() - start < 5


def test_many_charsets_that_do_not_exist_are_not_all_looked_for() -> None:
    assert decode(b" ".join(b"=?none%d?q?x?=" % number for number in range(1000))) == "x" * 1000
    # Python remembers each one for ever that it has looked for in the file system.
    sought = [name for name in vars(encodings)["_cache"] if name.startswith("none")]
    assert 0 < len(sought) < 50


def test_the_email_package_is_not_loaded() -> None:
    program = (
        "import sys; from deliver.headers import addresses, decode;"
        "decode(b'=?utf-8?q?x?='); addresses(b'a <b@c.test>'); print('email' in sys.modules)"
    )
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(not CORPORA.is_dir(), reason="the corpora are not beside this checkout")
def test_every_field_of_real_messages_is_read() -> None:
    files = sorted(path for path in CORPORA.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000)
    count = 0
    for path in files[::2]:
        header = re.split(rb"\n\r?\n", path.read_bytes(), maxsplit=1)[0]
        for field in FIELD.finditer(header):
            count += 1
            for text in (decode(field[2]), *addresses(field[2])):
                assert not re.search("[\x00\r\n\ud800-\udfff]", text), (path, field[0])
    assert count > 5000
