"""The conditions that look further than one header field: parts of addresses, lists, bodies, files, dates, proofs."""

import base64
import os
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packed import zipped

from deliver.content import bounds
from deliver.content.bodies import TEXT_CAP
from deliver.lists import SITE_CAP, USER_CAP, Lists
from deliver.message import Message, Source, read_framing
from deliver.rules.load import load
from deliver.rules.matching import LARGEST_BODY_REGEX
from deliver.rules.model import CannotTell, Condition, Facts, Outside, Signature, View
from deliver.values import Envelope, Problem

ENVELOPE = Envelope("list+request@lists.example.org", "bob-work@example.net", "/home/bob/Maildir")
NOW = 1_795_341_600.0  # Sunday, 22 November 2026, 10:00 UTC
MAIL = b"""\
Received: from a by b; Sun, 22 Nov 2026 09:59:58 +0000
From: Alice <alice+news@shop.example.org>
To: bob@example.net, carol-x-y@example.net
Cc: dave@example.com
Subject: Hello
Date: Sat, 21 Nov 2026 23:30:00 +0100
Message-ID: <1@example.org>

Hello Bob,
this is the text.
"""


def content(raw: bytes = MAIL) -> Message:
    source = Source.of(raw)
    return Message(source, read_framing(source.head))


def condition(when: dict[str, Any], lists: tuple[str, ...] = ("friends", "own")) -> Condition:
    """A condition without a fault."""
    (rule,), problems = load([{"flag": "seen", "when": when}], "f", user=True, lists=lists)
    assert not [problem for problem in problems if not problem.warning]
    return rule.condition


def holds(when: dict[str, Any], raw: bytes = MAIL, outside: Outside | None = None) -> bool | None:
    """Whether conditions hold; None where nobody can tell."""
    view = View(Facts(content(raw), ENVELOPE, None, spam=False, viruses=(), now=NOW, outside=outside or Outside()))
    compiled = condition(when)
    answer = compiled.matches(view)
    assert compiled.why(view).isprintable()
    return answer


def why(when: dict[str, Any], raw: bytes = MAIL, outside: Outside | None = None) -> str:
    view = View(Facts(content(raw), ENVELOPE, None, spam=False, viruses=(), now=NOW, outside=outside or Outside()))
    return condition(when).why(view)


def the_error(when: dict[str, Any], lists: tuple[str, ...] = ("friends",)) -> Problem:
    _, problems = load([{"flag": "seen", "when": when}], "f", user=True, lists=lists)
    (problem,) = problems
    assert not problem.warning
    return problem


def mime(*parts: bytes, kind: str = "mixed") -> bytes:
    """A multipart message of parts with their headers."""
    body = b"".join(b"--BOUND\n" + part + b"\n" for part in parts)
    return (
        b"From: a@example.org\nMIME-Version: 1.0\n"
        + f'Content-Type: multipart/{kind}; boundary="BOUND"\n\n'.encode()
        + body
        + b"--BOUND--\n"
    )


def attached(name: str, data: bytes, kind: str = "application/octet-stream") -> bytes:
    head = f'Content-Type: {kind}\nContent-Disposition: attachment; filename="{name}"\n'
    return head.encode() + b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(data)


# --- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"from": {"domain": "shop.example.org"}}, True),
        ({"from": {"domain": "SHOP.example.org"}}, True),
        ({"from": {"domain": "example.org"}}, False),
        ({"from": {"domain": "*.example.org"}}, True),
        ({"from": {"domain": {"regex": "^shop"}}}, True),
        ({"from": {"domain": ["x.test", "shop.example.org"]}}, True),
        ({"from": {"user": "alice"}}, True),
        ({"from": {"user": "alice+news"}}, False),
        ({"from": {"detail": "news"}}, True),
        ({"from": {"user": "alice", "detail": "news", "domain": "shop.*"}}, True),
        ({"from": {"user": "alice", "detail": "x"}}, False),
        ({"to": {"user": "bob", "domain": "example.net"}}, True),
        ({"to": {"detail": "*"}}, True),
        ({"to": {"detail": "x-y"}}, True),
        ({"to": {"user": "bob", "detail": "*"}}, False),  # another address has the detail
        ({"cc": {"detail": "*"}}, False),
        ({"cc": {"detail": ""}}, False),
        ({"sender": {"user": "list", "detail": "request"}}, True),
        ({"recipient": {"detail": "work"}}, True),
        ({"recipient": {"domain": "example.com"}}, False),
        ({"from": ["nobody@x.test", {"domain": "shop.example.org"}]}, True),
        # a "-" may belong to the user as well; a "+" ends it
        ({"to": {"user": "carol-x-y", "domain": "example.net"}}, True),
        ({"to": {"user": "carol"}}, True),
        ({"to": {"user": "carol-x"}}, False),
        ({"recipient": {"user": "bob-work"}}, True),
        ({"sender": {"user": "list+request"}}, False),
    ],
)
def test_parts_of_an_address(when: dict[str, Any], expected: bool) -> None:
    assert holds(when) is expected


