"""LMTP's server side as bytes in, events and bytes out: RFC 2033 on top of RFC 5321, without sockets, disk or clock.

    session = Session("mx.example.com", 25 * 1024 * 1024)
    send(session.greeting())
    while True:
        event = session.next_event()
        send(session.output())
        match event:
            case None: session.receive(read())                  # b"" at the end of the connection
            case RecipientAsked(mailbox): ...                   # session.accept() or session.refuse(answer)
            case DataAsked(sender, recipients, size): ...       # session.accept() or session.refuse(answer)
            case Chunk(data): ...                               # append it to the spooled message
            case DataDone(sender, recipients): ...              # session.complete(answers), one for each recipient
            case Abort(reason): ...                             # forget the recipients and what was spooled
            case Quit(reason): break                            # close the connection

Nothing happens between a question and its answer, whatever the client has pipelined (RFC 2920), and nothing is read
that is not wanted: memory is bounded by the size of what `receive` is given, a command line and 1,000 recipients.
"""

import re
from collections import deque
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from deliver.values import Reply

MAX_LINE = 2048
"""Bytes of a command line with its CRLF: RFC 5321 section 4.5.3.1.4 asks for 512, its extensions for some more."""

MAX_RECIPIENTS = 1000
"""Of one message; RFC 5321 section 4.5.3.1.8 asks for 100."""

MAX_ERRORS = 50
"""Commands between two messages that no client in its right mind sends. Refused addresses do not count: an MTA passes
on what strangers wrote."""

_END = b"\r\n.\r\n"
_ERRORS = (500, 501, 503, 555)

# The path is what stands between < and the first > outside quotes (RFC 5321 section 4.1.2). Blanks behind the colon are
# forgiven, as every MTA does. Possessive: a line is read once, whatever is in it.
_ARGUMENT = r'%s: *<(?P<path>(?:"(?:[^"\\]|\\.)*+"|[^"<>])*+)>(?P<parameters>(?: .*)?)'
_FROM = re.compile((_ARGUMENT % "FROM").encode(), re.IGNORECASE)
_TO = re.compile((_ARGUMENT % "TO").encode(), re.IGNORECASE)

# Wider than RFC 5321 (a..b@x, a.@x are in use; qmail's #@[] is a sender), but never a control character or a blank
# outside quotes. The source route goes (RFC 5321 appendix C).
_MAILBOX = re.compile(
    r'(?:@[^\x00-\x20\x7f-\x9f:"]*+:)?'
    r'(?P<written>(?:"(?P<quoted>(?:[^\x00-\x1f\x7f-\x9f"\\]|\\[^\x00-\x1f\x7f-\x9f])*+)"'
    r'|(?P<plain>[^\x00-\x20\x7f-\x9f"\\@<>]++))'
    r'(?:@(?P<domain>[^\x00-\x20\x7f-\x9f"\\@<>]++))?)'
)


class Answer(NamedTuple):
    """A reply: an SMTP code (250, 4xx, 5xx), an RFC 3463 status of the same class, and a sentence strangers may read.

    On the wire other than printable ASCII becomes "?" and the line stays below RFC 5321's 512 bytes.
    """

    code: int
    status: str
    text: str


class Mailbox(NamedTuple):
    """An address of the envelope, without source route.

    ``address``, ``local_part`` and ``domain`` are without quotes, as `values.Envelope` has them; a local part may hold
    blanks and "@". ``written`` is as it was sent, for header lines. A sender may lack the domain, and all four are ""
    for the null sender. A recipient has both parts, neither with "/" or a leading dot; no part of any address has
    control characters. Case is as it was sent.
    """

    address: str
    local_part: str
    domain: str
    written: str


class RecipientAsked(NamedTuple):
    """May this recipient be added? To be answered by `Session.accept` or `Session.refuse`."""

    recipient: Mailbox


class DataAsked(NamedTuple):
    """May the message be sent? To be answered by `Session.accept` or `Session.refuse`.

    ``size`` is what the client announced (RFC 1870), in bytes with CRLF, at most the session's ``max_size``; 0 where
    it announced nothing. ``recipients`` are the accepted ones in order, never empty; one may be there twice.
    """

    sender: Mailbox
    recipients: tuple[Mailbox, ...]
    size: int


