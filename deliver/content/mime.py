"""The parts of a message (RFC 2045, RFC 2046), read from its chunks in one pass.

The input is any bytes a stranger may send. Nothing here raises; time is linear in the message, and memory holds one
part at a time, as much of it as the caller wants to keep. What does not follow the RFCs is read as mail programs do:
a multipart ends where the one around it goes on, headers may end at a boundary, base64 may be full of other characters.
"""

import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from deliver import headers

DEEPEST = 20
"""Multiparts and messages in each other; the deepest of 35,000 real ones has 9."""

MOST_PARTS = 10_000
"""Parts of one message; the largest of the test messages has 3,043."""

MOST_MULTIPARTS = 500
"""Multiparts of one message: each costs a pattern."""

TOP_HEADER_CAP = 1024 * 1024
"""Bytes of the message's own header that are read."""

HEADER_CAP = 64 * 1024
"""Bytes of a part's header that are read."""

UUENCODED = frozenset({"uuencode", "x-uuencode", "x-uue", "uue"})
"""Encodings of no RFC that mail programs undo all the same. Here they are not: the file's name stands in there, too."""

_NO_MESSAGES = frozenset(
    "message/delivery-status message/disposition-notification message/external-body message/feedback-report"
    " message/global-delivery-status message/global-disposition-notification message/global-headers message/http"
    " message/imdn+xml message/partial message/s-http message/sip message/sipfrag message/tracking-status".split()
)

_PIECE = 64 * 1024  # bytes
_LONGEST_BOUNDARY = 1000  # RFC 2046 section 5.1.1 allows 70, RFC 5322 section 2.1.1 no longer line than 998
_LONGEST_QUOTED = 10_000  # RFC 2045 section 6.7 allows 76
_LONGEST_LINE = _LONGEST_BOUNDARY + 50
_LONGEST_NAME = 80  # of a field; RFC 5322 section 2.1.1 recommends lines of 78

