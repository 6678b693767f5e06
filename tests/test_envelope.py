"""Who a message is from and for, in the words of each MTA: qmail-command(8), vpopmail, Postfix local(8) and pipe(8)."""

import os
from pathlib import Path

import pytest

from deliver.arguments import Call
from deliver.envelope import base_of, envelope_of, maildir_of, recipient_of
from deliver.errors import Deferred
from deliver.message import Framing

NOTHING = Framing()
QMAIL = {
    "LOCAL": "you-lists-qmail",
    "HOST": "example.org",
    "EXT": "lists-qmail",
    "RECIPIENT": "you-lists-qmail@example.org",
    "SENDER": "friend@example.net",
    "RPLINE": "Return-Path: <friend@example.net>\n",
    "DTLINE": "Delivered-To: you-lists-qmail@example.org\n",
}
VPOPMAIL = QMAIL | {
    "LOCAL": "example.org-you+Lists",
    "EXT": "you+Lists",
    "RECIPIENT": "example.org-you+Lists@example.org",
    "DTLINE": "Delivered-To: example.org-you+Lists@example.org\n",
}


@pytest.mark.parametrize(
    ("option", "environment", "recipient", "extension"),
    [
        pytest.param("", QMAIL, "you-lists-qmail@example.org", "lists-qmail", id="qmail"),
        pytest.param(
            "",
            {"LOCAL": "jean-paul", "HOST": "example.org", "EXT": "", "RECIPIENT": "jean-paul@example.org"},
            "jean-paul@example.org",
            "",
            id="qmail: a user with a dash and no extension",
        ),
        pytest.param("", VPOPMAIL, "you+Lists@example.org", "Lists", id="vpopmail"),
        pytest.param(
            "", VPOPMAIL | {"LOCAL": "Example.ORG-You+Lists"}, "you+Lists@example.org", "Lists", id="in capitals"
        ),
        pytest.param(
            "",
            VPOPMAIL | {"EXT": "you-a+b", "LOCAL": "example.org-you-a+b"},
            "you-a+b@example.org",
            "a+b",
            id="first separator",
        ),
        pytest.param(
            "", VPOPMAIL | {"EXT": "you", "LOCAL": "example.org-you"}, "you@example.org", "", id="no extension"
        ),
        pytest.param("me@example.com", VPOPMAIL, "me@example.com", "Lists", id="option first"),
        pytest.param("me+Work@example.com", {}, "me+Work@example.com", "Work", id="option alone"),
        pytest.param(
            "",
            {"RECIPIENT": "you+Lists@example.org", "LOCAL": "you+Lists"},
            "you+Lists@example.org",
            "Lists",
            id="postfix local",
        ),
        pytest.param("", {"RECIPIENT": "you+Lists"}, "you+Lists", "Lists", id="no domain"),
        pytest.param(
            "", {"LOCAL": "you-Lists", "HOST": "example.org"}, "you-Lists@example.org", "Lists", id="LOCAL and HOST"
        ),
        pytest.param(
            "",
            {"LOCAL": "-x", "HOST": "", "EXT": "x", "RECIPIENT": "you@example.org"},
            "you@example.org",
            "x",
            id="no host",
        ),
    ],
)
def test_the_recipient_and_its_extension(
    option: str, environment: dict[str, str], recipient: str, extension: str
) -> None:
    assert recipient_of(Call(recipient=option), environment) == (recipient, extension)


@pytest.mark.parametrize("names", [(), ("LOCAL",), ("HOST",), ("EXT", "HOST"), ("EXT", "LOCAL")])
def test_a_recipient_that_nobody_says_is_not_guessed(names: tuple[str, ...]) -> None:
    with pytest.raises(Deferred, match="recipient is unknown"):
        recipient_of(Call(), {name: QMAIL[name] for name in names})


def test_relative_paths_start_where_qmail_started_us_else_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home = {"HOME": "/home/you"}
    assert base_of(home, "/elsewhere") == "/home/you"
    assert base_of(QMAIL | home, "/elsewhere") == "/elsewhere"
    assert base_of(QMAIL | home) == os.getcwd() == str(tmp_path)
    assert maildir_of(Call(), home, "Maildir") == "/home/you/Maildir"
    assert maildir_of(Call(maildir="Mail"), home, "/var/mail") == "/home/you/Mail"
    assert maildir_of(Call(maildir="/srv/you"), {}, "Maildir") == "/srv/you"
    for nowhere in ({}, {"HOME": ""}, {"HOME": "home/you"}):
        with pytest.raises(Deferred, match="give --maildir"):
            maildir_of(Call(), nowhere, "Maildir")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(Deferred, match="working directory is gone"):
        base_of(QMAIL)


