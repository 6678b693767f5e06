"""The header lines that we put before a message: X-Spam-*, X-Virus-Status, X-Filter-Error."""

import re

from deliver.values import Finding, Verdict

_STATUS = re.compile(rb"(?im)^x-spam-(?:status|flag)[ \t]*:.*\n(?:[ \t].*\n)*")
_DECISION = re.compile(rb"(?i)^(x-spam-status[ \t]*:[ \t]*)(?:yes|no)\b")
_REQUIRED = re.compile(rb"(?i)\brequired=\S+")


def virus_status(verdict: Verdict) -> bytes:
    """X-Virus-Status: Clean | Infected (NAME) | Not scanned (REASON)."""
    match verdict.finding:
        case Finding.VIRUS:
            words = f"Infected ({plain(', '.join(verdict.names))})"
        case Finding.CLEAN:
            words = "Clean"
        case _:
            words = f"Not scanned ({plain(verdict.reason)})"
    return f"X-Virus-Status: {words}\n".encode()


def spam_status(verdict: Verdict, spam: bool, required: float | None) -> bytes:
    """The scanner's own X-Spam-* lines; with ``required``, the site's threshold, they say our decision instead of its.

    Where the scanner gave none: X-Spam-Status: Not scanned (REASON), without a flag that a filter could act on.
    """
    if verdict.finding not in (Finding.SPAM, Finding.CLEAN):
        return f"X-Spam-Status: Not scanned ({plain(verdict.reason)})\n".encode()
    if required is None:
        return verdict.headers
    given = next(
        (line[0] for line in _STATUS.finditer(verdict.headers) if line[0].lower().startswith(b"x-spam-s")), b""
    )
    if given:
        status = _DECISION.sub(rb"\g<1>Yes" if spam else rb"\g<1>No", given)
        status = _REQUIRED.sub(b"required=%.1f" % required, status)
    else:
        status = b"X-Spam-Status: %s, score=%.1f required=%.1f\n" % (
            b"Yes" if spam else b"No",
            verdict.score or 0.0,
            required,
        )
    flag = b"X-Spam-Flag: YES\n" if spam else b""
    return flag + status + _STATUS.sub(b"", verdict.headers)


def filter_error(words: str) -> bytes:
    """X-Filter-Error: what is wrong with the owner's own rules, for the owner to read."""
    return f"X-Filter-Error: {plain(words)[:900]}\n".encode()


def plain(words: str) -> str:
    """Printable ASCII on one line: a header line takes nothing else (RFC 5322 section 2.2)."""
    return re.sub(r"[^ -~]+", "?", words)
