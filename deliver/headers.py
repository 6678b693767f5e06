"""What a header field says: unfolded, decoded text, and the addresses in it.

The input is any bytes a stranger may send. Nothing here raises, and all of it takes time linear in the input's length:
`email.header` and `email.utils` promise neither (quadratic patterns, recursion into nested comments), and importing
them would cost more than the delivery of most messages.
"""

import binascii
import codecs
import re
from collections.abc import Iterator

_FOLD = re.compile(rb"\r?\n[ \t]")

# Where an encoded word can begin. "=?=" is the end of one whose base64 ends in "=", "?=?" that of one before a "?".
_WORD_START = re.compile(rb"(?<!\?)=\?(?!=)")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_WORD_HEAD = re.compile(rb"([^?\s]{0,60})\?([bBqQ])\?")

# Names in use that Python does not know, and names whose holders in fact send a superset (as the WHATWG Encoding
# Standard, section 4.2, has them).
_CHARSETS = {
    "binary": "latin-1",
    "cp-1250": "cp1250",
    "cp-1251": "cp1251",
    "cp-1252": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "iso-2022-jp": "iso2022_jp_ext",
    "iso-8859-8-e": "iso8859_8",
    "iso-8859-8-i": "iso8859_8",
    "koi8-ru": "koi8_u",
    "ks_c_5601-1987": "cp949",
    "euc-kr": "cp949",
    "shift_jis": "cp932",
    "tis-620": "cp874",
    "utf-8-mac": "utf-8",
    "utf8mb4": "utf-8",
    "windows-31j": "cp932",
    "windows-874": "cp874",
    "x-euc-jp": "euc_jp",
    "x-gbk": "gb18030",
    "x-mac-cyrillic": "mac_cyrillic",
    "x-mac-roman": "mac_roman",
    "x-sjis": "cp932",
}
_WINDOWS = re.compile(r"(?:x-)?(?:windows|win|cp)[-_]?(125[0-8])")

# Python's own codecs that are no charsets of mail; idna and punycode take quadratic time, the escapes make surrogates.
_NOT_CHARSETS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"})

# Looking up a name that does not exist searches the file system: a hostile field may name thousands.
_MOST_CHARSETS = 16
_LONGEST_CHARSET = 60

_UNPRINTABLE = {0x00: "\ufffd", 0x0A: " ", 0x0D: " ", **dict.fromkeys(range(0xD800, 0xE000), "\ufffd")}
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
_NEEDS_CLEANING = re.compile("[\x00\n\r\ud800-\udfff]")


def decode(raw: bytes) -> str:
    """The text of a field's raw value: unfolded (RFC 5322 section 2.2.3), encoded words decoded (RFC 2047), stripped.

    A tab that begins a folded line is a blank: programs put it in place of the blank at which they fold, mail programs
    show it as one, and Dovecot's Sieve compares it as one. Raw 8-bit is read as UTF-8 (RFC 6532) where it is that, else
    as Latin-1. An encoded word in a charset that does not exist or that its bytes contradict is read the same way; one
    that is not well-formed stays as it stands. NUL and lone surrogates become U+FFFD, bare CR and LF spaces: the result
    has none of these. Never raises.
    """
    unfolded = _FOLD.sub(b" ", raw)
    return _clean(_decode_words(unfolded) if b"=?" in unfolded else _plain(unfolded)).strip()


