"""LMTP as the service speaks it: RFC 2033, RFC 5321 and the extensions that are offered.

A dialogue has two columns: what the client sends, a line each, and what it hears (of replies, code and status) or what
the session's owner sees. The owner of these tests knows every user but "nobody", cannot tell about "later", has no room
for what "huge" sends, and finds the mailbox of "full" full.
"""

import random
import re
import smtplib
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest

from deliver.lmtp import (
    Abort,
    Answer,
    Chunk,
    DataAsked,
    DataDone,
    Mailbox,
    Quit,
    RecipientAsked,
    Session,
    answer_to,
)
from deliver.values import Reply

MAX_SIZE = 1000
BLOCK = 64 * 1024


class Owner:
    """Plays the service's part and writes down what happens, in order."""

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        self.session = Session("mx.example.com", max_size)
        self.happened: list[str] = []
        self.replies = b""
        self.message = b""
        self.messages: list[bytes] = []
        self.open = True
        self.sent(self.session.greeting())

    def sent(self, data: bytes) -> None:
        self.replies += data
        assert data == b"" or data.endswith(b"\r\n")
        for line in data.decode("ascii").split("\r\n")[:-1]:
            assert len(line) <= 510  # RFC 5321 section 4.5.3.1.5
            assert line.isprintable()
            enhanced = re.match(r"([245])\d\d \1\.\d\.\d (?=.)", line)  # RFC 2034: the classes agree
            assert enhanced or re.match(r"220 |250[- ]|354 ", line), line
            self.happened.append(enhanced[0].rstrip() if enhanced else "354" if line[:3] == "354" else line)

    def feed(self, data: bytes) -> None:
        self.session.receive(data)
        self.run()

    def run(self) -> None:
        while self.open:
            event = self.session.next_event()
            self.sent(self.session.output())
            match event:
                case None:
                    return
                case RecipientAsked(recipient):
                    self.happened.append(f"asked {recipient.address}")
                    if recipient.local_part == "nobody":
                        self.session.refuse(Answer(550, "5.1.1", "No such user"))
                    elif recipient.local_part == "later":
                        self.session.refuse(Answer(451, "4.3.0", "Cannot tell"))
                    else:
                        self.session.accept()
                case DataAsked(sender, recipients, size):
                    to = " ".join(recipient.address for recipient in recipients)
                    self.happened.append(f"data <{sender.address}> {to} {size}")
                    if sender.local_part == "huge":
                        self.session.refuse(Answer(452, "4.3.1", "Disk is full"))
                    else:
                        self.session.accept()
                case Chunk(data):
                    assert data
                    self.message += data
                case DataDone(sender, recipients):
                    to = " ".join(recipient.address for recipient in recipients)
                    self.happened.append(f"done <{sender.address}> {to} {self.message!r}")
                    self.messages.append(self.message)
                    self.message = b""
                    full = Answer(552, "5.2.2", "Mailbox is full")
                    good = Answer(250, "2.0.0", "Delivered")
                    self.session.complete([full if r.local_part == "full" else good for r in recipients])
                case Abort(reason):
                    self.message = b""
                    self.happened.append(f"abort {reason}")
                case Quit(reason):
                    self.open = False
                    self.happened.append(f"quit {reason}")