@pytest.mark.parametrize(
    ("address", "when", "expected"),
    [
        (b'"q q+news"@example.org', {"user": "q q", "detail": "news"}, True),
        (b'"a\\"b"@example.org', {"user": 'a"b'}, True),
        (b"a-b+c@example.org", {"user": "a-b", "detail": "c"}, True),
        (b"a-b+c@example.org", {"user": "a", "detail": "b+c"}, True),
        (b"a-b+c@example.org", {"user": "a", "detail": "c"}, False),  # no one reading has both
        (b"MAILER-DAEMON <>", {"user": "mailer-daemon"}, True),
        (b"MAILER-DAEMON <>", {"domain": "*"}, False),
    ],
)
def test_parts_of_odd_addresses(address: bytes, when: dict[str, Any], expected: bool) -> None:
    assert holds({"from": when}, b"From: " + address + b"\n\n") is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"address": "dev-owner@lists.example.org"}, True),
        ({"address": "Dev"}, False),
        ({"address": {"domain": "*.example.org"}}, True),
        ({"address": ["x@y.test", {"domain": "lists.example.org"}]}, True),
        ([{"address": "x@y.test"}, {"contains": "The Dev"}], True),
        ([{"address": "x@y.test"}, "nothing"], False),
        ({"address": {"in": "friends"}}, False),
    ],
)
def test_addresses_in_any_field(value: object, expected: bool) -> None:
    mail = b"Sender: The Dev List <dev-owner@lists.example.org>\n\n"
    outside = Outside(addresses=lambda _name: frozenset({"example.org"}))
    assert holds({"header": {"Sender": value}}, mail, outside) is expected


def test_a_list_of_domains_holds_no_bare_word() -> None:
    outside = Outside(addresses=lambda _name: frozenset({"example.org", "root"}))
    assert holds({"in": "friends"}, b"From: example.org\n\n", outside) is False
    assert holds({"in": "friends"}, b"From: root@example.org\n\n", outside) is True


@pytest.mark.parametrize(
    ("when", "path", "words"),
    [
        ({"header": {"Sender": {"address": {"domian": "x"}}}}, ("header", "Sender", "address"), '"domain"'),
        ({"from": {"domian": "x"}}, ("from",), 'did you mean "domain"'),
        ({"from": {"domain": 5}}, ("from", "domain"), "expected a string"),
        ({"from": {"domain": "x", "is": "y"}}, ("from",), '"is" cannot stand beside user, detail, domain'),
        ({"from": {"in": "friedns"}}, ("from",), 'there is no list "friedns" in [lists]; did you mean "friends"'),
        ({"from": {"in": []}}, ("from",), "empty"),
        ({"from": {"in": 5}}, ("from",), "the name of a list"),
        ({"from": {"in": "friends", "domain": "x"}}, ("from",), '"in" stands alone'),
        ({"in": "nobody"}, ("in",), "there are friends"),
    ],
)
def test_slips_in_addresses(when: dict[str, Any], path: tuple[str, ...], words: str) -> None:
    problem = the_error(when)
    assert problem.path == ("rule", 0, "when", *path)
    assert words in problem.text


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ({"from": "@x.test"}, 'write "*@x.test"'),
        ({"from": "shop.example.org"}, 'write "*@shop.example.org"'),
        ({"from": ["a@x.test", "Joe Smith"]}, 'write header = { From = "*Joe Smith*" }'),
        ({"from": {"domain": "@x.test"}}, 'without the "@": "x.test"'),
        ({"header": {"X-Spam-Score": "> 5"}}, "numbers in header fields are not compared"),
        ({"from": {"user": "joe@x.test"}}, 'matches no user: that stands before the "@"'),
    ],
)
def test_what_matches_no_address_is_warned_of(when: dict[str, Any], words: str) -> None:
    _, (problem,) = load([{"flag": "seen", "when": when}], "f", user=True)
    assert problem.warning
    assert words in problem.text


@pytest.mark.parametrize("value", ["mailer-daemon", "*.example.org", "a?c.test", "joe@x.test", "", "x\\*y.test"])
def test_what_may_match_an_address_is_not(value: str) -> None:
    assert load([{"flag": "seen", "when": {"from": value}}], "f", user=True)[1] == []


# --- lists -------------------------------------------------------------------------------------------------------


def listed(lists: Lists, maildir: Path) -> Outside:
    return Outside(addresses=lambda name: lists.entries(name, str(maildir.parent), os.geteuid()))


def test_addresses_and_domains_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "friends"
    path.write_text("# friends\nBob@Example.net\n\n  shop.example.org   # a shop\n@other.example\n*@third.example\n")
    outside = listed(Lists({"friends": str(path)}), tmp_path / "Maildir")
    for when, expected in (
        ({"from": {"in": "friends"}}, True),
        ({"in": "friends"}, True),
        ({"to": {"in": "friends"}}, True),
        ({"cc": {"in": "friends"}}, False),
        ({"cc": [{"in": "friends"}, "dave@*"]}, True),
        ({"sender": {"in": "friends"}}, False),
        ({"not": {"cc": {"in": "friends"}}}, True),
    ):
        assert holds(when, outside=outside) is expected, when
    assert 'from is "alice+news@shop.example.org", in the list "friends"' in why({"in": "friends"}, outside=outside)
    assert holds({"from": {"in": "friends"}}, b"From: x@other.example\n\n", outside) is True
    assert holds({"from": {"in": "friends"}}, b"From: x@sub.other.example\n\n", outside) is False
    assert holds({"from": {"in": "friends"}}, b"From: x@third.example\n\n", outside) is True