def addresses(raw: bytes) -> list[str]:
    """The addr-specs (``local@domain``) of a field's raw value, in order, as RFC 5322 section 3.4 has them or nearly.

    Display names, comments, group names and routes are left out; so is what has no ``@``, unless nothing in the field
    has one: then "MAILER-DAEMON" and "root", which programs write of their own host, are addresses without a domain. A
    quoted local part that needs no quotes loses them (RFC 5321 section 4.1.2: the same mailbox). Encoded words are not
    decoded, since none can stand in an addr-spec (RFC 2047 section 5). Never raises.
    """
    found: list[str] = []
    local: list[str] = []  # what would be one on this host
    outside: list[str] = []  # the words of this mailbox so far
    inside: list[str] | None = None  # the words since "<", until ">" closes it
    bare: list[str] = []  # what stood in <> without a domain
    named = False  # there was an address in <>: what stands outside is a display name
    for part in (*_tokens(_clean(_plain(_FOLD.sub(b" ", raw)))), ","):
        if part in {"<", ">"}:
            specs = _specs(inside or [])  # at "<" too: in "<a@b.org <c@d.org>" the first was never closed
            found += specs
            bare += _local(inside or [])
            named = named or bool(specs)
            inside = [] if part == "<" else None
        elif part == ":":
            # Before it stands a group's name, or in <> a source route (RFC 5322 section 4.4).
            (outside if inside is None else inside).clear()
        elif part in {",", ";"}:
            found += _specs(inside or []) or ([] if named else _specs(outside))
            local += bare or ([] if named else _local(outside))
            outside, inside, bare, named = [], None, [], False
        else:
            (outside if inside is None else inside).append(part)
    return found or local


def in_charset(raw: bytes, charset: str) -> str:
    """A text that is not a header field's, by its charset ("" where it names none), with all line ends as LF.

    Bytes that contradict the charset, or one that does not exist, are read as UTF-8 where they are that, else as
    Latin-1. NUL and lone surrogates become U+FFFD. Never raises.
    """
    text = _in_charset(raw, charset.strip().lower()[:_LONGEST_CHARSET], {})
    return _NO_TEXT.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _clean(text: str) -> str:
    return text.translate(_UNPRINTABLE) if _NEEDS_CLEANING.search(text) else text


def _plain(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _decode_words(raw: bytes) -> str:
    """The text of an unfolded value that may hold encoded words."""
    first, *pieces = _WORD_START.split(raw)
    text = [_plain(first)]
    charsets: dict[str, str] = {}
    # Of adjacent words in one charset, the bytes: some senders cut within a character. Behind them, blanks.
    pending: list[bytes] = []
    charset, blanks = "", ""
    for piece in pieces:
        head = _WORD_HEAD.match(piece)
        close = piece.find(b"?=", head.end()) if head else -1
        if not head or close < 0:
            text += [_in_charset(b"".join(pending), charset, charsets), blanks, _plain(b"=?" + piece)]
            pending, blanks = [], ""
            continue
        # RFC 2231 section 5 puts a language behind the charset.
        own = head[1].decode("latin-1").lower().partition("*")[0]
        if own != charset:
            text.append(_in_charset(b"".join(pending), charset, charsets))
            pending, charset = [], own
        payload = piece[head.end() : close]
        pending.append(_base64(payload) if head[2] in b"bB" else _quoted(payload))
        # Blanks between two encoded words are not shown (RFC 2047 section 6.2).
        blanks = _plain(piece[close + 2 :])
        if blanks.strip(" \t"):
            text += [_in_charset(b"".join(pending), charset, charsets), blanks]
            pending, blanks = [], ""
    return "".join([*text, _in_charset(b"".join(pending), charset, charsets), blanks])


def _base64(payload: bytes) -> bytes:
    """What can be read of it: foreign characters and missing padding are passed over, several pieces read in turn."""
    pieces = []
    for group in payload.split(b"="):
        letters = _NOT_BASE64.sub(b"", group)
        if len(letters) % 4 == 1:
            letters = letters[:-1]  # six bits are no byte
        pieces.append(binascii.a2b_base64(letters + b"=" * (-len(letters) % 4)))
    return b"".join(pieces)


def _quoted(payload: bytes) -> bytes:
    return binascii.a2b_qp(payload, header=True)


def _in_charset(raw: bytes, charset: str, known: dict[str, str]) -> str:
    """The bytes of an encoded word, by its charset where that can be true."""
    if not raw:
        return ""
    if charset not in known:
        known[charset] = _codec(charset) if len(known) < _MOST_CHARSETS else ""
    codec = known[charset]
    if not codec:
        return _plain(raw)
    try:
        return raw.decode(codec)
    except ValueError:
        pass
    if not raw.isascii():
        # Nothing else looks like UTF-8 by chance.
        try:
            return raw.decode()
        except ValueError:
            pass
    # Damaged, or in another charset than it says? Damaged text still has some whole characters beyond ASCII.
    try:
        damaged = raw.decode(codec, "replace")
    except ValueError:
        return raw.decode("latin-1")
    return damaged if any(char > "\x7f" and char != "\ufffd" for char in damaged) else raw.decode("latin-1")


def _codec(charset: str) -> str:
    """Python's name for a charset, "" where it has none."""
    windows = _WINDOWS.fullmatch(charset)
    name = f"cp{windows[1]}" if windows else _CHARSETS.get(charset, charset)
    try:
        known = codecs.lookup(name)
        b"a".decode(name, "replace")  # refuses codecs that do not make text, such as rot13
    except (LookupError, ValueError):
        return ""
    return "" if known.name.replace("-", "_") in _NOT_CHARSETS else known.name


_WORD = re.compile(r"""[^\s"(),:;<>@\[\].]+""")
_BLANK = re.compile(r"\s+")
_QUOTED_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"\[[^\[\]\\]*\]")
_DELIMITER = re.compile(r"\\.|[()]")
_ESCAPED = re.compile(r"\\(.)")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_DOT_ATOM = re.compile(r"""[^\s"(),:;<>@\[\]\\.]+(?:\.[^\s"(),:;<>@\[\]\\.]+)*""")


