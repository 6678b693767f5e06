"""The header lines that we put before a message: X-Spam-*, X-Virus-Status and their like, and those of rules."""

import binascii
import re
from collections.abc import Iterator, Sequence

from deliver.values import Finding, Objection, Verdict

_STATUS = re.compile(rb"(?im)^x-spam-(?:status|flag)[ \t]*:.*\n(?:[ \t].*\n)*")
_DECISION = re.compile(rb"(?i)^(x-spam-status[ \t]*:[ \t]*)(?:yes|no)\b")
_REQUIRED = re.compile(rb"(?i)\brequired=\S+")

LONGEST_VALUE = 900
"""Characters of an ASCII value: a line has at most 998 (RFC 5322 section 2.1.1)."""

_UNQUOTED = re.compile(r"[^ !#-\[\]-~]+")
_DOMAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")
_LONGEST_WHY = 200  # characters
_NO_BRACKETS = str.maketrans("()", "[]")
_LONGEST_ENCODED_LINE = 76  # RFC 2047 section 2
_ENCODED_BYTES = 45  # with base64's third more and the frame below 75, a word's length in RFC 2047 section 2


def virus_status(verdicts: Sequence[Verdict]) -> bytes:
    """X-Virus-Status: Clean | Infected (NAME) | Not scanned (REASON), whichever of several scanners' is worst."""
    infected = [one for one in verdicts if one.finding is Finding.VIRUS]
    unknown = [one for kind in (Finding.FAILED, Finding.SKIPPED) for one in verdicts if one.finding is kind]
    if infected:
        words = f"Infected ({plain(', '.join(dict.fromkeys(name for one in infected for name in one.names)))})"
    elif unknown:
        words = f"Not scanned ({plain(unknown[0].reason)})"
    else:
        words = "Clean"
    return f"X-Virus-Status: {words}\n".encode()


def spam_status(verdict: Verdict, spam: bool, required: float | None) -> bytes:
    """The scanner's own X-Spam-* lines; with ``required``, the site's threshold, they say our decision instead of its.

    Where the scanner could not tell: X-Spam-Status: Not scanned (REASON), without a flag that a filter could act on.
    Where it told and wrote no such line (SpamAssassin's clear_headers), the line is ours: mail programs, Sieve and
    `deliver learn` read there what it said.
    """
    if verdict.finding not in (Finding.SPAM, Finding.CLEAN):
        return f"X-Spam-Status: Not scanned ({plain(verdict.reason)})\n".encode()
    said = [line[0] for line in _STATUS.finditer(verdict.headers)]
    if required is None:
        if said:
            return verdict.headers
        required = verdict.required
    limit = "" if required is None else f" required={required:.1f}"
    given = next((line for line in said if line.lower().startswith(b"x-spam-s")), b"")
    if given:
        status = _DECISION.sub(rb"\g<1>Yes" if spam else rb"\g<1>No", given)
        status = _REQUIRED.sub(limit.strip().encode(), status)
    else:
        status = f"X-Spam-Status: {'Yes' if spam else 'No'}, score={verdict.score or 0.0:.1f}{limit}\n".encode()
    flag = b"X-Spam-Flag: YES\n" if spam else b""
    return flag + status + _STATUS.sub(b"", verdict.headers)


def attachment_status(found: Sequence[Objection]) -> bytes:
    """X-Attachment-Status: Clean | Forbidden (NAME), Encrypted (NAME), Macro (NAME), Ambiguous (WHY), Too big (WHY)."""
    return f"X-Attachment-Status: {plain(objections(found))[:LONGEST_VALUE] if found else 'Clean'}\n".encode()


def objections(found: Sequence[Objection]) -> str:
    """Objections in words, those of one kind together: "Forbidden (a.exe, b.exe), Encrypted (c.zip)"."""
    kinds: dict[str, list[str]] = {}
    for one in found:
        # What a sender calls a file must not end the brackets: "x), Clean (".
        kinds.setdefault(one.kind, []).append(one.text.translate(_NO_BRACKETS))
    return ", ".join(f"{kind.capitalize().replace('-', ' ')} ({', '.join(texts)})" for kind, texts in kinds.items())


def authentication_results(name: str, signatures: Sequence[tuple[str, str, str]]) -> bytes:
    """Authentication-Results (RFC 8601 section 2.2) under our ``name``: what became of each DKIM signature.

    Of each its result, its domain ("" where it has none), and why it is not "pass".
    """
    found = []
    for result, domain, detail in signatures:
        why = ' reason="' + _UNQUOTED.sub("?", detail)[:_LONGEST_WHY] + '"' if detail else ""
        # What a sender calls a domain must be one to stand there (the syntax's pvalue).
        whose = f" header.d={domain}" if _DOMAIN.fullmatch(domain) else ""
        found.append(f"\n\tdkim={result}{why}{whose}")
    return f"Authentication-Results: {plain(name)};{';'.join(found)}\n".encode()


def filter_error(words: str) -> bytes:
    """X-Filter-Error: what is wrong with the owner's own rules, for the owner to read."""
    return f"X-Filter-Error: {plain(words)[:900]}\n".encode()


def plain(words: str) -> str:
    """Printable ASCII on one line: a header line takes nothing else (RFC 5322 section 2.2)."""
    return re.sub(r"[^ -~]+", "?", words)


def field(name: str, text: str) -> bytes:
    """A header line, ended by LF. What is not ASCII, or would be taken for encoded, is encoded (RFC 2047).

    ``name`` has at most 76 characters; ``text`` is one line, of at most LONGEST_VALUE characters.
    """
    if text.isascii() and "=?" not in text:
        return f"{name}: {text}\n".encode("ascii")
    first, *others = encoded_words(text)
    start = f"{name}: {first}"
    if len(start) > _LONGEST_ENCODED_LINE:
        start = f"{name}:\n {first}"
    return "\n ".join([start, *others, ""]).rstrip(" ").encode("ascii")


def encoded_words(text: str) -> Iterator[str]:
    """RFC 2047 words of whole characters (section 5)."""
    chunk = b""
    for char in text:
        encoded = char.encode("utf-8")
        if len(chunk) + len(encoded) > _ENCODED_BYTES:
            yield _encoded_word(chunk)
            chunk = b""
        chunk += encoded
    yield _encoded_word(chunk)


def _encoded_word(chunk: bytes) -> str:
    return f"=?utf-8?b?{binascii.b2a_base64(chunk, newline=False).decode('ascii')}?="
