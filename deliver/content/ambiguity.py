"""Whether a message can be read in more than one way: a scanner reads one of them, a mail program perhaps the other.

Amavis let viruses pass, since a message may name two boundaries and mail programs followed the other one
(CVE-2024-28054). So what readers are known to disagree on, and what no honest mail program writes, is a finding of its
own. What is wrong but found in honest mail is none: a last boundary that is missing, text of a mailing list behind
base64, comments in MIME-Version, quoted-printable for a multipart, returned messages whose header was cut.
"""

import re
from collections.abc import Iterable, Iterator

from deliver.content import mime
from deliver.content.filenames import is_program
from deliver.content.filetypes import extension

MOST = 5
"""Reasons that are told of one message."""

_BOUNDARIES = 20  # so many, and so many more, that are looked for in texts
_LONGEST_MARGIN = 100  # bytes before a boundary in its line
_LONGEST_TAIL = 2000  # bytes of base64 that wait for what follows
_FIELD = re.compile(rb"([!-9;-~]+)([ \t]*):(.*)", re.DOTALL)
_NEXT_FIELD = re.compile(rb"\n(?![ \t])")
_CONTENT_FIELD = re.compile(rb"(?im)^content-[a-z-]+[ \t]*:")
_BLANK_LINE = re.compile(rb"(?m)^[ \t]+$")
_SEVERAL = frozenset({b"content-type", b"content-transfer-encoding", b"content-disposition", b"mime-version"})
_COMMENT = re.compile(rb"\([^()]*\)")
_SEGMENT = re.compile(r"(?:[0-9]{1,3}\*?)?")  # what RFC 2231 section 3 has behind a parameter's "*"
_BOUNDARY = re.compile(rb'(?i)boundary\s*=\s*(?:"([^"]*)"?|([^\s;"]*))')

# Encodings as they are written in practice; anything else is a guess, which matters where there is a file to decode.
_ENCODINGS = frozenset("7bit 7bits 7-bit 8bit 8bits 8-bit binary base64 quoted-printable none plain".split()).union(
    mime.UUENCODED
)

# Base64 ends with its padding (RFC 2045 section 6.8). Where more of it follows, in the same line or as a line of its
# own, some readers go on and some do not. The footer of a mailing list is neither, though it may say "?a=b" or "=====".
_LETTER = rb"[A-Za-z0-9+/]"
_BEHIND_PADDING = re.compile(
    rb"\n[ \t]*(?:%(x)s{16,}=+[ \t]*|(?:%(x)s{4})+(?:%(x)s{3}=|%(x)s{2}==)[ \t]*)%(x)s"
    rb"|\n[ \t]*%(x)s{24}[^\n=]*=[^\nA-Za-z0-9+/]*%(x)s"
    rb"|\n[^\n=]{0,998}=[^\n]{0,998}%(x)s{20}[ \t]*\r?\n[ \t]*%(x)s{56}"
    rb"|%(x)s={1,2}[ \t]*\r?\n(?:(?:%(x)s{4}){4,}|(?:%(x)s{4})*(?:%(x)s{3}=|%(x)s{2}==))[ \t]*\r?\n" % {b"x": _LETTER}
)


def find(chunks: Iterable[bytes]) -> tuple[str, ...]:
    """Why the message in ``chunks`` can be read in more than one way, at most MOST reasons; () if it cannot.

    The reasons are words of ours, fit for a header line. Never raises.
    """
    doubts = _Doubts()
    for part in mime.parts(chunks, lambda _part: 0, doubts):
        del part
    doubts.ended()
    return tuple(doubts.found)[:MOST]