def _tokens(text: str) -> Iterator[str]:
    """The words, quoted strings, domain literals, specials and blanks (as " ") of a structured field.

    A quote, bracket or comment that nothing closes is passed over; that nothing closes it is found out once, since
    each search for the end reads all that follows.
    """
    at = 0
    unclosed: set[str] = set()
    while at < len(text):
        char = text[at]
        found = None
        if word := _WORD.match(text, at):
            found = word
        elif blank := _BLANK.match(text, at):
            at = blank.end()
            yield " "
            continue
        elif char == "(" and char not in unclosed:
            end = _comment_end(text, at)
            if end > 0:
                at = end
                yield " "
                continue
            unclosed.add(char)
        elif char in '"[' and char not in unclosed:
            found = (_QUOTED_STRING if char == '"' else _LITERAL).match(text, at)
            if not found:
                unclosed.add(char)
        if found:
            at = found.end()
            yield found[0]
            continue
        at += 1
        yield char if char in ",:;<>@." else " "


def _comment_end(text: str, at: int) -> int:
    """Where the comment that begins at ``at`` ends, comments nest (RFC 5322 section 3.2.2); 0 where it does not."""
    depth = 0
    for found in _DELIMITER.finditer(text, at):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth == 0 and found[0] == ")":
            return found.end()
    return 0


def _specs(words: list[str]) -> list[str]:
    """The addr-specs among the words of one mailbox; blanks around "@" and "." mean nothing (RFC 5322 section 4.4)."""
    specs = [[""]]
    blank = False
    for word in words:
        if word == " ":
            blank = True
            continue
        if blank and word not in {"@", "."} and specs[-1][-1] not in {"@", "."}:
            specs.append([""])
        blank = False
        if word.startswith('"'):
            bare = _ESCAPED.sub(r"\1", word[1:-1])
            specs[-1].append(bare if _DOT_ATOM.fullmatch(bare) else word)
        else:
            specs[-1].append(word)
    return ["".join(spec) for spec in specs if "@" in spec[2:-1]]


def _local(words: list[str]) -> list[str]:
    """The user of this host that a mailbox of a single word is."""
    word = "".join(words).strip()
    return [word] if _USER.fullmatch(word) else []