_FIELD = re.compile(rb"(?mi)^(content-(?:type|disposition|transfer-encoding))[ \t]*:((?:.*)(?:\n[ \t].*)*)")
_PARAMETER = re.compile(rb';\s*([^\s=;]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_COMMENT = re.compile(rb"\([^()]*\)")
_NAME_ANYWHERE = re.compile(
    rb'(?i)(?<![\w.-])(?:file)?name\s*(?:\([^()]*\)\s*)?=\s*(?:\([^()]*\)\s*)?(?:"([^"]*)"?|)([^\s";]*)'
)
_SEGMENT = re.compile(r"(.+?)(?:\*([0-9]{1,3}))?(\*)?")
_ESCAPED = re.compile(rb'\\(["\\])')
_TYPE = re.compile(r"[^\s/;]+/[^\s/;]+")
_EMPTY_LINES = re.compile(rb"[\r\n]*")
_ANY_FIELD = re.compile(rb"[!-9;-~]{1,76}[ \t]*:")
_SOFT_BREAK = re.compile(rb"=[ \t]+(?=\r?\n)")
_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="))


class Part(NamedTuple):
    """One part that has no parts itself, or a message in the message, which comes before its own parts.

    ``type`` is as declared, in lower case ("text/plain" where that says nothing); "" marks that the rest of the message
    was not read, since it has too many parts or they lie too deep. ``names`` are all file names that the part gives
    itself, decoded (RFC 2231, RFC 2047). ``disposition`` is "attachment", "inline" or "". ``parameters`` are the
    type's, ``inside`` the types around it, the outermost first. ``content`` is decoded, ``complete`` or its front.
    """

    type: str
    parameters: dict[str, str]
    disposition: str = ""
    names: tuple[str, ...] = ()
    encoding: str = ""
    inside: tuple[str, ...] = ()
    content: bytes = b""
    complete: bool = True


UNREAD = Part("", {}, complete=False)

Keep = Callable[[Part], int]
"""How many decoded bytes of a part to keep. Asked before any is there, and again with as many as it said."""


class Watch:
    """Is told what ``parts`` leaves out: what others may read in another way. This one does not care."""

    def header(self, part: Part, block: bytes) -> None:
        """The raw header of a part, also of a multipart; at most HEADER_CAP of it, of the message's own TOP_HEADER_CAP.

        ``part`` is what its fields say; its content is still to come.
        """

    def cut(self) -> None:
        """A boundary came before the end of the header just told."""

    def entered(self, part: Part, boundaries: tuple[bytes, ...], found: bytes | None, *, text: bool) -> None:
        """The multipart ``part`` was entered. ``boundaries`` are all that are open now, its own the last; ``found`` is
        which of them came first, if any did, and ``text`` whether anything but blanks stood before.
        """

    def body(self, part: Part, piece: bytes) -> None:
        """A piece of a part's content, still encoded."""

    def aside(self, piece: bytes) -> None:
        """A piece of what stands before a multipart's first boundary or behind its last."""


def holds_message(kind: str) -> bool:
    """Whether what is of this media type is a message; programs take types that nobody has registered for one, too."""
    return kind.startswith("message/") and kind not in _NO_MESSAGES


def parts(chunks: Iterable[bytes], keep: Keep, watch: Watch | None = None) -> Iterator[Part]:
    """The parts of the message in ``chunks``, in order."""
    return _parts(chunks, keep, (), watch or Watch())


def pieces(content: bytes) -> Iterator[bytes]:
    """A message in memory as chunks, small enough that no copy of it is made."""
    return (content[at : at + _PIECE] for at in range(0, len(content), _PIECE))


def _parts(chunks: Iterable[bytes], keep: Keep, around: tuple[str, ...], watch: Watch) -> Iterator[Part]:
    reader = _Reader(chunks)
    levels = _Levels(around)
    enclosed = bool(around)
    for number in range(MOST_PARTS):
        cap = HEADER_CAP if number else TOP_HEADER_CAP
        block = reader.header(levels.pattern_of_header, cap)
        if enclosed and not block and not reader.ended and reader.field_follows():
            block = reader.header(levels.pattern_of_header, cap)
        enclosed = False
        part = _part(_fields(block), levels.types)
        watch.header(part, block)
        if reader.ended and reader.found:
            watch.cut()
        boundary = part.parameters.get("boundary", "").encode("utf-8", "replace")
        is_message = holds_message(part.type)
        if is_message and part.encoding in _DECODERS and not reader.ended:
            yield part
            body = _told(part, reader.until(levels.pattern), watch)
            if len(levels.types) >= DEEPEST:
                yield UNREAD
            else:
                yield from _parts(_decoded(part.encoding, body), keep, (*part.inside, part.type), watch)
            for _ in body:  # what nobody wanted to read
                pass
        elif reader.ended or not ((part.type.startswith("multipart/") and boundary) or is_message):
            content = _Content(part, keep)
            if not reader.ended:
                for piece in _told(part, reader.until(levels.pattern), watch):
                    content.add(piece)
            yield content.part()
        elif len(levels.types) >= DEEPEST or len(boundary) > _LONGEST_BOUNDARY or levels.made >= MOST_MULTIPARTS:
            yield UNREAD
            return
        elif is_message:
            yield part
            levels.enter(part.type, b"")
            enclosed = True
            continue
        else:
            levels.enter(part.type, boundary)
            text = reader.skip(levels.pattern, watch)
            watch.entered(part, levels.boundaries, reader.found["boundary"] if reader.found else None, text=text)
        while reader.found is not None and levels.leave(reader.found):
            reader.skip(levels.pattern, watch)
        if reader.found is None:
            return
    yield UNREAD


def _told(part: Part, pieces: Iterator[bytes], watch: Watch) -> Iterator[bytes]:
    for piece in pieces:
        watch.body(part, piece)
        yield piece


def _decoded(encoding: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The bytes of a message that is encoded as a whole, as they come; none empty."""
    decode, tail = _DECODERS[encoding], b""
    for piece in pieces:
        made, tail = decode(tail + piece, False)
        if made:
            yield made
    if made := decode(tail, True)[0]:
        yield made


class _Levels:
    """The multiparts and messages that the reader is in."""

    def __init__(self, around: tuple[str, ...]) -> None:
        self._around = around
        self._open: list[tuple[str, bytes]] = []
        self.made = 0
        self._compile()

    @property
    def types(self) -> tuple[str, ...]:
        return (*self._around, *(name for name, _ in self._open))

    @property
    def boundaries(self) -> tuple[bytes, ...]:
        """Of the multiparts that are open, the outermost first."""
        return tuple(boundary for _, boundary in self._open if boundary)

    def enter(self, name: str, boundary: bytes) -> None:
        """Into a multipart, or, without boundary, into a message."""
        self._open.append((name, boundary.rstrip()))
        if boundary:
            self.made += 1
            self._compile()

    def leave(self, found: "re.Match[bytes]") -> bool:
        """Follow a boundary line; whether it closed its multipart, so that an epilogue comes."""
        boundary, closes = found["boundary"], found["end"] is not None
        level = max(index for index, (_, one) in enumerate(self._open) if one == boundary)
        changed = any(one for _, one in self._open[level + 1 :]) or closes
        del self._open[level if closes else level + 1 :]
        if changed:
            self._compile()
        return closes

    def _compile(self) -> None:
        # Only lines that are boundaries stop the search, which otherwise runs at the speed of C.
        names = b"|".join(re.escape(boundary) for _, boundary in self._open if boundary)
        lines = rb"--(?P<boundary>%s)(?P<end>--)?[ \t]*\r?\n" % names if names else rb"(?!)(?P<boundary>)(?P<end>)"
        self.pattern = re.compile(rb"\n" + lines)
        self.pattern_of_header = re.compile(rb"\n(?:\r?\n|%s)" % lines)


class _Reader:
    """The bytes of a message, up to one line or another. ``found`` is the line that ended the last reading."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = b"\n"  # what stands before the next byte: so the first line begins as all others do
        self._at = 1
        self._done = False
        self.found: re.Match[bytes] | None = None

    def until(self, pattern: "re.Pattern[bytes]") -> Iterator[bytes]:
        """What comes before the first match, which begins with the newline of the line before; then that is passed."""
        while True:
            self.found = pattern.search(self._buffer, self._at - 1)
            if self.found:
                yield self._buffer[self._at : self.found.start()]
                self._at = self.found.end()
                return
            if self._done:
                yield self._buffer[self._at :]
                self._at = len(self._buffer)
                return
            end = len(self._buffer)
            newline = self._buffer.rfind(b"\n", max(self._at - 1, end - _LONGEST_LINE))
            keep = end if newline < 0 else max(newline, self._at)
            yield self._buffer[self._at : keep]
            self._fill(keep)

    def skip(self, pattern: "re.Pattern[bytes]", watch: Watch) -> bool:
        """Pass over all up to the match; whether there was more than blanks."""
        text = False
        for piece in self.until(pattern):
            watch.aside(piece)
            text = text or bool(piece.strip())
        return text

    def header(self, pattern: "re.Pattern[bytes]", cap: int) -> bytes:
        """The header that begins here, at most so many bytes of it."""
        block = bytearray()
        for piece in self.until(pattern):
            block += piece[: max(cap - len(block), 0)]
        return bytes(block)

    def field_follows(self) -> bool:
        """Whether a field of a header comes next, behind empty lines, which are passed over."""
        while True:
            found = _EMPTY_LINES.match(self._buffer, self._at)
            self._at = found.end() if found else self._at
            if self._done or len(self._buffer) - self._at >= _LONGEST_NAME:
                return _ANY_FIELD.match(self._buffer, self._at) is not None
            self._fill(self._at)

    @property
    def ended(self) -> bool:
        """Whether the header just read had no body behind it: the message was at its end, or a boundary came."""
        return self.found is None or self.found["boundary"] is not None

    def _fill(self, keep: int) -> None:
        chunk = next(self._chunks, b"")
        # One byte before the next stays: a line begins where that is a newline.
        self._buffer = self._buffer[keep - 1 :] + chunk
        self._at = 1
        if not chunk:
            self._done = True
            if not self._buffer.endswith(b"\n"):
                self._buffer += b"\n"  # the last line may be a boundary


class _Content:
    """What is kept of one part's content, decoded as it comes."""

    def __init__(self, part: Part, keep: Keep) -> None:
        self._part = part
        self._keep = keep
        self._limit = keep(part)
        self._content = bytearray()
        self._tail = b""  # what cannot be decoded without what follows
        self._decode = _DECODERS.get(part.encoding, _plain)
        self._dropped = False

    def add(self, piece: bytes) -> None:
        """The next bytes, still encoded."""
        if self._limit <= 0 or self._dropped:
            self._dropped = self._dropped or bool(piece)
            return
        decoded, self._tail = self._decode(self._tail + piece, False)
        self._take(decoded)

    def part(self) -> Part:
        """The part with its content; nothing can be added any more."""
        if self._limit > 0 and not self._dropped:
            self._take(self._decode(self._tail, True)[0])
        content, self._content = bytes(self._content), bytearray()
        return self._part._replace(content=content, complete=not self._dropped)

    def _take(self, decoded: bytes) -> None:
        self._content += decoded
        while len(self._content) > self._limit:
            more = self._keep(self._part._replace(content=bytes(self._content[: self._limit])))
            if more <= self._limit:
                del self._content[self._limit :]
                self._dropped = True
            self._limit = max(more, self._limit)


# Each returns what is decoded of the bytes so far, and what it cannot decode without those that follow.


def _plain(raw: bytes, _last: bool) -> tuple[bytes, bytes]:
    return raw, b""


def padded_all_over(raw: bytes) -> bool:
    """Whether a piece of base64 has so much padding that it is none; and each would take time of its own."""
    return len(raw) > _PIECE // 2 and raw.count(b"=") > len(raw) // 16


def _base64(raw: bytes, last: bool) -> tuple[bytes, bytes]:
    if padded_all_over(raw):
        raw = raw.replace(b"=", b"")
    # Padding means something only where it makes four of two or three letters; programs pass over any other.
    *pieces, tail = raw.translate(None, _NOT_BASE64).split(b"=")
    decoded: list[bytes] = []
    run = b""
    for number, piece in enumerate(pieces, 1):
        run += piece
        following = pieces[number] if number < len(pieces) else None
        if len(run) % 4 == 2 and following is None and not tail and not last:
            return b"".join(decoded), run + b"="  # the other half may come
        if len(run) % 4 == 3 or (len(run) % 4 == 2 and following == b""):
            decoded.append(_letters(run))
            run = b""
    run += tail
    whole = len(run) if last else len(run) - len(run) % 4
    decoded.append(_letters(run[:whole]))
    return b"".join(decoded), run[whole:]


def _letters(run: bytes) -> bytes:
    letters = run[:-1] if len(run) % 4 == 1 else run  # six bits are no byte
    return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4))