class _Doubts(mime.Watch):
    """``found`` are the reasons, in order."""

    def __init__(self) -> None:
        self.found: dict[str, None] = {}
        self._top = True
        self._tails: dict[int, bytes] = {}  # of base64 in each other, by how deep it lies
        self._boundaries: list[bytes] = []
        self._nearly: re.Pattern[bytes] | None = None
        self._margin = b""
        self._cut = False

    def header(self, part: mime.Part, block: bytes) -> None:
        """See mime.Watch."""
        self.ended(len(part.inside))
        cap = mime.TOP_HEADER_CAP if self._top else mime.HEADER_CAP
        reasons = _in_header(part, block, cap, top=self._top)
        self.found.update(dict.fromkeys(reasons))
        self._top = self._cut = False
        # Some programs pass over these before a boundary; and some mail servers put them into what they give back.
        self._margin = b"" if "multipart/report" in part.inside else b" \t-"
        boundary = part.parameters.get("boundary", "").encode("utf-8", "replace").strip()
        # Some programs split whatever has a boundary, of any type.
        if boundary and boundary not in self._boundaries:
            # The outermost stay, and the last ones: a message with hundreds must not cost hundreds each time.
            self._boundaries[_BOUNDARIES:] = [*self._boundaries[_BOUNDARIES:], boundary][-_BOUNDARIES:]
            names = b"|".join(map(re.escape, self._boundaries))
            # What stands right before is asked behind the hyphens: those are found at the speed of C.
            self._nearly = re.compile(rb"--(?<![^\r\n \t-]--)(?:%s)(?!--[ \t]*\r?(?:\n|\Z))" % names)

    def cut(self) -> None:
        """See mime.Watch."""
        self._cut = True

    def entered(self, part: mime.Part, boundaries: tuple[bytes, ...], found: bytes | None, *, text: bool) -> None:
        """See mime.Watch."""
        *around, own = boundaries
        # Of a returned message a mail server often leaves the header, or the first lines.
        if found != own and text and "multipart/report" not in part.inside:
            self.found["a boundary that is nowhere"] = None
        if own in around:
            self.found["multiparts in each other with one boundary"] = None

    def aside(self, piece: bytes) -> None:
        """See mime.Watch."""
        # RFC 2046 section 5.1.1 has a boundary count whatever follows it in its line; most programs want it alone. Some
        # go on behind the last one. A last one that stands there twice does no harm.
        if self._nearly and _begins_a_line(self._nearly, piece.replace(b"\0", b""), self._margin):
            self.found["a line that is nearly a boundary"] = None
        if self._cut and _CONTENT_FIELD.search(piece):  # then some programs read it as the header that was cut
            self.found["a boundary in a header"] = None

    def body(self, part: mime.Part, piece: bytes) -> None:
        """See mime.Watch."""
        self.aside(piece)
        if part.encoding != "base64":
            return
        seen = self._tails.get(len(part.inside), b"\n") + piece
        if b"=" in seen and (mime.padded_all_over(piece) or _BEHIND_PADDING.search(seen)):
            self.found["base64 behind its end"] = None
        self._tails[len(part.inside)] = seen[-_LONGEST_TAIL:]

    def ended(self, depth: int = 0) -> None:
        """The parts that lie so deep are over, and with them the lines that their base64 ends with."""
        for one in [one for one in self._tails if one >= depth]:
            tail = self._tails.pop(one)
            if b"=" in tail and _BEHIND_PADDING.search(tail + b"\n"):
                self.found["base64 behind its end"] = None


def _begins_a_line(pattern: "re.Pattern[bytes]", piece: bytes, margin: bytes) -> bool:
    """Whether the pattern is there, and before it in its line nothing but what is in ``margin``."""
    for found in pattern.finditer(piece):
        before = piece[max(found.start() - _LONGEST_MARGIN, 0) : found.start()].rstrip(margin)
        if not before or before[-1:] in b"\r\n":
            return True
    return False


def _in_header(part: mime.Part, block: bytes, cap: int, *, top: bool) -> Iterator[str]:
    """Reasons in one header, the message's own, a part's, or that of a message in the message."""
    if len(block) >= cap:
        yield "a header without end"
    header = block.replace(b"\r\n", b"\n").removesuffix(b"\r")
    fields, broken = _fields(header)
    matters = any(name in _SEVERAL for name, _, _ in fields) or b"content-" in header.lower()
    if "multipart/report" not in part.inside:
        if b"\0" in header:
            yield "NUL in a header"
        if b"\r" in header:
            yield "CR in a header"
    # What came back as undeliverable may be cut anywhere, and its header is nobody's to act on.
    if top or not part.inside[-1:] or not part.inside[-1].startswith("message/"):
        if broken and (top or matters):
            yield "a line in a header that is no field"
        if matters and (_BLANK_LINE.search(header) or (not top and header[:1] in b" \t" and header)):
            yield "a blank line in a header that is folded"
        if any(b"(" in name for name, _, _ in fields):
            yield "a comment in a field's name"
    yield from _in_fields(part, fields)
    yield from _in_structure(part)