def play(pieces: Iterable[bytes], max_size: int = MAX_SIZE) -> list[str]:
    """What happens behind the greeting when the client sends these pieces and closes the connection."""
    owner = Owner(max_size)
    for piece in pieces:
        if owner.open:
            owner.feed(piece)
    if owner.open:
        owner.feed(b"")
    assert owner.happened.pop(0) == "220 mx.example.com LMTP"
    assert not owner.open
    return owner.happened


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def cut(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """Pieces of 1 to 20 bytes."""
    while data:
        size = chance.randint(1, 20)
        yield data[:size]
        data = data[size:]


def same_however_cut(data: bytes, max_size: int = MAX_SIZE) -> list[str]:
    whole = play([data], max_size)
    assert play(bytewise(data), max_size) == whole
    chance = random.Random(len(data))
    for _ in range(5):
        assert play(cut(data, chance), max_size) == whole
    return whole


BEGIN = b"LHLO c\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\n"
BEGUN = ["250 2.1.0", "asked b@x", "250 2.1.5"]


def after_lhlo(data: bytes, max_size: int = MAX_SIZE) -> list[str]:
    """What happens, without the answer to LHLO, and in which order whatever the cuts."""
    happened = same_however_cut(b"LHLO c\r\n" + data, max_size)
    return happened[happened.index(f"250 SIZE {max_size}") + 1 :]


# Dialogues.

HELLO = """
    LHLO client.example      | 250-mx.example.com
                             | 250-PIPELINING
                             | 250-8BITMIME
                             | 250-SMTPUTF8
                             | 250-ENHANCEDSTATUSCODES
                             | 250 SIZE 1000
"""

DIALOGUES = {
    "one recipient": r"""
    MAIL FROM:<a@example.com>                     | 250 2.1.0
    RCPT TO:<b@example.com>                       | asked b@example.com
                                                  | 250 2.1.5
    DATA                                          | data <a@example.com> b@example.com 0
                                                  | 354
    Subject: x                                    |
                                                  |
    ..                                            |
    body                                          |
    .                                             | done <a@example.com> b@example.com b'Subject: x\n\n.\nbody\n'
                                                  | 250 2.0.0
    QUIT                                          | 221 2.0.0
                                                  | quit QUIT
    """,
    "one reply per accepted recipient, in order, also for one given twice (RFC 2033 section 4.2)": r"""
    MAIL FROM:<a@x>                               | 250 2.1.0
    RCPT TO:<b@x>                                 | asked b@x
                                                  | 250 2.1.5
    RCPT TO:<nobody@x>                            | asked nobody@x
                                                  | 550 5.1.1
    RCPT TO:<full@x>                              | asked full@x
                                                  | 250 2.1.5
    RCPT TO:<later@x>                             | asked later@x
                                                  | 451 4.3.0
    RCPT TO:<b@x>                                 | asked b@x
                                                  | 250 2.1.5
    DATA                                          | data <a@x> b@x full@x b@x 0
                                                  | 354
    .                                             | done <a@x> b@x full@x b@x b''
                                                  | 250 2.0.0
                                                  | 552 5.2.2
                                                  | 250 2.0.0
    QUIT                                          | 221 2.0.0
                                                  | quit QUIT
    """,
    "the second message knows nothing of the first": r"""
    MAIL FROM:<a@x> SIZE=10 SMTPUTF8              | 250 2.1.0
    RCPT TO:<b@x>                                 | asked b@x
                                                  | 250 2.1.5
    DATA                                          | data <a@x> b@x 10
                                                  | 354
    x                                             |
    .                                             | done <a@x> b@x b'x\n'
                                                  | 250 2.0.0
    RCPT TO:<b@x>                                 | 503 5.5.1
    DATA                                          | 503 5.5.1
    MAIL FROM:<>                                  | 250 2.1.0
    DATA                                          | 503 5.5.1
    RCPT TO:<\xc3\xb6@x>                          | 553 5.6.7
    RCPT TO:<c@x>                                 | asked c@x
                                                  | 250 2.1.5
    DATA                                          | data <> c@x 0
                                                  | 354
    y                                             |
    .                                             | done <> c@x b'y\n'
                                                  | 250 2.0.0
    QUIT                                          | 221 2.0.0
                                                  | quit QUIT
    """,
    "no valid recipient, no data (RFC 2033 section 4.2)": r"""
    DATA                                          | 503 5.5.1
    MAIL FROM:<a@x>                               | 250 2.1.0
    DATA                                          | 503 5.5.1
    RCPT TO:<nobody@x>                            | asked nobody@x
                                                  | 550 5.1.1
    DATA                                          | 503 5.5.1
    RCPT TO:<b@x>                                 | asked b@x
                                                  | 250 2.1.5
    QUIT                                          | 221 2.0.0
                                                  | abort QUIT
                                                  | quit QUIT
    """,
    "commands in the wrong order": r"""
    RCPT TO:<b@x>                                 | 503 5.5.1
    MAIL FROM:<a@x>                               | 250 2.1.0
    MAIL FROM:<c@x>                               | 503 5.5.1
    RCPT TO:<b@x>                                 | asked b@x
                                                  | 250 2.1.5
    MAIL FROM:<c@x>                               | 503 5.5.1
    DATA                                          | data <a@x> b@x 0
                                                  | 354
    .                                             | done <a@x> b@x b''
                                                  | 250 2.0.0
                                                  | quit connection closed
    """,
    "RSET and LHLO forget the transaction": r"""
    RSET                                          | 250 2.0.0
    MAIL FROM:<a@x>                               | 250 2.1.0
    RSET                                          | 250 2.0.0
    MAIL FROM:<a@x>                               | 250 2.1.0
    RCPT TO:<b@x>                                 | asked b@x
                                                  | 250 2.1.5
    RSET                                          | 250 2.0.0
                                                  | abort RSET
    RCPT TO:<b@x>                                 | 503 5.5.1
    MAIL FROM:<a@x>                               | 250 2.1.0
    RCPT TO:<b@x>                                 | asked b@x
                                                  | 250 2.1.5
    LHLO again.example                            | 250-mx.example.com
                                                  | 250-PIPELINING
                                                  | 250-8BITMIME
                                                  | 250-SMTPUTF8
                                                  | 250-ENHANCEDSTATUSCODES
                                                  | 250 SIZE 1000
                                                  | abort LHLO
    DATA                                          | 503 5.5.1
                                                  | quit connection closed
    """,
    "HELO and EHLO are not LMTP's (RFC 2033 section 4.1)": r"""
    EHLO client.example                           | 500 5.5.1
    HELO client.example                           | 500 5.5.1
    MAIL FROM:<a@x>                               | 250 2.1.0
                                                  | quit connection closed
    """,
    "the other commands": r"""
    NOOP                                          | 250 2.0.0
    NOOP with a word                              | 250 2.0.0
    VRFY somebody                                 | 252 2.0.0
    VRFY                                          | 501 5.5.4
    LHLO                                          | 501 5.5.4
    EXPN list                                     | 500 5.5.2
    HELP                                          | 214 2.0.0
    BDAT 3 LAST                                   | 500 5.5.2
    STARTTLS                                      | 500 5.5.2
    XYZZY                                         | 500 5.5.2
    \x20                                          | 500 5.5.2
    \x20 NOOP                                     | 500 5.5.2
    NOOP\x00                                      | 500 5.5.2
    \xff\xfe                                      | 500 5.5.2
    RSET now                                      | 501 5.5.4
    DATA now                                      | 501 5.5.4
    QUIT now                                      | 501 5.5.4
    quit                                          | 221 2.0.0
                                                  | quit QUIT
    NOOP                                          |
    """,
    "letters of either case, blanks that RFC 5321 does not know": r"""
    mail from:<a@x> size=1000 body=8bitmime       | 250 2.1.0
    Rcpt To: <b@x>\x20                            | asked b@x
                                                  | 250 2.1.5
    data\x20\x09\x20                              | data <a@x> b@x 1000
                                                  | 354
    .                                             | done <a@x> b@x b''
                                                  | 250 2.0.0
                                                  | quit connection closed
    """,
    "what MAIL does not take": r"""
    MAIL                                          | 501 5.5.4
    MAIL FROM                                     | 501 5.5.4
    MAIL FROM:                                    | 501 5.5.4
    MAIL FROM:a@x                                 | 501 5.5.4
    MAIL FROM:<a@x                                | 501 5.5.4
    MAIL FROM:<"a@x>                              | 501 5.5.4
    MAIL FROM:<a@x>SIZE=1                         | 501 5.5.4
    MAIL TO:<a@x>                                 | 501 5.5.4
    MAIL FROM:<a b@x>                             | 553 5.1.7
    MAIL FROM:<a@x@y>                             | 553 5.1.7
    MAIL FROM:<a@>                                | 553 5.1.7
    MAIL FROM:<@x>                                | 553 5.1.7
    MAIL FROM:<@x:>                               | 553 5.1.7
    MAIL FROM:<"a"b@x>                            | 553 5.1.7
    MAIL FROM:<a\x00@x>                           | 553 5.1.7
    MAIL FROM:<a\rb@x>                            | 553 5.1.7
    MAIL FROM:<"a\x7f"@x>                         | 553 5.1.7
    MAIL FROM:<\xc3\xb6@x>                        | 553 5.6.7
    MAIL FROM:<a@\xff>                            | 553 5.6.7
    MAIL FROM:<a@\xff> SMTPUTF8                   | 553 5.1.7
    MAIL FROM:<a\xc2\x85b@x> SMTPUTF8             | 553 5.1.7
    MAIL FROM:<\xc3\xb6@x>                        | 553 5.6.7
    MAIL FROM:<a@x> SIZE=1001                     | 552 5.3.4
    MAIL FROM:<a@x> SIZE=99999999999999999999     | 552 5.3.4
    MAIL FROM:<a@x> SIZE=999999999999999999999    | 501 5.5.4
    MAIL FROM:<a@x> SIZE                          | 501 5.5.4
    MAIL FROM:<a@x> SIZE=-1                       | 501 5.5.4
    MAIL FROM:<a@x> SIZE=1 SIZE=2                 | 501 5.5.4
    MAIL FROM:<a@x> BODY=BINARYMIME               | 555 5.5.4
    MAIL FROM:<a@x> BODY                          | 555 5.5.4
    MAIL FROM:<a@x> SMTPUTF8=1                    | 501 5.5.4
    MAIL FROM:<a@x> RET=FULL                      | 555 5.5.4
    MAIL FROM:<a@x> AUTH=<>                       | 555 5.5.4
    RCPT TO:<b@x>                                 | 503 5.5.1
    MAIL FROM:<a@x>                               | 250 2.1.0
                                                  | quit connection closed
    """,
    "what RCPT does not take": r"""
    MAIL FROM:<a@x>                               | 250 2.1.0
    RCPT                                          | 501 5.5.4
    RCPT TO:b@x                                   | 501 5.5.4
    RCPT FROM:<b@x>                               | 501 5.5.4
    RCPT TO:<b@x> NOTIFY=NEVER                    | 555 5.5.4
    RCPT TO:<b@x> ORCPT=rfc822;b@x                | 555 5.5.4
    RCPT TO:<>                                    | 550 5.1.3
    RCPT TO:<b>                                   | 550 5.1.3
    RCPT TO:<@x>                                  | 550 5.1.3
    RCPT TO:<"b"@>                                | 550 5.1.3
    RCPT TO:<""@x>                                | 550 5.1.3
    RCPT TO:<b c@x>                               | 550 5.1.3
    RCPT TO:<b@c@x>                               | 550 5.1.3
    RCPT TO:<b@x y>                               | 550 5.1.3
    RCPT TO:<b\x00@x>                             | 550 5.1.3
    RCPT TO:<b@x\x00>                             | 550 5.1.3
    RCPT TO:<"b\x00"@x>                           | 550 5.1.3
    RCPT TO:<"b\\\x00"@x>                         | 550 5.1.3
    RCPT TO:<b\r@x>                               | 550 5.1.3
    RCPT TO:<"b\x1b[0m"@x>                        | 550 5.1.3
    RCPT TO:<b@x\x7f>                             | 550 5.1.3
    RCPT TO:<../b@x>                              | 550 5.1.3
    RCPT TO:<a/b@x>                               | 550 5.1.3
    RCPT TO:<"a/b"@x>                             | 550 5.1.3
    RCPT TO:<"a\\/b"@x>                           | 550 5.1.3
    RCPT TO:<b@x/../y>                            | 550 5.1.3
    RCPT TO:<.b@x>                                | 550 5.1.3
    RCPT TO:<..@x>                                | 550 5.1.3
    RCPT TO:<".b"@x>                              | 550 5.1.3
    RCPT TO:<"\\.b"@x>                            | 550 5.1.3
    RCPT TO:<b@.x>                                | 550 5.1.3
    RCPT TO:<b@..>                                | 550 5.1.3
    RCPT TO:<b\xc3\xb6@x>                         | 553 5.6.7
    RCPT TO:<b@\xff>                              | 553 5.6.7
    RCPT TO:<b@x>                                 | asked b@x
                                                  | 250 2.1.5
                                                  | abort connection closed
                                                  | quit connection closed
    """,
    "addresses as people have them": r"""
    MAIL FROM:<#@[]>                              | 250 2.1.0
    RCPT TO:<a..b.@x>                             | asked a..b.@x
                                                  | 250 2.1.5
    RCPT TO:<@one.example,@two.example:b@x>       | asked b@x
                                                  | 250 2.1.5
    RCPT TO:<"b"@x>                               | asked b@x
                                                  | 250 2.1.5
    RCPT TO:<"b c> \\"d\\\\"@x>                   | asked b c> "d\@x
                                                  | 250 2.1.5
    RCPT TO:<"b@c"@x>                             | asked b@c@x
                                                  | 250 2.1.5
    RCPT TO:<-b+Folder$(id)'@X.example>           | asked -b+Folder$(id)'@X.example
                                                  | 250 2.1.5
    RCPT TO:<b@[IPv6:::1]>                        | asked b@[IPv6:::1]
                                                  | 250 2.1.5
                                                  | abort connection closed
                                                  | quit connection closed
    """,
    "addresses in UTF-8 (RFC 6531)": r"""
    MAIL FROM:<\xc3\xb6@x> BODY=8BITMIME SMTPUTF8 | 250 2.1.0
    RCPT TO:<\xc3\xa4@\xc3\xbc.example>           | asked ä@ü.example
                                                  | 250 2.1.5
    RCPT TO:<\xe4@x>                              | 550 5.1.3
    RCPT TO:<a\xc2\x80@x>                         | 550 5.1.3
    DATA                                          | data <ö@x> ä@ü.example 0
                                                  | 354
    \xc3\xb6\xff\x00                              |
    .                                             | done <ö@x> ä@ü.example b'\xc3\xb6\xff\x00\n'
                                                  | 250 2.0.0
                                                  | quit connection closed
    """,
    "the owner refuses the data, the recipients stay": r"""
    MAIL FROM:<huge@x> SIZE=999                   | 250 2.1.0
    RCPT TO:<b@x>                                 | asked b@x
                                                  | 250 2.1.5
    DATA                                          | data <huge@x> b@x 999
                                                  | 452 4.3.1
    DATA                                          | data <huge@x> b@x 999
                                                  | 452 4.3.1
    RSET                                          | 250 2.0.0
                                                  | abort RSET
                                                  | quit connection closed
    """,
    "the connection ends within the data": r"""
    MAIL FROM:<a@x>                               | 250 2.1.0
    RCPT TO:<b@x>                                 | asked b@x
                                                  | 250 2.1.5
    DATA                                          | data <a@x> b@x 0
                                                  | 354
    x                                             |
    .\x20                                         | abort connection closed
                                                  | quit connection closed
    """,
}


def columns(dialogue: str) -> list[tuple[bytes, list[str]]]:
    """Each of the client's lines, with what follows it. Where both columns are empty the client's line is."""
    turns: list[tuple[bytes, list[str]]] = []
    for line in dialogue.strip("\n").splitlines():
        if not line.strip():
            continue
        left, _, right = line.partition(" |")
        sent, heard = left.strip(), right.strip()
        if sent or not heard:
            data = sent.encode("ascii").decode("unicode_escape").encode("latin-1") + b"\r\n"
            turns.append((data, [heard] if heard else []))
        else:
            turns[-1][1].append(heard)
    return turns


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue(name):
    turns = columns(HELLO) + columns(DIALOGUES[name])
    sent = b"".join(data for data, _ in turns)
    expected = [line for _, heard in turns for line in heard]
    assert play([sent]) == expected  # pipelined
    assert play(bytewise(sent)) == expected
    # In lockstep: each line's replies come before the next line is sent.
    owner = Owner()
    del owner.happened[:]
    for data, heard in turns:
        if owner.open:
            owner.feed(data)
        now = [line for line in heard if not line.endswith("connection closed")]
        assert (data, owner.happened) == (data, now)
        del owner.happened[:]


@pytest.mark.parametrize("command", ["MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA"])
def test_nothing_before_lhlo(command):
    assert play([command.encode() + b"\r\nRSET\r\n"]) == ["503 5.5.1", "250 2.0.0", "quit connection closed"]


# Addresses.


def recipient_of(path: bytes) -> Mailbox:
    session = Session("mx", MAX_SIZE)
    session.receive(b"LHLO c\r\nMAIL FROM:<> SMTPUTF8\r\nRCPT TO:" + path + b"\r\n")
    event = session.next_event()
    assert isinstance(event, RecipientAsked)
    return event.recipient


@pytest.mark.parametrize(
    ("path", "mailbox"),
    [
        (b"<b@x.example>", Mailbox("b@x.example", "b", "x.example", "b@x.example")),
        (b"<@r.example:B@X>", Mailbox("B@X", "B", "X", "B@X")),
        (b'<"b c"@x>', Mailbox("b c@x", "b c", "x", '"b c"@x')),
        (b'<@r:"a\\"b"@x>', Mailbox('a"b@x', 'a"b', "x", '"a\\"b"@x')),
        (b'<"a@y"@x>', Mailbox("a@y@x", "a@y", "x", '"a@y"@x')),
        (b'<"\\b"@x>', Mailbox("b@x", "b", "x", '"\\b"@x')),
        ("<ä@ü>".encode(), Mailbox("ä@ü", "ä", "ü", "ä@ü")),
    ],
)
def test_the_parts_of_an_address(path, mailbox):
    assert recipient_of(path) == mailbox


@pytest.mark.parametrize(
    ("path", "mailbox"),
    [
        (b"<>", Mailbox("", "", "", "")),
        (b"<root>", Mailbox("root", "root", "", "root")),
        (b"<../a|b/$(c)@x>", Mailbox("../a|b/$(c)@x", "../a|b/$(c)", "x", "../a|b/$(c)@x")),
        (b'<"a b"@x>', Mailbox("a b@x", "a b", "x", '"a b"@x')),
        (b"<#@[]>", Mailbox("#@[]", "#", "[]", "#@[]")),
    ],
)
def test_a_sender_may_be_anything(path, mailbox):
    session = Session("mx", MAX_SIZE)
    session.receive(b"LHLO c\r\nMAIL FROM:" + path + b"\r\nRCPT TO:<b@x>\r\nDATA\r\n")
    session.next_event()
    session.accept()
    event = session.next_event()
    assert isinstance(event, DataAsked)
    assert event.sender == mailbox


@pytest.mark.parametrize("path", [b'<"' * 1000, b'<"\\' + b'"\\' * 1000, b"<" + b'"a"' * 600, b"<@a:" + b"@" * 2000])
def test_no_address_takes_long(path):
    started = time.process_time()
    assert after_lhlo(b"MAIL FROM:" + path[:2000] + b">\r\n")[0] in ("501 5.5.4", "553 5.1.7")
    assert time.process_time() - started < 5  # for some 2,500 sessions' worth of bytes


def test_a_thousand_recipients_and_no_more():
    recipients = [b"RCPT TO:<u%d@x>\r\n" % number for number in range(1002)]
    data = b"LHLO c\r\nMAIL FROM:<a@x>\r\nRCPT TO:<nobody@x>\r\n" + b"".join(recipients) + b"DATA\r\n.\r\nNOOP\r\n"
    happened = play([data])
    assert happened.count("250 2.1.5") == 1000
    assert [line for line in happened if line[0] in "45"] == ["550 5.1.1", "452 4.5.3", "452 4.5.3"]
    assert happened.count("250 2.0.0") == 1000 + 1


# Lines.


def test_a_line_of_2048_bytes_is_read_and_none_longer():
    def noop(length: int) -> bytes:
        return b"NOOP " + b"x" * (length - 7) + b"\r\n"

    assert after_lhlo(noop(2048) + noop(2049) + noop(2048)) == [
        "250 2.0.0", "500 5.5.6", "250 2.0.0", "quit connection closed",
    ]  # fmt: skip


@pytest.mark.parametrize("filler", [b"x", b"\r", b"\0", b"\xff"])
def test_a_long_line_is_one_error(filler):
    long = b"RCPT TO:<" + filler * 70_000 + b"\r\n"
    owner = Owner()
    for start in range(0, len(long), 1000):
        owner.feed(long[start : start + 1000])
    owner.feed(b"NOOP\r\n")
    assert owner.happened[1:] == ["500 5.5.6", "250 2.0.0"]


@pytest.mark.parametrize(
    "line",
    [
        b"NOOP\nRSET\r\n",
        b"\nRSET\r\n",
        b"NOOP\n\r\n",
        b"NOOP\n\n\r\r\n",
        b"RCPT TO:<b@x\nRCPT TO:<c@x>\r\n",
        b"NOOP\n" + b"x" * 5000 + b"\r\n",
    ],
)
def test_a_bare_lf_ends_no_command(line):
    """Or an MTA that lets one through in an address would let a stranger speak in its name."""
    assert after_lhlo(line + b"VRFY x\r\n") == ["500 5.5.2", "252 2.0.0", "quit connection closed"]


def test_the_answer_to_a_bare_lf_does_not_wait():
    owner = Owner()
    owner.feed(b"NOOP\n")
    assert owner.happened[1:] == ["500 5.5.2"]


@pytest.mark.parametrize("wrong", [b"XYZZY", b"MAIL FROM:<> RET=FULL", b"DATA", b"NOOP\n", b"x" * 3000, b"MAIL"])
def test_too_many_errors_end_the_session(wrong):
    happened = after_lhlo((wrong + b"\r\n") * 60)
    assert len(happened) == 52
    assert {line[0] for line in happened[:50]} == {"5"}
    assert happened[50:] == ["421 4.7.0", "quit Too many errors"]


def test_too_many_errors_void_the_transaction():
    happened = play([BEGIN + b"XYZZY\r\n" * 51])
    assert happened[-3:] == ["421 4.7.0", "abort Too many errors", "quit Too many errors"]


def test_a_message_makes_up_for_errors_and_refused_recipients_are_none():
    message = BEGIN[8:] + b"DATA\r\n.\r\n"
    refused = b"MAIL FROM:<a@x>\r\n" + b"RCPT TO:<nobody@x>\r\nRCPT TO:<.@x>\r\n" * 60 + b"RSET\r\n"
    happened = play([b"LHLO c\r\n" + (b"XYZZY\r\n" * 40 + message) * 3 + refused])
    assert happened.count("500 5.5.2") == 120
    assert happened.count("550 5.1.1") == happened.count("550 5.1.3") == 60
    assert happened[-1] == "quit connection closed"


# Data.


@pytest.mark.parametrize(
    ("wire", "stored"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\n"),
        (b"..\r\n.\r\n", b".\n"),
        (b"...\r\n.\r\n", b"..\n"),
        (b".x\r\n.\r\n", b"x\n"),
        (b"a\r\n..\r\n..b\r\n.c\r\n.\r\n", b"a\n.\n.b\nc\n"),
        (b"a\r\n\r\n\r\n.\r\n", b"a\n\n\n"),
        # RFC 5321 section 4.1.1.4: nothing but <CRLF>.<CRLF> ends it. What smuggles mail elsewhere is text here.
        (b"a\n.\nb\r\n.\r\n", b"a\n.\nb\n"),
        (b"a\r.\rb\r\n.\r\n", b"a\r.\rb\n"),
        (b"a\n.\r\nb\r\n.\r\n", b"a\n.\nb\n"),
        (b"a\r.\r\nb\r\n.\r\n", b"a\r.\nb\n"),
        (b"a\r\n.\nb\r\n.\r\n", b"a\n\nb\n"),
        (b"a\r\n.\rb\r\n.\r\n", b"a\n\rb\n"),
        (b"a\r\n\0.\r\nb\r\n.\r\n", b"a\n\0.\nb\n"),
        (b"a\r\n.\0\r\nb\r\n.\r\n", b"a\n\0\nb\n"),
        (b"a\n\r.\r\nb\r\n.\r\n", b"a\n\r.\nb\n"),
        (b"a\r\r\n.\r\r\nb\r\n.\r\n", b"a\r\n\r\nb\n"),
        (b"a\r\r\n.b\r\n.\r\n", b"a\r\nb\n"),
        (b"a\r\n.\r.\r\n.\r\n", b"a\n\r.\n"),
        (b"a\r\n. \r\n.\r\n", b"a\n \n"),
        (b".\nb\r\n.\r\n", b"\nb\n"),
        (b".\rb\r\n.\r\n", b"\rb\n"),
        (b"\n.\n\r\n.\r\n", b"\n.\n\n"),
        (b"\r.\r\r\n.\r\n", b"\r.\r\n"),
        # Dots behind a bare LF or CR were not stuffed.
        (b"a\n..\nb\r\n.\r\n", b"a\n..\nb\n"),
        (b"a\r..\rb\r\n.\r\n", b"a\r..\rb\n"),
        # All else as it came.
        (b"\0\xff\x1a\x80\r\n.\r\n", b"\0\xff\x1a\x80\n"),
        (b"QUIT\r\nRSET\r\n.\r\n", b"QUIT\nRSET\n"),
    ],
)
def test_data(wire, stored):
    happened = after_lhlo(BEGIN[8:] + b"DATA\r\n" + wire + b"VRFY x\r\n")
    assert happened == [
        *BEGUN, "data <a@x> b@x 0", "354", f"done <a@x> b@x {stored!r}", "250 2.0.0", "252 2.0.0",
        "quit connection closed",
    ]  # fmt: skip


def test_messages_of_any_lines_come_through_however_cut():
    """Dot-stuffing as RFC 5321 section 4.5.2 tells the sender, undone."""
    chance = random.Random(33)
    for _ in range(300):
        tokens = [b"\r", b"\n", b".", b"..", b"a", b"\r.", b"\n.", b".\r", b".\n", b"\n.\n", b"x" * 30]
        lines = [b"".join(chance.choices(tokens, k=chance.randint(0, 4))) for _ in range(chance.randint(0, 12))]
        lines = b"".join(line + b"\r\n" for line in lines).split(b"\r\n")[:-1]  # two tokens may have made a CRLF
        wire = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"
        data = BEGIN + b"DATA\r\n" + wire + b"QUIT\r\n"
        for pieces in ([data], bytewise(data), cut(data, chance), cut(data, chance)):
            owner = Owner(100_000)
            for piece in pieces:
                owner.feed(piece)
            assert owner.messages == [b"".join(line + b"\n" for line in lines)]
            assert owner.happened[-1] == "quit QUIT"


def test_nonsense_is_the_same_however_cut():
    chance = random.Random(2033)
    tokens = b"LHLO c|MAIL FROM:<a@x>|RCPT TO:<b@x>|RCPT TO:<nobody@x>|DATA|RSET|NOOP|.|..|x|QUIT|MAIL FROM:<huge@x>"
    words = [*tokens.split(b"|"), *[b"RSET\r\n" + BEGIN + b"DATA"] * 3]
    ends = [b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"", b"\r\n.\r\n", b"\r\n.", b"y" * 3000]
    for _ in range(150):
        data = b"".join(word + chance.choice(ends) for word in chance.choices(words, k=chance.randint(1, 40)))
        whole = play([data], 60)
        assert play(cut(data, chance), 60) == whole
        assert play(bytewise(data), 60) == whole


# Size.


def test_a_message_may_have_max_size_with_crlf_and_without_stuffing():
    """RFC 1870 section 5 counts CRLF as two and neither the final dot nor the dots that stuffing adds."""
    line = b"." * 98 + b"\r\n"
    exactly = (b"." + line) * 10 + b".\r\n"
    assert len(line) * 10 == MAX_SIZE
    begin = BEGIN[8:] + b"DATA\r\n"
    whole = [*BEGUN, "data <a@x> b@x 0", "354"]
    stored = (b"." * 98 + b"\n") * 10
    assert after_lhlo(begin + exactly)[len(whole)] == f"done <a@x> b@x {stored!r}"
    for wire in (b"x" + exactly, b"\n" + exactly, b"\r\n" + exactly):
        assert after_lhlo(begin + wire) == [*whole, "abort message is too big", "552 5.3.4", "quit connection closed"]


def test_too_much_data_is_refused_once_per_recipient():
    data = BEGIN + b"RCPT TO:<nobody@x>\r\nRCPT TO:<c@x>\r\nDATA\r\n" + b"x\r\n..\n.\nQUIT\r\n" * 1000 + b".\r\n"
    happened = play([data + b"DATA\r\n" + BEGIN[8:] + b"DATA\r\ny\r\n.\r\nQUIT\r\n"])
    at = happened.index("abort message is too big")
    assert happened[at + 1 :] == [
        "552 5.3.4", "552 5.3.4", "503 5.5.1", *BEGUN, "data <a@x> b@x 0", "354", r"done <a@x> b@x b'y\n'", "250 2.0.0",
        "221 2.0.0", "quit QUIT",
    ]  # fmt: skip
    for pieces in (bytewise(data), cut(data, random.Random(1))):
        assert play(pieces)[at:] == ["abort message is too big", "552 5.3.4", "552 5.3.4", "quit connection closed"]


def test_a_message_is_aborted_once():
    assert play([BEGIN + b"DATA\r\n" + b"x" * 2000])[-2:] == ["abort message is too big", "quit connection closed"]


def drive(session: Session, data: bytes) -> int:
    """Feed a session that knows every user but "nobody"; how many bytes of messages it gave."""
    size = 0
    session.receive(data)
    while event := session.next_event():
        match event:
            case RecipientAsked(recipient) if recipient.local_part == "nobody":
                session.refuse(Answer(550, "5.1.1", "No such user"))
            case RecipientAsked() | DataAsked():
                session.accept()
            case Chunk(data):
                size += len(data)
            case DataDone(_, recipients):
                session.complete([Answer(250, "2.0.0", "Delivered")] * len(recipients))
    return size


STREAMS = {
    "a command without end": (b"NOOP\r\n", b"x", 10**9),
    "a skipped line": (b"\n", b"\n", 10**9),
    "commands": (b"NOOP\r\n", b"NOOP\r\n", 10**9),
    "recipients that are refused": (b"LHLO c\r\nMAIL FROM:<>\r\n", b"RCPT TO:<nobody@x>\r\n", 10**9),
    "recipients": (b"LHLO c\r\nMAIL FROM:<>\r\n" + b"RCPT TO:<b@x>\r\n" * 1000, b"RCPT TO:<b@x>\r\n", 10**9),
    "data": (BEGIN + b"DATA\r\n", b"x" * 76 + b"\r\n", 10**9),
    "data of one line": (BEGIN + b"DATA\r\n", b"\r", 10**9),
    "data of dots": (BEGIN + b"DATA\r\n", b"\r\n..", 10**9),
    "what comes after QUIT": (b"QUIT\r\n", b"x", 10**9),
    "too much data": (BEGIN + b"DATA\r\n", b"x", MAX_SIZE),
}
"""What is sent first, what is then sent over and over, and how large a message may be."""


@pytest.mark.parametrize("name", STREAMS)
def test_memory_is_bounded(name):
    first, again, max_size = STREAMS[name]
    session = Session("mx", max_size)
    block = again * (16 * 1024 // len(again))

    def feed(data: bytes) -> None:
        drive(session, data)
        session.output()

    feed(first)
    tracemalloc.start()
    try:
        feed(block)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(20):
            feed(block)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < len(block) / 2
    assert peak - before < 15 * len(block)


@pytest.mark.parametrize(
    ("line", "stored"),
    [
        (b"x" * 60 + b"\r\n", 61),
        (b".." + b"x" * 60 + b"\r\n", 62),
        (b"..\r\n", 2),
        (b"\r\n", 1),
        (b"\r", 1),
        (b"\n.\n", 3),
        (b"x" * 100_000, 100_000),
    ],
    ids=["text", "dots", "dots alone", "empty", "CR", "LF", "one long line"],
)
def test_25_mb_take_a_fraction_of_a_second(line, stored):
    lines = 25_000_000 // len(line)
    wire = line * lines + b"\r\n.\r\n"
    session = Session("mx", 50_000_000)
    drive(session, BEGIN + b"DATA\r\n")
    started = time.process_time()
    size = sum(drive(session, wire[i : i + 256 * 1024]) for i in range(0, len(wire), 256 * 1024))
    took = time.process_time() - started
    assert session.output().endswith(b"\r\n250 2.0.0 Delivered\r\n")
    assert size == stored * lines + 1
    assert took < 2  # 0.1 to 0.4 on a small machine; a step in Python for each line takes more


# The owner.


def test_nothing_happens_before_the_answer():
    session = Session("mx", MAX_SIZE)
    session.receive(BEGIN + b"RCPT TO:<c@x>\r\nDATA\r\n")
    assert isinstance(session.next_event(), RecipientAsked)
    assert session.output().endswith(b"250 2.1.0 Ok\r\n")
    for out_of_turn in (
        session.next_event,
        lambda: session.receive(b"NOOP\r\n"),
        lambda: session.complete([Answer(250, "2.0.0", "x")]),
    ):
        with pytest.raises(RuntimeError):
            out_of_turn()
    assert session.output() == b""
    session.accept()
    with pytest.raises(RuntimeError):
        session.accept()
    assert session.output() == b"250 2.1.5 Ok\r\n"
    assert isinstance(session.next_event(), RecipientAsked)
    session.refuse(Answer(550, "5.1.1", "No such user"))
    assert isinstance(session.next_event(), DataAsked)
    session.accept()
    assert session.next_event() is None
    session.receive(b".\r\n")
    assert isinstance(session.next_event(), DataDone)
    for wrong in ([], [Answer(250, "2.0.0", "x")] * 2):
        with pytest.raises(ValueError, match="1 recipients"):
            session.complete(wrong)
    session.output()
    session.complete([Answer(250, "2.0.0", "Delivered")])
    assert session.output() == b"250 2.0.0 Delivered\r\n"
    with pytest.raises(RuntimeError):
        session.complete([])


def test_input_is_only_taken_when_wanted():
    session = Session("mx", MAX_SIZE)
    session.receive(b"NOOP\r\n")
    with pytest.raises(RuntimeError):
        session.receive(b"NOOP\r\n")


@pytest.mark.parametrize("text", ["a\r\n250 2.0.0 b", "ä\0\n", "x" * 5000])
def test_an_answer_is_one_short_line(text):
    session = Session("mx", MAX_SIZE)
    session.receive(BEGIN)
    session.next_event()
    session.output()
    session.refuse(Answer(451, "4.3.0", text))
    said = session.output()
    assert re.fullmatch(rb"451 4\.3\.0 [ -~]*\r\n", said)
    assert len(said) <= 512


def test_a_host_name_is_one_word():
    assert Session("m\r\n x/ö", 1).greeting() == b"220 m?x/? LMTP\r\n"
    assert Session("", 1).greeting() == b"220 localhost LMTP\r\n"
    assert len(Session("x" * 5000, 1).greeting()) < 300


@pytest.mark.parametrize(
    ("sent", "accepted", "expected"),
    [
        (b"NOOP\r\n", 0, ["Quit"]),
        (b"LHLO c\r\nMAIL FROM:<>\r\n", 0, ["Quit"]),
        (BEGIN, 0, ["Quit"]),
        (BEGIN, 1, ["Abort", "Quit"]),
        (BEGIN + b"DATA\r\n", 1, ["Abort", "Quit"]),
        (BEGIN + b"DATA\r\nx", 2, ["Abort", "Quit"]),
        (BEGIN + b"DATA\r\nx\r\n.\r\n", 2, ["Abort", "Quit"]),
        (BEGIN + b"DATA\r\n" + b"x" * 2000, 2, ["Quit"]),  # there was an Abort already
    ],
)
def test_the_owner_may_close_at_any_moment(sent, accepted, expected):
    """Also while it owes an answer, which the last question here never gets."""
    session = Session("mx", MAX_SIZE)
    session.receive(sent)
    while event := session.next_event():
        if isinstance(event, RecipientAsked | DataAsked | DataDone):
            if not accepted:
                break
            accepted -= 1
            session.accept()
    session.output()
    session.close("4.3.2", "Service is shutting down")
    session.close("4.4.2", "Only once")
    assert session.output() == b"421 4.3.2 mx Service is shutting down\r\n"
    assert [type(session.next_event()).__name__ for _ in expected] == expected
    assert session.next_event() is None
    session.receive(b"NOOP\r\n")
    assert session.next_event() is None
    assert session.output() == b""


def test_what_was_not_heard_when_the_owner_closes_is_void():
    session = Session("mx", MAX_SIZE)
    drive(session, BEGIN + b"DATA\r\n")
    session.receive(b"x\r\n.\r\n")
    assert isinstance(session.next_event(), Chunk)
    session.close("4.3.2", "Service is shutting down")
    assert isinstance(session.next_event(), Abort)
    assert isinstance(session.next_event(), Quit)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (Reply(0), Answer(250, "2.0.0", "Delivered")),
        (Reply(75, "4.3.0 Temporary failure (#4.3.0)"), Answer(451, "4.3.0", "Temporary failure")),
        (Reply(75, "4.3.1 Mail storage is full (#4.3.1)"), Answer(452, "4.3.1", "Mail storage is full")),
        (Reply(75, "4.2.2 Mailbox is full"), Answer(452, "4.2.2", "Mailbox is full")),
        (Reply(75, "5.1.1 No such user"), Answer(451, "4.1.1", "No such user")),
        (Reply(75, ""), Answer(451, "4.3.0", "Temporary failure")),
        (Reply(100, "5.2.2 Mailbox is full (#5.2.2)"), Answer(552, "5.2.2", "Mailbox is full")),
        (Reply(100, "5.3.4 Message cannot be scanned"), Answer(552, "5.3.4", "Message cannot be scanned")),
        (Reply(100, "5.7.1 Message contains a virus (#5.7.1)"), Answer(550, "5.7.1", "Message contains a virus")),
        (Reply(100, "5.4.6 This message is looping. (#5.4.6)"), Answer(554, "5.4.6", "This message is looping.")),
        (Reply(100, "4.2.2 Odd"), Answer(552, "5.2.2", "Odd")),
        (Reply(100, "No, thanks"), Answer(554, "5.0.0", "No, thanks")),
        (Reply(100, ""), Answer(554, "5.0.0", "Message is refused")),
        (Reply(1, "what"), Answer(451, "4.3.0", "what")),
    ],
)
def test_what_a_delivery_says_in_lmtp(reply, answer):
    assert answer_to(reply) == answer