class Chunk(NamedTuple):
    """The next bytes of the message, never empty: dot-stuffing undone, CRLF turned into LF, all else as it came."""

    data: bytes


class DataDone(NamedTuple):
    """The message is complete. To be answered by `Session.complete`; the fields are those of `DataAsked`."""

    sender: Mailbox
    recipients: tuple[Mailbox, ...]


class Abort(NamedTuple):
    """The recipients accepted so far, and what came of the message, are void. The session goes on."""

    reason: str


class Quit(NamedTuple):
    """The session is over; an `Abort` came before it where something was under way. The last event there is."""

    reason: str


Question = RecipientAsked | DataAsked | DataDone
Event = Question | Chunk | Abort | Quit

_NULL = Mailbox("", "", "", "")
_OK = Answer(250, "2.0.0", "Ok")
_TOO_BIG = Answer(552, "5.3.4", "Message is too big")
_NOT_ASCII = Answer(553, "5.6.7", "Address is not ASCII, and SMTPUTF8 was not asked for")


def answer_to(reply: Reply) -> Answer:
    """What a delivery's reply is in LMTP (RFC 5321 section 4.2.3; 4.3.2 for what may follow DATA).

    Code 0 is 250. The public line's status keeps subject and detail; its class is the one that the reply's code says:
    100 is permanent, every other code temporary.
    """
    if reply.code == 0:
        return Answer(250, "2.0.0", "Delivered")
    temporary = reply.code != 100
    found = re.fullmatch(r"(?P<status>[245](?P<detail>\.[0-9]{1,3}\.[0-9]{1,3})) (?P<text>.*)", reply.line)
    if found:
        detail, text = found["detail"], found["text"].removesuffix(f" (#{found['status']})")
    elif temporary:
        detail, text = ".3.0", reply.line or "Temporary failure"
    else:
        detail, text = ".0.0", reply.line or "Message is refused"
    if temporary:
        return Answer(452 if detail in (".2.2", ".3.1") else 451, f"4{detail}", text)
    code = 552 if detail in (".2.2", ".3.4") else 550 if detail.startswith(".7.") else 554
    return Answer(code, f"5{detail}", text)


class _Mode(Enum):
    COMMANDS = auto()
    SKIPPING = auto()  # to the end of a line that was refused
    DATA = auto()
    OVER = auto()