def _fields(header: bytes) -> tuple[list[tuple[bytes, bytes, bytes]], bool]:
    """Names in lower case, the blanks behind them, and values; and whether there is a line that is no field."""
    fields = []
    broken = False
    for line in _NEXT_FIELD.split(header):
        found = _FIELD.fullmatch(line)
        if found:
            fields.append((found[1].lower(), found[2], found[3]))
        else:
            # Programs that keep mail in one file put ">" before a From_ line that was left in the header.
            broken = broken or not (line[:1] in b" \t" or line.startswith((b">From ", b"From ")))
    return fields, broken


def _in_fields(part: mime.Part, fields: list[tuple[bytes, bytes, bytes]]) -> Iterator[str]:
    seen: dict[bytes, set[bytes]] = {}
    for name, blanks, value in fields:
        if name not in _SEVERAL:
            continue
        if blanks:
            yield "a blank behind a field's name"
        before = seen.setdefault(name, set())
        if name == b"content-type" and not before:
            yield from _in_type(part, value)
        if name == b"content-transfer-encoding" and b"(" in value:
            yield "a comment in an encoding"
        if name in {b"content-type", b"content-disposition"}:
            yield from _twice(value)
        if name == b"content-disposition" and b"name" in value.partition(b";")[0].lower():
            yield "a disposition that is none, with a name"
        # Of a disposition only the file's name counts: programs write it twice, attachment and inline.
        plain = b" ".join(_COMMENT.sub(b"", value).lower().split())
        before.add(plain if name != b"content-disposition" else dict(mime.raw_parameters(plain)).get("filename", b""))
        if len(before - ({b""} if name == b"content-disposition" else set())) > 1:
            yield f"more than one {name.decode('ascii').title().replace('Mime', 'MIME')}"


def _in_type(part: mime.Part, value: bytes) -> Iterator[str]:
    front = value.partition(b";")[0]
    if b"(" in front:
        yield "a comment in a type"
    found = {(quoted or bare).strip() for quoted, bare in _BOUNDARY.findall(value)}
    named = part.parameters.get("boundary", "")
    if not part.type.startswith("multipart/"):
        if found and (b"multipart" in front.lower() or not front.strip()):
            yield "a type that is none, with a boundary"
        return
    # Readers differ in what they take for the boundary: the first or the last, RFC 2231's form or the plain one,
    # with or without what is encoded, what stands in a comment or in another parameter.
    if len(found) > 1 or "boundary*" in part.parameters or (found and named.encode("latin-1", "replace") not in found):
        yield "more than one boundary"


def _twice(value: bytes) -> Iterator[str]:
    """What a name or a boundary is said to be in more than one way, or in a way that RFC 2231 does not know."""
    seen: dict[tuple[str, str | None], bytes] = {}
    pieces: dict[str, list[int]] = {}
    for name, raw in mime.raw_parameters(value):
        base, star, number = name.partition("*")
        if base not in {"name", "filename", "boundary"}:
            continue
        key = (base, number.removesuffix("*") if star else None)
        if key in seen:
            if seen[key] != raw:
                yield f"more than one {base}"
            continue
        seen[key] = raw
        if star and not _SEGMENT.fullmatch(number):
            yield f"a malformed {base}"
        elif star:
            pieces.setdefault(base, []).append(int(number.removesuffix("*") or "-1"))
    for base, numbers in pieces.items():
        if -1 in numbers and len(numbers) > 1:  # in pieces, and whole
            yield f"more than one {base}"
        elif sorted(numbers) not in ([-1], list(range(len(numbers)))):  # programs stop at a gap, or do not
            yield f"a malformed {base}"


def _in_structure(part: mime.Part) -> Iterator[str]:
    is_multipart = part.type.startswith("multipart/")
    if is_multipart and not part.parameters.get("boundary"):
        yield "a multipart without a boundary"
    if is_multipart and (part.encoding == "base64" or part.encoding in mime.UUENCODED):
        yield "an encoded multipart"
    if part.type.startswith("message/") and part.encoding in mime.UUENCODED:
        yield "a message in uuencode"
    is_file = bool(part.names) or part.disposition == "attachment" or not part.type.startswith(("text/", "multipart/"))
    if part.encoding and part.encoding not in _ENCODINGS and is_file:
        yield "an unknown encoding"
    if part.type == "message/partial":
        yield "a part of a message"
    if part.type == "message/external-body":
        yield "a body that lies elsewhere"
    ends = {end for name in part.names if (end := extension(name))}
    if len(ends) > 1 and any(map(is_program, part.names)):
        yield "a program under two names"