def _quoted(raw: bytes, last: bool) -> tuple[bytes, bytes]:
    end = len(raw) if last else raw.rfind(b"\n") + 1
    if not end and len(raw) > _LONGEST_QUOTED:
        cut = raw.find(b"=", len(raw) - 3)
        end = cut if cut > 0 else len(raw)
    # RFC 2045 section 6.7, rule 3: blanks at a line's end were added on the way.
    return binascii.a2b_qp(_SOFT_BREAK.sub(b"=", raw[:end])), raw[end:]


_DECODERS: dict[str, Callable[[bytes, bool], tuple[bytes, bytes]]] = {"base64": _base64, "quoted-printable": _quoted}


def _fields(block: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for field in _FIELD.finditer(block.replace(b"\r\n", b"\n")):
        if field[2].strip():  # programs pass over one that says nothing
            found.setdefault(field[1].lower(), field[2])
    return found


def _part(fields: dict[bytes, bytes], inside: tuple[str, ...]) -> Part:
    kind, parameters = parameters_of(fields.get(b"content-type", b""))
    disposition, more = parameters_of(fields.get(b"content-disposition", b""))
    if not _TYPE.fullmatch(kind):
        # RFC 2046 section 5.1.5: what stands in a digest is a message.
        kind = "message/rfc822" if inside[-1:] == ("multipart/digest",) else "text/plain"
    encoding = _COMMENT.sub(b"", fields.get(b"content-transfer-encoding", b"")).decode("latin-1").strip().lower()
    names = [more.get(key, "") for key in ("filename", "filename*")] + [
        parameters.get(key, "") for key in ("name", "name*")
    ]
    # RFC 2231 has no encoded words in its pieces, but programs write them there, and others decode them.
    names += [headers.decode(name.encode("utf-8", "replace")) for name in names if "=?" in name]
    for value in filter(None, (fields.get(b"content-disposition"), fields.get(b"content-type"))):
        names += names_anywhere(value)
        if b"=?" in value:  # old programs decode the whole value first
            names += names_anywhere(headers.decode(value).encode("utf-8", "replace"))
    # By RFC 822 a backslash is left out and what follows stays; programs leave it in, as that of a path. It is none
    # where it stands behind the last dot.
    names += [name.replace("\\", "") for name in names if name.rfind("\\") > name.rfind(".")]
    return Part(kind, parameters, disposition, tuple(dict.fromkeys(filter(None, names))), encoding, inside)


def parameters_of(value: bytes) -> tuple[str, dict[str, str]]:
    """The word at the front of a Content-Type or Content-Disposition, in lower case, and the parameters behind it.

    Of two parameters of one name the first counts. "name*" is the value in RFC 2231's form, joined and decoded; it may
    differ from the "name" that stands beside it for old programs.
    """
    front, semicolon, rest = value.partition(b";")
    word = _COMMENT.sub(b"", front).decode("latin-1").strip().lower()
    plain: dict[str, str] = {}
    extended: dict[str, dict[int, tuple[bytes, bool]]] = {}
    for name, raw in raw_parameters(semicolon + rest):
        base, number, encoded = _SEGMENT.fullmatch(name).groups()  # type: ignore[union-attr] # it matches every name
        if number is None and encoded is None:
            plain.setdefault(name, headers.decode(raw))
        else:
            extended.setdefault(base, {}).setdefault(int(number or 0), (raw, encoded is not None))
    for base, segments in extended.items():
        plain[f"{base}*"] = _joined(segments)
        plain.setdefault(base, plain[f"{base}*"])
    return word, plain


def names_anywhere(value: bytes) -> Iterator[str]:
    """What stands behind "name=" or "filename=" wherever it is: programs find it behind a blank, a comma, an odd quote.

    Where the value follows RFC 2045, these are its parameters once more.
    """
    for quoted, bare in _NAME_ANYWHERE.findall(value):
        yield headers.decode(quoted)
        yield headers.decode(bare)


def raw_parameters(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Every parameter behind the first semicolon, in order, under its name in lower case, without quotes around it."""
    for found in _PARAMETER.finditer(value, max(value.find(b";"), 0)):
        raw = found[2].strip()
        raw = _ESCAPED.sub(rb"\1", raw[1:-1]) if raw[:1] == b'"' == raw[-1:] and len(raw) > 1 else raw.strip(b'"')
        yield found[1].decode("latin-1").lower(), raw


def _joined(segments: dict[int, tuple[bytes, bool]]) -> str:
    """RFC 2231 sections 3 and 4: pieces in order, percent-encoded where their name ends in "*"."""
    charset = b""
    pieces: list[bytes] = []
    for number in sorted(segments):
        raw, encoded = segments[number]
        if encoded:
            if not pieces and raw.count(b"'") >= 2:
                charset, _, raw = raw.split(b"'", 2)
            raw = re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), raw)
        pieces.append(raw)
    text = headers.in_charset(b"".join(pieces), charset.decode("latin-1"))
    return " ".join(text.split("\n")).strip()