def test_a_list_from_an_editor_that_marks_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "friends"
    path.write_bytes(b"\xef\xbb\xbfbob@example.net\r\nann@example.net\r\n")
    outside = listed(Lists({"friends": str(path)}), tmp_path / "Maildir")
    for name in (b"bob", b"ann"):
        assert holds({"in": "friends"}, b"From: " + name + b"@example.net\n\n", outside) is True


def test_a_long_list_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "friends"
    path.write_text("".join(f"user{n}@example.com\n" for n in range(100_000)) + "shop.example.org\n")
    os.utime(path, (NOW, NOW))
    monkeypatch.setattr("deliver.lists.FRESH", -1.0)  # its change of owner and time is older than that
    outside = listed(Lists({"friends": str(path)}), tmp_path / "Maildir")
    assert holds({"in": "friends"}, outside=outside)
    start = time.process_time()
    for _ in range(1000):
        assert holds({"in": "friends"}, outside=outside)
    assert time.process_time() - start < 5  # reading it takes 20 ms, so that a thousand times took 20 s
    path.write_text("nobody@example.com\n")
    assert holds({"in": "friends"}, outside=outside) is False


@pytest.mark.parametrize(("cap", "most", "kept"), [("KEPT", 2, [1, 2, 1, 2]), ("ENTRIES_KEPT", 2, [1, 2, 3, 1])])
def test_memory_does_not_grow_with_the_number_of_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: str, most: int, kept: list[int]
) -> None:
    monkeypatch.setattr("deliver.lists.FRESH", -1.0)
    monkeypatch.setattr(f"deliver.lists.{cap}", most)
    lists = Lists({"own": "friends.txt"})
    sizes = []
    for number in range(4):
        home = tmp_path / str(number)
        home.mkdir()
        (home / "friends.txt").write_text(f"{number}.example.org\n")
        assert lists.entries("own", str(home), os.geteuid()) == {f"{number}.example.org"}
        sizes.append(len(lists._kept))
    assert sizes == kept


def test_a_sites_list_that_cannot_be_read_stops_the_delivery(tmp_path: Path) -> None:
    from deliver.errors import NotConfigured

    outside = listed(Lists({"friends": str(tmp_path / "none")}), tmp_path / "Maildir")
    with pytest.raises(NotConfigured, match="there is no such file"):
        holds({"in": "friends"}, outside=outside)


def test_an_owners_list_lies_beside_the_maildir_and_leads_nowhere_else(tmp_path: Path) -> None:
    lists = Lists({"own": "friends.txt"})
    outside = listed(lists, tmp_path / "Maildir")
    own = tmp_path / "friends.txt"
    assert holds({"in": "own"}, outside=outside) is False  # there is none yet
    secret = tmp_path / "secret"
    secret.write_text("shop.example.org\n")
    own.symlink_to(secret)
    assert holds({"in": "own"}, outside=outside) is None
    assert holds({"not": {"in": "own"}}, outside=outside) is None
    assert "cannot be used" in why({"in": "own"}, outside=outside)
    own.unlink()
    own.write_text("shop.example.org\n")
    for writable in (0o666, 0o602, 0o620):
        own.chmod(writable)
        assert holds({"in": "own"}, outside=outside) is None
    own.chmod(0o600)
    assert holds({"in": "own"}, outside=outside) is True
    own.unlink()
    os.mkfifo(own)
    assert holds({"in": "own"}, outside=outside) is None


def test_a_strangers_list_is_not_the_owners(tmp_path: Path) -> None:
    own = tmp_path / "friends.txt"
    own.write_text("shop.example.org\n")
    if os.geteuid() == 0:
        os.chown(own, 65534, 65534)  # root's would be taken
    with pytest.raises(CannotTell, match="does not belong to the mailbox's owner"):
        Lists({"own": "friends.txt"}).entries("own", str(tmp_path), own.stat().st_uid + 1)


def test_a_list_may_be_as_long_as_its_cap(tmp_path: Path) -> None:
    """The site's longer than an owner's; it may be a link and writable by whom the site likes."""
    from deliver.errors import NotConfigured

    path = tmp_path / "friends.txt"
    path.write_text("shop.example.org\n")
    own, site = Lists({"friends": "friends.txt"}), Lists({"friends": str(tmp_path / "link")})
    (tmp_path / "link").symlink_to(path)
    os.truncate(path, USER_CAP)
    assert "shop.example.org" in own.entries("friends", str(tmp_path), os.geteuid())
    os.truncate(path, USER_CAP + 1)
    with pytest.raises(CannotTell, match="larger than 8 MiB"):
        own.entries("friends", str(tmp_path), os.geteuid())
    path.chmod(0o666)
    assert "shop.example.org" in site.entries("friends", str(tmp_path), os.geteuid())
    os.truncate(path, SITE_CAP + 1)
    with pytest.raises(NotConfigured, match="larger than 64 MiB"):
        site.entries("friends", str(tmp_path), os.geteuid())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(NotConfigured, match="not a regular file"):
        site.entries("friends", str(tmp_path), os.geteuid())


# --- body --------------------------------------------------------------------------------------------------------

QUOTED = (
    b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\nGr=C3=BC=C3=9Fe aus K=\n"
    b"=C3=B6ln\n"
)
BASE64 = b"Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: base64\n\nR3L83mU=\n"
HTML = (
    b"Content-Type: text/html; charset=us-ascii\n\n<html><head><style>p { color: hidden }</style></head><body>"
    b"<p>Cli<b>ck</b> here</p><a href='http://evil.example/x'>and&nbsp;there</a><!-- never --></body></html>\n"
)


