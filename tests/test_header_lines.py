"""The lines before a message: the scanner's own where it decided, ours where we did, and never a flag for a guess."""

from email import message_from_bytes
from email.header import decode_header, make_header

import pytest

from deliver.header_lines import LONGEST_VALUE, field, filter_error, spam_status
from deliver.values import Finding, Verdict

SPAM = (
    b"X-Spam-Flag: YES\nX-Spam-Level: ******\n"
    b"X-Spam-Status: Yes, score=6.0 required=5.0 tests=A,\n\tB autolearn=no\nX-Spam-Checker-Version: x\n"
)
HAM = b"X-Spam-Status: No, score=4.0 required=5.0 tests=No,\n\tB\n"


def told(headers: bytes, score: float | None, required: float | None = 5.0, *, spam: bool = False) -> Verdict:
    finding = Finding.SPAM if spam else Finding.CLEAN
    return Verdict("spamd", finding, score=score, required=required, headers=headers)


@pytest.mark.parametrize(
    ("verdict", "spam", "ours", "expected"),
    [
        pytest.param(told(SPAM, 6.0, spam=True), True, None, SPAM, id="its own decision: its own lines"),
        pytest.param(told(HAM, 4.0), False, None, HAM, id="its own ham"),
        pytest.param(
            told(SPAM, 6.0, spam=True),
            False,
            7.0,
            b"X-Spam-Status: No, score=6.0 required=7.0 tests=A,\n\tB autolearn=no\n"
            b"X-Spam-Level: ******\nX-Spam-Checker-Version: x\n",
            id="ours is higher",
        ),
        pytest.param(
            told(HAM, 4.0),
            True,
            3.5,
            b"X-Spam-Flag: YES\nX-Spam-Status: Yes, score=4.0 required=3.5 tests=No,\n\tB\n",
            id="ours is lower",
        ),
        pytest.param(
            told(b"", 6.0, spam=True),
            True,
            None,
            b"X-Spam-Flag: YES\nX-Spam-Status: Yes, score=6.0 required=5.0\n",
            id="clear_headers, spam",
        ),
        pytest.param(
            told(b"X-Spam-Level: *\n", 1.0),
            False,
            None,
            b"X-Spam-Status: No, score=1.0 required=5.0\nX-Spam-Level: *\n",
            id="a level alone",
        ),
        pytest.param(told(b"", None, None), False, None, b"X-Spam-Status: No, score=0.0\n", id="nothing known"),
        pytest.param(
            told(b"x-spam-status : no, REQUIRED=5\n", 1.0),
            True,
            1.0,
            b"X-Spam-Flag: YES\nx-spam-status : Yes, required=1.0\n",
            id="any case",
        ),
        *(
            pytest.param(
                Verdict("spamd", finding, reason="la\nrge\xe9", score=9.0, headers=SPAM),
                True,
                5.0,
                b"X-Spam-Status: Not scanned (la?rge?)\n",
                id=finding.value,
            )
            for finding in (Finding.SKIPPED, Finding.FAILED)
        ),
    ],
)
def test_the_spam_lines(verdict: Verdict, spam: bool, ours: float | None, expected: bytes) -> None:
    assert spam_status(verdict, spam, ours) == expected


@pytest.mark.parametrize("name", ["X", "X-" + "n" * 74])
@pytest.mark.parametrize(
    "text", ["é", "=?utf-8?q?forged?=", "é" * (LONGEST_VALUE // 2), "a" * 44 + "é", "a" * 45 + "é", "\U0001f4e7" * 99]
)
def test_what_is_not_ascii_is_encoded_in_short_lines(name: str, text: str) -> None:
    """RFC 2047 section 2: an encoded word has at most 75 characters, its line 76; section 5: whole characters."""
    line = field(name, text)
    assert line.isascii()
    words = line.removeprefix(name.encode() + b":").split()
    assert max(map(len, words)) <= 75
    assert max(map(len, line.split(b"\n"))) <= max(76, len(name) + 1)
    assert str(make_header(decode_header(message_from_bytes(line + b"\n")[name]))) == text
    for one in words:
        make_header(decode_header(one.decode()))  # each alone can be decoded


def test_what_is_ascii_stays_and_an_error_is_one_line() -> None:
    assert field("X-A", "plain = text?") == b"X-A: plain = text?\n"
    assert filter_error("a\r\nX-B: c\x00") == b"X-Filter-Error: a?X-B: c?\n"
    assert len(filter_error("x" * 5000)) <= 998  # RFC 5322 section 2.1.1