class Session:
    """One connection, from greeting to Quit.

    ``hostname`` is ours, as clients see it. ``max_size`` is of a message, in bytes with CRLF, as RFC 1870 counts.
    Calling out of turn raises RuntimeError.
    """

    def __init__(self, hostname: str, max_size: int) -> None:
        self._hostname = re.sub(r"[^!-~]+", "?", hostname)[:255] or "localhost"
        self._max_size = max_size
        self._mode = _Mode.COMMANDS
        self._input = b""
        self._at = 0  # what of the input is done with
        self._hungry = True
        self._ended = False
        self._output = bytearray()
        self._events: deque[Event] = deque()
        self._asked: Question | None = None
        self._known = False  # LHLO was said
        self._errors = 0
        # The transaction.
        self._sender: Mailbox | None = None
        self._recipients: list[Mailbox] = []
        self._announced = 0
        self._utf8 = False
        self._size = 0
        self._too_big = False

    def greeting(self) -> bytes:
        """What the server says first, unless it rather calls `close`."""
        return f"220 {self._hostname} LMTP\r\n".encode()

    def receive(self, data: bytes) -> None:
        """Take what the client sent, b"" for the end of the connection. Only when `next_event` has returned None."""
        if not self._hungry:
            raise RuntimeError("receive() before next_event() has returned None")
        self._hungry = False
        self._ended = not data
        self._input = self._input[self._at :] + data
        self._at = 0

    def next_event(self) -> Event | None:
        """What happened next, None where more input is needed, or nothing will happen any more."""
        if self._asked:
            raise RuntimeError(f"next_event() before {type(self._asked).__name__} was answered")
        while not self._events:
            if self._advance():
                continue
            if not self._ended or self._mode is _Mode.OVER:
                self._hungry = True
                return None
            self._over("connection closed")
        event = self._events.popleft()
        if isinstance(event, Question):
            self._asked = event
        return event

    def output(self) -> bytes:
        """What is to be sent since the last call; its length is bounded by that of what was received."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def accept(self) -> None:
        """Say yes to RecipientAsked or DataAsked."""
        match self._answered(RecipientAsked, DataAsked):
            case RecipientAsked(recipient):
                self._recipients.append(recipient)
                self._say(Answer(250, "2.1.5", "Ok"))
            case DataAsked():
                self._output += b"354 End data with <CR><LF>.<CR><LF>\r\n"  # 3xx has no status (RFC 2034 section 4)
                # The message's first line starts as every other does: behind a CRLF. It is taken off in `_chunk`.
                self._input = b"\r\n" + self._input[self._at :]
                self._at = 0
                self._size = -2
                self._mode = _Mode.DATA

    def refuse(self, answer: Answer) -> None:
        """Say no to RecipientAsked or DataAsked; the recipients accepted so far stay (RFC 5321 section 4.1.4)."""
        self._answered(RecipientAsked, DataAsked)
        self._say(answer)

    def complete(self, answers: Sequence[Answer]) -> None:
        """Answer DataDone, for each recipient in order (RFC 2033 section 4.2). Raises ValueError at another number."""
        asked = self._answered(DataDone)
        if len(answers) != len(self._recipients):
            self._asked = asked
            raise ValueError(f"{len(answers)} answers to {len(self._recipients)} recipients")
        self._errors = 0
        self._forget()
        for answer in answers:
            self._say(answer)

    def close(self, status: str, text: str) -> None:
        """End the session from this side, at any moment: 421 (RFC 5321 section 3.8), Abort where needed, and Quit.

        4.3.2 is the status for a shutdown or too many connections, 4.4.2 for a client that was silent for too long.
        """
        if self._mode is not _Mode.OVER:
            self._asked = None
            self._events.clear()
            self._say(Answer(421, status, f"{self._hostname} {text}"))
            self._over(text)

    def _answered(self, *kinds: type[Question]) -> Question:
        """The question that is answered now."""
        asked = self._asked
        if not isinstance(asked, kinds):
            raise RuntimeError(f"this is no answer to {type(asked).__name__ if asked else 'nothing'}")
        self._asked = None
        return asked

    def _advance(self) -> bool:
        """Do one step; False where there is nothing to do it with."""
        match self._mode:
            case _Mode.COMMANDS:
                return self._take_line()
            case _Mode.SKIPPING:
                return self._skip_line()
            case _Mode.DATA:
                return self._take_data()
            case _Mode.OVER:
                self._at = len(self._input)
                return False

    def _take_line(self) -> bool:
        """Lines end in CRLF and nothing else (RFC 5321 section 2.3.8): an address with LF in it cannot start another
        command. A person whose terminal sends LF alone is told at once.
        """
        end = self._input.find(b"\n", self._at, self._at + MAX_LINE)
        if end < 0:
            if len(self._input) - self._at < MAX_LINE:
                return False
            self._mode = _Mode.SKIPPING
            self._reply(Answer(500, "5.5.6", f"Line is longer than {MAX_LINE} bytes"))
            return True
        start, self._at = self._at, end + 1
        if not self._input.endswith(b"\r\n", start, self._at):
            self._mode = _Mode.SKIPPING
            self._reply(Answer(500, "5.5.2", "Lines must end in CR LF"))
            return True
        verb, _, argument = self._input[start : end - 1].rstrip(b" \t").partition(b" ")
        self._command(verb.upper(), argument)
        return True

    def _skip_line(self) -> bool:
        end = self._input.find(b"\r\n", self._at)
        if end < 0:
            self._at = len(self._input) - self._input.endswith(b"\r", self._at)
            return False
        self._at = end + 2
        self._mode = _Mode.COMMANDS
        return True

    def _command(self, verb: bytes, argument: bytes) -> None:
        match verb:
            case b"LHLO":
                self._lhlo(argument)
            case b"HELO" | b"EHLO":  # RFC 2033 section 4.1
                self._reply(Answer(500, "5.5.1", "This is LMTP: say LHLO"))
            case b"MAIL":
                self._mail(argument)
            case b"RCPT":
                self._rcpt(argument)
            case b"DATA" | b"RSET" | b"QUIT" if argument:
                self._reply(Answer(501, "5.5.4", "This command takes no argument"))
            case b"DATA":
                self._data()
            case b"RSET":
                self._forget("RSET")
                self._reply(_OK)
            case b"NOOP":
                self._reply(_OK)
            case b"HELP":  # RFC 5321 section 4.1.1.8
                self._reply(Answer(214, "2.0.0", "This is LMTP (RFC 2033): LHLO MAIL RCPT DATA RSET NOOP VRFY QUIT"))
            case b"VRFY" if not argument:
                self._reply(Answer(501, "5.5.4", "Expected VRFY and a name"))
            case b"VRFY":  # RFC 5321 section 3.5.3: it must not say yes to what was not looked up
                self._reply(Answer(252, "2.0.0", "Try RCPT instead"))
            case b"QUIT":
                self._reply(Answer(221, "2.0.0", f"{self._hostname} closes the connection"))
                self._over("QUIT")
            case _:
                self._reply(Answer(500, "5.5.2", "Command is not known"))

    def _lhlo(self, argument: bytes) -> None:
        if not argument:
            self._reply(Answer(501, "5.5.4", "Expected LHLO and a host name"))
            return
        self._known = True
        self._forget("LHLO")
        extensions = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
        lines = [f"250-{word}\r\n" for word in (self._hostname, *extensions)]
        self._output += f"{''.join(lines)}250 SIZE {self._max_size}\r\n".encode()

    def _mail(self, argument: bytes) -> None:
        if not self._known:
            self._reply(Answer(503, "5.5.1", "Say LHLO first"))
        elif self._sender is not None:
            self._reply(Answer(503, "5.5.1", "A sender was given already"))
        elif not (found := _FROM.fullmatch(argument)):
            self._reply(Answer(501, "5.5.4", "Expected MAIL FROM:<address>"))
        elif wrong := self._read_parameters(found["parameters"]):
            self._reply(wrong)
        elif not (found["path"].isascii() or self._utf8):
            self._reply(_NOT_ASCII)
        elif not (sender := _mailbox(found["path"]) if found["path"] else _NULL):
            self._reply(Answer(553, "5.1.7", "Sender is not an address"))
        else:
            self._sender = sender
            self._reply(Answer(250, "2.1.0", "Ok"))

    def _read_parameters(self, words: bytes) -> Answer | None:
        """Set what MAIL's parameters say; the answer where one is not to be had."""
        self._announced, self._utf8 = 0, False
        seen = set()
        for word in words.split():
            keyword, equals, value = word.upper().partition(b"=")
            if keyword in seen:
                return Answer(501, "5.5.4", "A parameter is there twice")
            seen.add(keyword)
            match keyword:
                case b"SIZE":
                    if not value.isdigit() or len(value) > 20:  # RFC 1870 section 3
                        return Answer(501, "5.5.4", "Expected SIZE=bytes")
                    self._announced = int(value)
                    if self._announced > self._max_size:
                        return _TOO_BIG
                case b"BODY":  # what is stored is the same with all of them
                    if value not in (b"7BIT", b"8BITMIME"):
                        return Answer(555, "5.5.4", "BODY can be 7BIT or 8BITMIME")
                case b"SMTPUTF8":
                    if equals:
                        return Answer(501, "5.5.4", "SMTPUTF8 takes no value")
                    self._utf8 = True
                case _:
                    return Answer(555, "5.5.4", "Parameters of MAIL are SIZE, BODY and SMTPUTF8")
        return None

    def _rcpt(self, argument: bytes) -> None:
        if self._sender is None:
            self._reply(Answer(503, "5.5.1", "Give the sender first"))
        elif not (found := _TO.fullmatch(argument)):
            self._reply(Answer(501, "5.5.4", "Expected RCPT TO:<address>"))
        elif found["parameters"].strip():  # NOTIFY and ORCPT belong to DSN (RFC 3461), which was not offered
            self._reply(Answer(555, "5.5.4", "RCPT has no parameters here"))
        elif len(self._recipients) >= MAX_RECIPIENTS:
            self._reply(Answer(452, "4.5.3", "Too many recipients"))
        elif not (found["path"].isascii() or self._utf8):
            self._reply(_NOT_ASCII)
        elif not (recipient := _mailbox(found["path"])) or not _fit_for_paths(recipient):
            self._reply(Answer(550, "5.1.3", "Recipient is not an address that can have a mailbox here"))
        else:
            self._events.append(RecipientAsked(recipient))

    def _data(self) -> None:
        if self._sender is None or not self._recipients:  # RFC 2033 section 4.2
            self._reply(Answer(503, "5.5.1", "There are no valid recipients"))
        else:
            self._events.append(DataAsked(self._sender, tuple(self._recipients), self._announced))

    def _take_data(self) -> bool:
        """Only <CR><LF>.<CR><LF> ends the message (RFC 5321 section 4.1.1.4). Its first occurrence does: behind a CRLF
        starts a line, whatever came before.
        """
        found = self._input.find(_END, self._at)
        if found >= 0:
            stop, after = found + 2, found + len(_END)
        else:
            # What could be the beginning of the end waits for more.
            held = next((n for n in range(len(_END) - 1, 0, -1) if self._input.endswith(_END[:n], self._at)), 0)
            stop = after = len(self._input) - held
        start, self._at = self._at, after
        if stop > start:
            self._chunk(self._input[start:stop])
        if found < 0:
            return bool(self._events)
        if self._events and self._too_big:  # first the owner hears that, then the client
            self._at = found
            return True
        self._mode = _Mode.COMMANDS
        if self._too_big:
            recipients = len(self._recipients)
            self._forget()
            for _ in range(recipients):
                self._reply(_TOO_BIG)
        elif self._sender is not None:
            self._events.append(DataDone(self._sender, tuple(self._recipients)))
        return True

    def _chunk(self, wire: bytes) -> None:
        """Message data that does not end within <CR><LF> or before the dot of a line."""
        if self._too_big:
            return
        # In this order: behind a bare CR, "\r\r\n.", the LF of an already converted line would make another CRLF.
        unstuffed = wire.replace(b"\r\n.", b"\r\n")
        begins = self._size < 0
        self._size += len(unstuffed)
        if self._size > self._max_size:
            self._too_big = True
            self._events.append(Abort("message is too big"))
            return
        data = unstuffed.replace(b"\r\n", b"\n")
        if begins:
            data = data[1:]
        if data:
            self._events.append(Chunk(data))

    def _reply(self, answer: Answer) -> None:
        """Say what no owner has decided."""
        self._errors += answer.code in _ERRORS
        if self._errors > MAX_ERRORS:
            self.close("4.7.0", "Too many errors")
        else:
            self._say(answer)

    def _say(self, answer: Answer) -> None:
        line = f"{answer.code} {answer.status} {answer.text}"
        self._output += re.sub(r"[^ -~]+", "?", line)[:510].encode() + b"\r\n"

    def _over(self, reason: str) -> None:
        self._mode = _Mode.OVER
        self._forget(reason)
        self._events.append(Quit(reason))

    def _forget(self, reason: str = "") -> None:
        """End the transaction; with a reason, tell the owner if it knows of one that is not void yet."""
        if reason and self._recipients and not self._too_big:
            self._events.append(Abort(reason))
        self._sender = None
        self._recipients = []
        self._announced = 0
        self._utf8 = False
        self._size = 0
        self._too_big = False


def _mailbox(path: bytes) -> Mailbox | None:
    """The address in a path, None where there is none."""
    try:
        found = _MAILBOX.fullmatch(path.decode())
    except UnicodeDecodeError:
        return None
    if not found:
        return None
    local_part = found["plain"] or re.sub(r"\\(.)", r"\1", found["quoted"])
    domain = found["domain"] or ""
    address = f"{local_part}@{domain}" if domain else local_part
    return Mailbox(address, local_part, domain, found["written"])


def _fit_for_paths(recipient: Mailbox) -> bool:
    """Whether both parts can be put into the path of a Maildir and stay below where they are put."""
    return all(part and "/" not in part and not part.startswith(".") for part in recipient[1:3])