@pytest.mark.parametrize(
    ("when", "raw", "expected"),
    [
        ({"body": "*this is the text*"}, MAIL, True),
        ({"body": {"contains": "THE TEXT"}}, MAIL, True),
        ({"body": {"regex": r"(?m)^this.*text\.$"}}, MAIL, True),
        ({"body": "*Alice*"}, MAIL, False),  # that is the header
        ({"body": "*Grüße aus Köln*"}, mime(QUOTED), True),
        ({"body": "*GRÜSSE*"}, mime(QUOTED), True),
        ({"body": "*grü?e*"}, mime(QUOTED), True),
        ({"body": "*grüþe*"}, mime(BASE64), True),
        ({"body": "*Click here*"}, mime(HTML), True),
        ({"body": "*http://evil.example/*"}, mime(HTML), True),
        ({"body": {"regex": r"click here\s+and\s"}}, mime(HTML), True),
        ({"body": "*text*"}, mime(b"Content-Type: text/plain\nContent-Disposition: attachment\n\ntext\n"), False),
        ({"body": "*text*"}, mime(b"Content-Type: application/x\n\ntext\n"), False),
        ({"body": "*inner*"}, mime(b"Content-Type: message/rfc822\n\nSubject: nested\n\ninner\n"), True),
        ({"body": "*nested*"}, mime(b"Content-Type: message/rfc822\n\nSubject: nested\n\ninner\n"), False),
        ({"body": "*x*"}, b"Content-Type: text/plain; charset=no-such-charset-\xff\n\nx\xff\n", True),
        ({"body": "*"}, b"Subject: no body\n", False),
        ({"body": {"regex": "nothing"}}, MAIL, False),
        ({"body": [{"regex": "nothing"}, {"regex": "hello bob"}]}, MAIL, True),
    ],
)
def test_the_body_is_its_decoded_text(when: dict[str, Any], raw: bytes, expected: bool) -> None:
    assert holds(when, raw) is expected


def test_what_html_hides_is_not_what_it_reads() -> None:
    from deliver.content.bodies import readable

    page = "a < b <p>one<br/>two</p><script>if (x < y) { '</p>' }</script>three<style>x</STYLE>&amp;<!-- <b> -->four"
    assert readable(page) == "a < b \none\ntwo\nthree&four"