# A client that others wrote.


class Client(smtplib.LMTP):
    """smtplib's, over a socket that is there already. It reads a single reply behind the data."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        super().__init__("given", local_hostname="client.example", timeout=10)

    def connect(self, *_where):
        self.sock = self.connection
        return self.getreply()


def test_smtplib_delivers():
    message = "From: a@x\r\nSubject: ö\r\n\r\n.\r\n..\r\n.hidden\r\nlast\r\n".encode() * 2000
    ours, theirs = socket.socketpair()
    owner = Owner(10_000_000)

    def serve() -> None:
        with ours:
            ours.settimeout(10)
            sent = 0
            while True:
                ours.sendall(owner.replies[sent:])
                sent = len(owner.replies)
                if not owner.open:
                    return
                owner.feed(ours.recv(BLOCK))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        theirs.settimeout(10)
        with Client(theirs) as client:
            assert client.sendmail("a@x", ["b@x"], message, ["BODY=8BITMIME"]) == {}
            assert set(client.esmtp_features) == {"pipelining", "8bitmime", "smtputf8", "enhancedstatuscodes", "size"}
            with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
                client.sendmail("a@x", ["nobody@x"], message)
            assert refused.value.recipients == {"nobody@x": (550, b"5.1.1 No such user")}
            assert client.sendmail("ö@x", ["ü@x"], b"x", ["SMTPUTF8"]) == {}
            with pytest.raises(smtplib.SMTPDataError) as full:
                client.sendmail("", ["full@x"], b"x")
            assert full.value.smtp_code == 552
    finally:
        thread.join(20)
    assert owner.messages == [message.replace(b"\r\n", b"\n"), b"x\n", b"x\n"]
    assert owner.happened[-1] == "quit QUIT"