@pytest.mark.parametrize(
    ("option", "variable", "framing", "sender", "line"),
    [
        pytest.param("a@b", "c@d", b"Return-Path: <e@f>\n", "a@b", b"Return-Path: <a@b>\n", id="option"),
        pytest.param(
            "", "c@d", b"Return-Path: <e@f>\n", "", b"Return-Path: <>\n", id="an empty option is the null sender"
        ),
        pytest.param(None, "c@d", b"Return-Path: <e@f>\n", "c@d", b"Return-Path: <c@d>\n", id="environment"),
        pytest.param(None, "", b"Return-Path: <e@f>\n", "", b"Return-Path: <>\n", id="the null sender"),
        pytest.param(None, None, b"Return-Path: <e@f>\n", "e@f", b"Return-Path: <e@f>\n", id="framing"),
        pytest.param(None, None, b"Return-Path: <>\n", "", b"Return-Path: <>\n", id="the framing's null sender"),
        pytest.param(None, None, b"", "", b"", id="nobody says"),
        pytest.param("MAILER-DAEMON", None, b"", "", b"Return-Path: <>\n", id="pipe(8)'s null sender"),
        pytest.param("<>", None, b"", "", b"Return-Path: <>\n", id="in brackets"),
        pytest.param(
            "MAILER-DAEMON@b", None, b"", "MAILER-DAEMON@b", b"Return-Path: <MAILER-DAEMON@b>\n", id="an address"
        ),
    ],
)
def test_the_sender(option: str | None, variable: str | None, framing: bytes, sender: str, line: bytes) -> None:
    environment = {} if variable is None else {"SENDER": variable}
    call = Call(sender=option, recipient="you@example.org")
    envelope = envelope_of(call, environment, Framing(return_path=framing), "/m")
    assert (envelope.sender, envelope.return_path) == (sender, line)


def test_the_mtas_own_lines_are_taken_as_they_are() -> None:
    """qmail quotes in RPLINE what SENDER has plain, and names in DTLINE the address that it looks for itself."""
    quoted = VPOPMAIL | {"SENDER": "a b@example.net", "RPLINE": 'Return-Path: <"a b"@example.net>\n'}
    envelope = envelope_of(Call(), quoted, NOTHING, "/m")
    assert envelope.sender == "a b@example.net"
    assert envelope.return_path == b'Return-Path: <"a b"@example.net>\n'
    assert envelope.delivered_to == b"Delivered-To: example.org-you+Lists@example.org\n"
    assert envelope.loop_addresses == ("example.org-you+Lists@example.org", "you+Lists@example.org")
    assert (envelope.recipient, envelope.extension, envelope.maildir) == ("you+Lists@example.org", "Lists", "/m")
    assert envelope_of(Call(), QMAIL, NOTHING, "/m").loop_addresses == ("you-lists-qmail@example.org",)
    assert envelope_of(Call(loop_check=False), QMAIL, NOTHING, "/m").loop_addresses == ()
    other = envelope_of(Call(sender="x@y"), quoted, NOTHING, "/m")
    assert other.return_path == b"Return-Path: <x@y>\n"  # RPLINE is of another sender


def test_no_variable_can_begin_another_header_line() -> None:
    """Control characters become "_", as qmail makes its own lines (qmail-local.c)."""
    lines = {"RPLINE": "Return-Path: <a\nX-Spam-Flag: NO\x7f>\n", "DTLINE": "Subject: x\n"}
    envelope = envelope_of(Call(), QMAIL | lines | {"RECIPIENT": "you\r\nX: \x00\x1fy@example.org"}, NOTHING, "/m")
    assert envelope.return_path == b"Return-Path: <a_X-Spam-Flag: NO_>\n"
    assert envelope.delivered_to == b"Delivered-To: you__X: __y@example.org\n"
    raw = envelope_of(Call(), QMAIL | {"RPLINE": "Return-Path: <caf\udce9@example.net>\n"}, NOTHING, "/m")
    assert raw.return_path == b"Return-Path: <caf\xe9@example.net>\n"  # any other byte stays


def test_header_lines_of_the_command_line() -> None:
    call = Call(recipient="you@example.org", headers=("X-A: b", "X-Time:12:00 ", "X-Empty:"))
    assert envelope_of(call, {}, NOTHING, "/m").headers == b"X-A: b\nX-Time: 12:00\nX-Empty: \n"


@pytest.mark.parametrize("line", ["X-A", "", ": b", "X A: b", "X-\u00c4: b"])
def test_what_is_no_header_line_is_a_slip_in_the_command_line(line: str) -> None:
    with pytest.raises(Deferred, match="is not a header line"):
        envelope_of(Call(recipient="you@example.org", headers=(line,)), {}, NOTHING, "/m")