def test_a_body_that_was_not_read_to_its_end_decides_nothing() -> None:
    long = b"Subject: x\n\n" + b"word " * (TEXT_CAP // 5 + 100) + b"needle\n"
    assert holds({"body": "*word*"}, long) is True
    assert holds({"body": "*needle*"}, long) is None
    assert holds({"not": {"body": "*needle*"}}, long) is None
    assert holds({"any": [{"body": "*needle*"}, {"subject": "x"}]}, long) is True
    assert holds({"all": [{"body": "*needle*"}, {"subject": "y"}]}, long) is False
    assert holds({"all": [{"body": "*needle*"}, {"subject": "x"}]}, long) is None
    assert "only 1024 KiB of its text were read, so that this cannot be told" in why({"body": "*needle*"}, long)


def test_a_thousand_patterns_read_the_body_once() -> None:
    tables = [
        {"flag": "seen", "when": {"body": {"regex": rf"(a+)+x{n}\b|(word{n}|w{n}x)+.*foo{n}"}}} for n in range(1000)
    ]
    rules, problems = load(tables, "f", user=True)
    assert problems == []
    view = View(Facts(content(b"\n" + b"lorem ipsum aaaaaaaaaaaaaaaa! dolor\n" * 29_000), ENVELOPE, None, False, ()))
    start = time.process_time()
    assert not any(rule.condition.matches(view) for rule in rules)
    assert time.process_time() - start < 2  # one after the other they take 3 s on the same machine
    view = View(Facts(content(b"\nw7x foo7\n"), ENVELOPE, None, False, ()))
    assert [rule.number - 1 for rule in rules if rule.condition.matches(view)] == [7]


def large_patterns(count: int) -> list[dict[str, Any]]:
    return [{"flag": "seen", "when": {"body": {"regex": f"x{n}(?:[a-f]|é|ß){{100}}y"}}} for n in range(count)]


@pytest.mark.parametrize("together", [None, 10_000_000])
def test_patterns_that_are_too_large_together_are_found_all_the_same(
    together: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if together:  # RE2 refuses to compile so many at once
        monkeypatch.setattr("deliver.rules.matching.STEPS_TOGETHER", together)
    rules, problems = load(large_patterns(400), "f", user=True)
    assert problems == []
    view = View(Facts(content(b"\nx77" + b"ab" * 50 + b"y\nx149" + b"cd" * 50 + b"y\n"), ENVELOPE, None, False, ()))
    assert [rule.number - 1 for rule in rules if rule.condition.matches(view)] == [77, 149]


def test_a_set_that_finds_nothing_at_all_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    import re2

    class Exhausted(re2.Set):  # type: ignore[misc]
        """As RE2 answers where its memory is too small for even a few states."""

        def Match(self, text: object) -> None:  # noqa: N802 - RE2's name
            del text

    monkeypatch.setattr(re2, "Set", Exhausted)
    assert holds({"body": [{"regex": "nothing"}, {"regex": "hello bob"}]}) is True


def test_a_pattern_for_bodies_is_smaller_than_one_for_fields() -> None:
    assert LARGEST_BODY_REGEX < 2500
    assert the_error({"body": {"regex": r"(?i)\pL{3}"}}).path == ("rule", 0, "when", "body", "regex")


# --- files -------------------------------------------------------------------------------------------------------

EXE = b"MZ\x90\x00" + b"\x00" * 100


@pytest.mark.parametrize(
    ("value", "part", "expected"),
    [
        ("*.pdf", attached("scan.pdf", b"%PDF-1.4"), True),
        ("*.PDF", attached("scan.pdf", b"%PDF-1.4"), True),
        ("*.pdf", attached("scan.txt", b"%PDF-1.4"), False),
        (["*.doc", "*.pdf"], attached("scan.pdf", b""), True),
        ({"regex": r"^scan\d*\.pdf$"}, attached("scan12.pdf", b""), True),
        ({"name": "scan.pdf"}, attached("scan.pdf", b""), True),
        ({"extension": "pdf"}, attached("scan.PDF", b""), True),
        ({"extension": ["exe", "scr"]}, attached("evil.pdf.scr", EXE), True),
        ({"extension": "exe"}, attached("evil.exe. ", EXE), True),
        ({"type": "image/*"}, attached("x", b"", "image/png"), True),
        ({"type": "image/*"}, attached("x.png", b"\x89PNG\r\n\x1a\n"), False),
        ({"detected-type": "image/png"}, attached("x.dat", b"\x89PNG\r\n\x1a\n"), True),
        ({"detected-type": "application/vnd.microsoft.portable-executable"}, attached("x.txt", EXE), True),
        ({"extension": "txt", "detected-type": "application/*"}, attached("x.txt", EXE), True),
        ({"extension": "txt", "detected-type": "image/*"}, attached("x.txt", EXE), False),
        ("*.exe", attached("a.zip", zipped(("dir/evil.exe", EXE))), True),
        ("evil.exe", attached("a.zip", zipped(("dir/evil.exe", EXE))), True),
        ("*.exe", attached("a.dat", zipped(("b.zip", zipped(("c.zip", zipped(("evil.exe", EXE))))))), True),
        ({"detected-type": "application/vnd.microsoft.*"}, attached("a.zip", zipped(("x.pdf", EXE))), True),
        ("*.xml", attached("a.docx", zipped(("[Content_Types].xml", b"<x/>"), ("word/document.xml", b"<x/>"))), False),
        ("*.exe", attached("a.zip", zipped(("[Content_Types].xml", b"<x/>"), ("evil.exe", EXE))), True),
        (
            "*.exe",
            b"Content-Type: message/rfc822\n\n" + mime(attached("evil.exe", EXE)).replace(b"BOUND", b"INNER"),
            True,
        ),
        ("Käse.exe", b"Content-Disposition: attachment; filename*=utf-8''K%C3%A4se.exe\n\nx", True),
        ("Käse.exe", b"Content-Disposition: attachment; filename*0*=iso-8859-1'de'K%E4; filename*1=se.exe\n\nx", True),
        ("Käse.exe", b'Content-Type: application/x; name="=?utf-8?q?K=C3=A4se=2Eexe?="\n\nx', True),
        ("real.exe", b"Content-Disposition: attachment; filename=\"a.txt\"; filename*=us-ascii''real.exe\n\nx", True),
        (
            "real.exe",
            b'Content-Type: a/b; name="real.exe"\nContent-Disposition: attachment; filename="a.txt"\n\nx',
            True,
        ),
        ("a b.exe", b"Content-Disposition: attachment; filename=a b.exe\n\nx", True),
        ("*", b"Content-Type: text/plain\n\nthe text itself", False),
        ("notes.txt", b'Content-Type: text/plain; name="notes.txt"\n\ntext', True),
    ],
)
def test_files_that_come_with_a_message(value: object, part: bytes, expected: bool) -> None:
    assert holds({"attachment": value}, mime(b"Content-Type: text/plain\n\nsee there\n", part)) is expected


def test_a_file_in_an_archive_is_shown_with_it() -> None:
    raw = mime(attached("a.zip", zipped(("evil.exe", EXE))))
    assert why({"attachment": "*.exe"}, raw) == 'attachment is "evil.exe" in "a.zip", like "*.exe"'


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        ({"nme": "x"}, (), 'did you mean "name"'),
        ({}, (), "exactly one of"),
        ({"type": 5}, ("type",), "expected a string"),
        (5, (), "expected a string"),
    ],
)
def test_slips_in_attachments(value: object, path: tuple[str, ...], words: str) -> None:
    problem = the_error({"attachment": value})
    assert problem.path == ("rule", 0, "when", "attachment", *path)
    assert words in problem.text


def test_a_bomb_is_not_unpacked_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "UNPACKED_CAP", 1024 * 1024)
    inner = zipped(("filler", os.urandom(64)), ("zeros.tar", b"\0" * 257 + b"ustar" + b"\0" * 40_000_000))
    raw = mime(attached("bomb.zip", inner))
    tracemalloc.start()
    try:
        assert holds({"attachment": "*.exe"}, raw) is None
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
    assert "archives hold too much, so that this cannot be told" in why({"attachment": "*.exe"}, raw)


def test_what_is_encrypted() -> None:
    pgp = mime(
        b"Content-Type: application/pgp-encrypted\n\nVersion: 1\n",
        b"Content-Type: application/octet-stream\n\n-----BEGIN PGP MESSAGE-----\n",
        kind='encrypted; protocol="application/pgp-encrypted"',
    )
    inline = b"Subject: x\n\nHello\n-----BEGIN PGP MESSAGE-----\n\nabc\n"
    signed = b"Subject: x\n\nHello\n-----BEGIN PGP SIGNED MESSAGE-----\n\nabc\n"
    smime = b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data; name=smime.p7m\n\nx"
    opaque = b"Content-Type: application/pkcs7-mime; smime-type=signed-data; name=smime.p7m\n\nx"
    unsaid = b"Content-Type: application/x-pkcs7-mime\nContent-Transfer-Encoding: base64\n\n" + base64.encodebytes(
        b"\x30\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03\xa0\x80"
    )
    locked = bytearray(zipped(("secret.txt", b"x")))
    locked[6] |= 1  # APPNOTE.TXT section 4.4.4, bit 0
    for raw, ways in (
        (pgp, {"pgp"}),
        (inline, {"pgp"}),
        (signed, set()),
        (smime, {"smime"}),
        (opaque, set()),
        (unsaid, {"smime"}),
        (mime(attached("a.zip", bytes(locked))), {"zip"}),
        (mime(attached("a.zip", zipped(("x", b"y")))), set()),
        (MAIL, set()),
    ):
        assert holds({"encrypted": True}, raw) is bool(ways), raw
        assert holds({"encrypted": False}, raw) is not ways or not ways
        for way in ("pgp", "smime", "zip"):
            assert holds({"encrypted": way}, raw) is (way in ways), (way, raw)
    assert holds({"encrypted": ["smime", "pgp"]}, inline) is True


# --- kinds of mail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"List-Id: <x.example.org>", True),
        (b"List-Unsubscribe: <mailto:x@example.org>", True),
        (b"Mailing-List: contact x@example.org; run by ezmlm", True),
        (b"Precedence: list", True),
        (b"Precedence: LIST ", True),
        (b"Precedence: bulk", False),
        (b"Precedence: bulk\nSender: The List <owner-dev@example.org>", True),  # Majordomo
        (b"Precedence: bulk\nSender: dev-owner@example.org", True),
        (b"Precedence: bulk\nSender: boss@owner-dev.example", False),
        (b"Sender: owner-dev@example.org", False),
        (b"X-Mailman-Version: 1.1", True),
        (b"Subject: List-Id: <x>", False),
    ],
)
def test_mailing_lists(header: bytes, expected: bool) -> None:
    assert holds({"is-list": True}, header + b"\n\nList-Post: <x>\n") is expected
    assert holds({"is-list": False}, header + b"\n\nList-Post: <x>\n") is not expected


FAILURE = b"""\
From: MAILER-DAEMON@mx.example.org
To: alice@example.org
Subject: Delivery Status Notification
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="B"

--B
Content-Type: text/plain

It could not be delivered.
--B
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.org

Final-Recipient: rfc822; bob@example.net
Action: ACTION
Status: 5.1.1

--B--
"""


def test_bounces() -> None:
    failed = FAILURE.replace(b"ACTION", b"failed")
    delayed = FAILURE.replace(b"ACTION", b"delayed")
    for when, answers in (
        ({"is-bounce": True}, (True, True, False)),
        ({"is-bounce": False}, (False, False, True)),
        ({"is-bounce": "permanent"}, (True, False, False)),
        ({"is-bounce": "temporary"}, (False, True, False)),
        ({"is-bounce": ["temporary", "permanent"]}, (True, True, False)),
        ({"is-bounce": {"address": "bob@example.net"}}, (True, True, False)),
        ({"is-bounce": {"address": {"domain": "example.net"}, "kind": "permanent"}}, (True, False, False)),
        ({"is-bounce": {"address": "*@example.org"}}, (False, False, False)),
        ({"is-bounce": {"kind": "temporary"}}, (False, True, False)),
    ):
        assert tuple(holds(when, raw) for raw in (failed, delayed, MAIL)) == answers, when
    assert the_error({"is-bounce": "permnent"}).text.endswith('did you mean "permanent"?')
    assert "kind" in the_error({"is-bounce": {"adress": "x"}}).text
    assert the_error({"is-bounce": {}}).path == ("rule", 0, "when", "is-bounce")


def test_a_message_that_came_before_is_a_duplicate() -> None:
    def seen(ago: float | None) -> Outside:
        return Outside(last_seen=lambda name: None if ago is None or name != "<1@example.org>" else NOW - ago)

    for when, ago, expected in (
        ({"duplicate": True}, 3600, True),
        ({"duplicate": True}, 8 * 86400, False),
        ({"duplicate": "10 d"}, 8 * 86400, True),
        ({"duplicate": "1 h"}, 3599, True),
        ({"duplicate": "1 h"}, 3601, False),
        ({"duplicate": True}, None, False),
        ({"duplicate": False}, None, True),
        ({"not": {"duplicate": True}}, None, True),
    ):
        assert holds(when, outside=seen(ago)) is expected, when
    assert holds({"duplicate": True}, b"Subject: no id\n\n", seen(1)) is None
    assert condition({"any": [{"not": {"duplicate": True}}, {"subject": "x"}]}).remembers
    assert not condition({"subject": "x"}).remembers
    assert "at most 30 d" in the_error({"duplicate": "31 d"}).text
    assert "span" in the_error({"duplicate": "soon"}).text


def test_counts() -> None:
    for when, expected in (
        ({"recipients": "> 2"}, True),
        ({"recipients": 3}, True),
        ({"recipients": "< 3"}, False),
        ({"header-count": {"Received": 1}}, True),
        ({"header-count": {"received": "> 1"}}, False),
        ({"header-count": {"X-None": 0, "To": ">= 1"}}, True),
    ):
        assert holds(when) is expected, when
    assert holds({"recipients": "= 0"}, b"Subject: none\n\n") is True
    assert the_error({"header-count": {"a b": 1}}).path == ("rule", 0, "when", "header-count", "a b")
    assert "expected header-count" in the_error({"header-count": 5}).text


# --- proofs ------------------------------------------------------------------------------------------------------


def test_dkim_results_and_domains() -> None:
    def verified(*found: Signature) -> Outside:
        return Outside(signatures=lambda _content: found)

    good, bad = Signature("pass", "example.org"), Signature("fail", "lists.example")
    late = Signature("temperror", "slow.example", "the DNS took too long")
    for when, found, expected in (
        ({"dkim": "pass"}, [good], True),
        ({"dkim": "pass"}, [bad, good], True),
        ({"dkim": "pass"}, [bad], False),
        ({"dkim": "none"}, [], True),
        ({"dkim": "none"}, [good], False),
        ({"dkim": ["fail", "permerror"]}, [bad], True),
        ({"dkim": {"result": "pass", "domain": "example.org"}}, [good], True),
        ({"dkim": {"result": "pass", "domain": "lists.example"}}, [good, bad], False),
        ({"dkim": {"domain": "*.example"}}, [bad], True),
        ({"dkim": "pass"}, [late], None),
        ({"not": {"dkim": "pass"}}, [late], None),
        ({"dkim": "pass"}, [late, good], True),
        ({"dkim": "temperror"}, [late], True),
    ):
        assert holds(when, outside=verified(*found)) is expected, (when, found)
    assert 'dkim is "pass" for "example.org"' in why({"dkim": {"domain": "*"}}, outside=verified(good))

    def too_large(_content: object) -> Any:
        raise CannotTell("too large")

    assert holds({"dkim": "pass"}, outside=Outside(signatures=too_large)) is None
    assert the_error({"dkim": "psas"}).text.endswith('did you mean "pass"?')
    assert "domain" in the_error({"dkim": {"resutl": "pass"}}).text


TRUSTED = Outside(trusted=frozenset({"mx.example.net"}))
RESULTS = b"""\
Authentication-Results: mx.example.net (comment; dkim=fail) 1; spf=pass smtp.mailfrom=alice@example.org;
 dkim=pass (good; really) header.d=Example.org header.i="@example.org";
 dkim = fail reason="a; dmarc=fail" header.d=other.example (header.d=forged.example); dmarc=pass header.from=example.org
Authentication-Results: evil.example; arc=pass; dmarc=none
Authentication-Results: mx.example.net; iprev=pass policy.iprev="192.0.2.1; bimi=pass

"""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"spf": "pass"}, True),
        ({"spf": "fail"}, False),
        ({"spf": {"result": "pass", "domain": "example.org"}}, True),
        ({"dkim": "pass", "dmarc": "pass"}, True),
        ({"dkim": "pass", "dmarc": "fail"}, False),
        ({"dkim": {"result": "pass", "domain": "example.org"}}, True),
        ({"dkim": {"result": "fail", "domain": "other.example"}}, True),
        ({"dkim": {"result": "pass", "domain": "other.example"}}, False),
        ({"dkim": {"domain": "forged.example"}}, False),
        ({"dmarc": ["none", "pass"]}, True),
        ({"dmarc": "none"}, False),  # a stranger said so
        ({"arc": "pass"}, False),
        ({"bimi": "pass"}, False),  # within a quoted string that never ends
        ({"iprev": "*"}, False),
    ],
)
def test_results_of_trusted_servers(value: dict[str, Any], expected: bool) -> None:
    assert holds({"auth": value}, RESULTS, TRUSTED) is expected


@pytest.mark.parametrize("name", ["mx.\u212aelvin.example", "mx.kelvin.example\u00a0x", "mx.kelvin.example\u0085x"])
def test_a_name_that_unicode_makes_of_another_is_not_the_trusted_one(name: str) -> None:
    """KELVIN SIGN is "k" in small letters: the server called mx.kelvin.example does not take that for itself."""
    trusted = Outside(trusted=frozenset({"mx.kelvin.example"}))
    raw = f"Authentication-Results: {name}; spf=pass\n\n".encode()
    assert holds({"auth": {"spf": "pass"}}, raw, trusted) is False
    assert holds({"auth": {"spf": "pass"}}, raw.replace(name.encode(), b"MX.Kelvin.example 1"), trusted) is True


@pytest.mark.parametrize("unit", [b" ", b'"\\', b" = ", b"(", b"; spf=pass "])
def test_results_are_read_in_time_linear_in_the_field(unit: bytes) -> None:
    raw = b"Authentication-Results: mx.example.net; spf" + unit * (400_000 // len(unit)) + b"x=pass\n\n"
    start = time.process_time()
    holds({"auth": {"spf": "pass"}}, raw, TRUSTED)
    assert time.process_time() - start < 3


def test_without_a_trusted_server_nobody_can_tell() -> None:
    assert holds({"auth": {"spf": "pass"}}, RESULTS) is None
    assert "[authentication] trusted" in why({"auth": {"spf": "pass"}}, RESULTS)
    assert the_error({"auth": {"spff": "pass"}}).text.startswith('unknown method "spff"; did you mean "spf"')
    assert "expected auth" in the_error({"auth": "pass"}).text


# --- times -------------------------------------------------------------------------------------------------------


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host in Berlin, which is at UTC+1 in November."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"date": "2026-11-21"}, True),
        ({"date": "2026-11-22"}, False),
        ({"date": {"is": "2026-11-22", "zone": "Asia/Tokyo"}}, True),
        ({"date": {"is": "2026-11-22", "of": "arrival"}}, True),
        ({"date": ">= 2026-11-21"}, True),
        ({"date": "> 2026-11-21"}, False),
        ({"date": "2026-11-01 to 2026-11-21"}, True),
        ({"date": ["2025-01-01", "2026-11-21 to 2026-12-01"]}, True),
        ({"date": {"age": "> 11 h"}}, True),
        ({"date": {"age": "> 12 h"}}, False),
        ({"time": "23:00 to 24:00"}, True),
        ({"time": "22:00 to 06:00"}, True),
        ({"time": "22:00 to 23:30"}, False),
        ({"time": "23:30 to 06:00"}, True),
        ({"time": "> 23:00"}, True),
        ({"time": "23:30"}, True),
        ({"time": {"is": "10:00 to 11:00", "of": "arrival"}}, True),
        ({"time": {"is": "22:00 to 23:00", "zone": "UTC"}}, True),
        ({"weekday": "sat"}, True),
        ({"weekday": "Saturday"}, True),
        ({"weekday": ["sat", "sun"]}, True),
        ({"weekday": "mon to fri"}, False),
        ({"weekday": "fri to mon"}, True),
        ({"weekday": {"is": "sun", "of": "arrival"}}, True),
        ({"weekday": {"is": "sun", "zone": "Asia/Tokyo"}}, True),
    ],
)
def test_moments(when: dict[str, Any], expected: bool) -> None:
    assert holds(when) is expected


@pytest.mark.parametrize(
    "written",
    [
        b"Sat, 21 Nov 2026 23:30:00 (CET) +0100",  # RFC 5322 sections 3.2.2 and 4.3
        b"(x) Sat , 21 (x) Nov 2026 23 : 30 (x) : 00 +0100 (CET)",
        b"21 Nov 2026 23:30 +0100",
        b"Sat,\n 21 Nov 2026 23:30:00\n +0100",
        b"Sat Nov 21 22:30:00 2026 +0000",
    ],
)
def test_comments_and_blanks_in_a_date_mean_nothing(written: bytes) -> None:
    raw = b"Date: " + written + b"\n\n"
    assert holds({"date": {"is": "2026-11-21", "zone": "UTC"}, "time": {"is": "22:30", "zone": "UTC"}}, raw) is True


def test_days_and_times_as_toml_has_them() -> None:
    import datetime as dt

    assert holds({"date": {"is": dt.date(2026, 11, 21), "zone": "UTC"}}) is True
    assert holds({"time": {"is": dt.time(22, 30), "zone": "UTC"}}) is True


def test_without_a_date_that_can_be_read_nothing_matches() -> None:
    for header in (b"Date: yesterday", b"X: y", b"Date: Sat, 99 Nov 99999999999 23:30:00 +9999"):
        assert holds({"date": "> 1970-01-01"}, header + b"\n\n") is False
        assert holds({"date": {"age": "> 1 s"}}, header + b"\n\n") is False
    # By our own clock it came now.
    assert holds({"date": {"is": "2026-11-22", "of": "arrival", "zone": "UTC"}}, b"X: y\n\n") is True


@pytest.mark.parametrize(
    ("when", "path", "words"),
    [
        ({"date": "24.12.2026"}, ("date",), 'expected a day such as "2026-12-24"'),
        ({"date": "2026-13-01"}, ("date",), "expected a day"),
        ({"date": "2026-12-24 to 2026-12-01"}, ("date",), "ends before it begins"),
        ({"date": {"is": "2026-12-24", "zone": "Berlin"}}, ("date", "zone"), "Europe/Berlin"),
        ({"date": {"is": "2026-12-24", "of": "now"}}, ("date", "of"), "arrival"),
        ({"date": {"age": "soon"}}, ("date", "age"), "span"),
        ({"date": {}}, ("date",), "expected date"),
        ({"time": "25:00"}, ("time",), "expected a time"),
        ({"time": "24:00"}, ("time",), 'midnight is "00:00"'),
        ({"time": "10:00 to 10:00"}, ("time",), "ends where it begins"),
        ({"time": {"age": "> 1 d"}}, ("time",), "date has"),
        ({"time": 5}, ("time",), "expected a time"),
        ({"weekday": "son"}, ("weekday",), "mon, tue"),
        ({"weekday": "> mon"}, ("weekday",), "range"),
        ({"weekday": {"is": "mon", "zoen": "UTC"}}, ("weekday",), 'did you mean "zone"'),
    ],
)
def test_slips_in_moments(when: dict[str, Any], path: tuple[str, ...], words: str) -> None:
    problem = the_error(when)
    assert problem.path == ("rule", 0, "when", *path)
    assert words in problem.text
