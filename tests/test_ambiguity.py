"""Messages that can be read in more than one way, and honest ones that cannot."""

import base64
import time

import corpora
import pytest

from deliver.content import ambiguity, mime

HEAD = b"From: a@example.com\nSubject: x\nMIME-Version: 1.0\n"
PARTS = b"--x\nContent-Type: text/plain\n\nhello\n--x\nContent-Type: application/pdf\n\n%PDF\n--x--\n"


def mail(*fields: bytes, body: bytes = PARTS) -> bytes:
    return HEAD + b"".join(field + b"\n" for field in fields) + b"\n" + body


def multipart(*part: bytes) -> bytes:
    """A message of two parts, the second with these header lines and one of text behind."""
    header = b"".join(line + b"\n" for line in part)
    body = b"--x\nContent-Type: text/plain\n\nhello\n--x\n" + header + b"\nAAAA\n--x--\n"
    return mail(b"Content-Type: multipart/mixed; boundary=x", body=body)


def encoded(body: bytes) -> bytes:
    return mail(b"Content-Type: application/pdf", b"Content-Transfer-Encoding: base64", body=body)


MIXED = b"Content-Type: multipart/mixed; boundary=x"

TWO_WAYS = {
    # CVE-2024-28054: two boundary parameters.
    "two boundaries": (mail(b"Content-Type: multipart/mixed; boundary=x; boundary=y"), "more than one boundary"),
    "boundaries in both forms": (
        mail(b"Content-Type: multipart/mixed; boundary=x; boundary*0=y"),
        "more than one boundary",
    ),
    # RFC 2231 section 3: a reader that does not know continuations sees no boundary at all.
    "a boundary in pieces": (
        mail(b'Content-Type: multipart/mixed; boundary*0="x"; boundary*1="y"', body=PARTS.replace(b"--x", b"--xy")),
        "more than one boundary",
    ),
    "a boundary in a comment": (
        mail(b"Content-Type: multipart/mixed (boundary=y); boundary=x"),
        "more than one boundary",
    ),
    "a boundary in another parameter": (
        mail(b'Content-Type: multipart/mixed; note="; boundary=y"; boundary=x'),
        "more than one boundary",
    ),
    "a boundary before a comment": (
        mail(b"Content-Type: multipart/mixed; boundary=x (the boundary)"),
        "more than one boundary",
    ),
    "an encoded boundary": (
        mail(b'Content-Type: multipart/mixed; boundary="=?us-ascii?q?x?="'),
        "more than one boundary",
    ),
    "two types": (mail(MIXED, b"Content-Type: text/plain"), "more than one Content-Type"),
    "two encodings": (
        multipart(
            b"Content-Type: application/pdf",
            b"Content-Transfer-Encoding: base64",
            b"Content-Transfer-Encoding: 7bit",
        ),
        "more than one Content-Transfer-Encoding",
    ),
    "two file names": (
        multipart(
            b"Content-Type: application/pdf",
            b"Content-Disposition: attachment; filename=a.pdf",
            b"Content-Disposition: attachment; filename=a.exe",
        ),
        "more than one Content-Disposition",
    ),
    "two names in one field": (
        multipart(b"Content-Type: application/pdf", b"Content-Disposition: attachment; filename=a.pdf; filename=b.pdf"),
        "more than one filename",
    ),
    "a program and a document": (
        multipart(b"Content-Type: application/pdf; name=a.pdf", b"Content-Disposition: attachment; filename=a.exe"),
        "a program under two names",
    ),
    "a program in RFC 2231's form": (
        multipart(
            b"Content-Type: application/pdf",
            b"Content-Disposition: attachment; filename=\"=?utf-8?q?a.pdf?=\"; filename*=utf-8''a.exe",
        ),
        "a program under two names",
    ),
    "two versions of MIME": (HEAD + b"MIME-Version: 2.0\n" + MIXED + b"\n\n" + PARTS, "more than one MIME-Version"),
    "no boundary": (mail(b"Content-Type: multipart/mixed"), "a multipart without a boundary"),
    "another boundary": (mail(b"Content-Type: multipart/mixed; boundary=y"), "a boundary that is nowhere"),
    "the same boundary inside": (
        mail(MIXED, body=b"--x\nContent-Type: multipart/mixed; boundary=x\n\n--x\n\nhello\n--x--\n"),
        "multiparts in each other with one boundary",
    ),
    "no subtype": (mail(b"Content-Type: multipart; boundary=x"), "a type that is none, with a boundary"),
    "an encoded multipart": (mail(MIXED, b"Content-Transfer-Encoding: base64"), "an encoded multipart"),
    "an unknown encoding": (
        multipart(b"Content-Type: application/pdf", b"Content-Transfer-Encoding: base-64"),
        "an unknown encoding",
    ),
    "a comment in an encoding": (
        multipart(b"Content-Type: application/pdf", b"Content-Transfer-Encoding: (7bit) base64"),
        "a comment in an encoding",
    ),
    "a comment in a type": (mail(b"Content-Type: multipart/mixed (text/plain); boundary=x"), "a comment in a type"),
    "NUL": (mail(b"X-A: a\0b", MIXED), "NUL in a header"),
    "NUL in a part": (multipart(b"Content-Type: application/pdf\0"), "NUL in a header"),
    "CR": (mail(b"X-A: a\rContent-Type: text/plain", MIXED), "CR in a header"),
    "breakage": (mail(b"this is no field", MIXED), "a line in a header that is no field"),
    "breakage in a part": (
        multipart(b"this is no field", b"Content-Type: application/pdf"),
        "a line in a header that is no field",
    ),
    "a comment in a name": (mail(b"Content-Type(x): text/plain", MIXED), "a comment in a field's name"),
    "a blank before the colon": (mail(b"Content-Type : multipart/mixed; boundary=x"), "a blank behind a field's name"),
    # RFC 5322 section 4.2 allows it in old mail; some readers take it for the end of the header.
    "a blank line that is folded": (mail(b"X-A: a\n \n b", MIXED), "a blank line in a header that is folded"),
    "a part's header that begins folded": (
        multipart(b" folded", b"Content-Type: application/pdf"),
        "a blank line in a header that is folded",
    ),
    "base64 in pieces": (encoded(b"aGVsbG8=aGVsbG8="), "base64 behind its end"),
    "base64 in pieces and lines": (encoded(b"aGVsbG8=\naGVsbG8gd29ybGQh\n"), "base64 behind its end"),
    "base64, padded line by line": (
        mail(
            MIXED,
            body=b"--x\nContent-Type: application/pdf\nContent-Transfer-Encoding: base64\n\n"
            b"aGVsbG8gd29ybGQ=\naGVsbG8gd29ybGQ=\n--x--\n",
        ),
        "base64 behind its end",
    ),
    # RFC 2046 section 5.2.2 and 5.2.3.
    "partial": (mail(b"Content-Type: message/partial; id=a; number=1; total=2"), "a part of a message"),
    "external body": (mail(b"Content-Type: message/external-body; access-type=url"), "a body that lies elsewhere"),
}


@pytest.mark.parametrize("name", TWO_WAYS)
def test_what_can_be_read_in_two_ways(name: str) -> None:
    raw, reason = TWO_WAYS[name]
    found = ambiguity.find([raw])
    assert reason in found
    assert ambiguity.find([raw.replace(b"\n", b"\r\n")]) == found
    assert ambiguity.find(bytes([byte]) for byte in raw) == found


@pytest.mark.parametrize("name", ["two boundaries", "two encodings", "NUL in a part"])
def test_in_messages_in_the_message_as_well(name: str) -> None:
    raw, reason = TWO_WAYS[name]
    outer = b"Content-Type: multipart/mixed; boundary=outer"
    plain = b"--outer\nContent-Type: message/rfc822\n\n" + raw + b"\n--outer--\n"
    packed = base64.encodebytes(raw)
    base64_too = (
        b"--outer\nContent-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + packed + b"--outer--\n"
    )
    assert ambiguity.find([mail(outer, body=plain)]) == (reason,)
    assert ambiguity.find([mail(outer, body=base64_too)]) == (reason,)


ONE_WAY = {
    "plain": HEAD + b"\nhello\n",
    "multipart": mail(MIXED),
    "quoted boundary": mail(b'Content-Type: multipart/mixed;\n\tboundary="x"; charset=utf-8'),
    "last boundary missing": mail(MIXED, body=PARTS.replace(b"--x--\n", b"")),
    "header twice, alike": mail(MIXED, b"Content-type:  multipart/mixed;  boundary=x"),
    "comment in MIME-Version": b"Mime-Version: 1.0 (Apple Message framework v546)\n" + mail(MIXED)[len(HEAD) :],
    "quoted-printable multipart": mail(MIXED, b"Content-Transfer-Encoding: quoted-printable"),
    "a list's footer behind base64": encoded(b"aGVsbG8=\n_______________________\nmailing list\nlist@example.org\n"),
    "base64 without an end": encoded(b"aGVsbG8gd29ybGQ"),
    "other characters in base64": encoded(b"aGVs\x00bG8g!\nd29ybGQh\n"),
    "an unknown encoding of a text": mail(b"Content-Transfer-Encoding: 7-bits please", body=b"hello\n"),
    "a name in both forms": multipart(
        b'Content-Type: application/pdf; name="=?utf-8?q?=C3=A4.pdf?="',
        b"Content-Disposition: attachment; filename*=utf-8''%C3%A4.pdf",
    ),
    "a document under two names": multipart(
        b"Content-Type: image/jpeg; name=a.jpeg", b"Content-Disposition: inline; filename=a.jpg"
    ),
    "attachment and inline": multipart(
        b"Content-Type: image/png", b"Content-Disposition: inline; filename=a.png", b"Content-Disposition: attachment"
    ),
    "From_ in the header": mail(b">From a@example.com Sun Nov 22 10:00:00 2026", MIXED),
    "two files in base64": mail(
        MIXED,
        body=b"--x\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\naGVsbG8=\n" * 2 + b"--x--\n",
    ),
    "a header sent on alone": mail(
        MIXED,
        body=b"--x\nContent-Type: message/rfc822\n\nFrom: b\nContent-Type: multipart/mixed; boundary=q\n\n\n--x--\n",
    ),
    "a returned header": mail(
        b"Content-Type: multipart/report; boundary=r",
        body=b"--r\nContent-Type: message/rfc822\n\nFrom: b\nContent-Type: multipart/mixed; boundary=q\n\ncut\n--r--\n",
    ),
    "a returned message that was removed": mail(
        MIXED, body=b"--x\nContent-Type: message/rfc822\n\nMessage removed\n--x--\n"
    ),
    "nothing": b"",
}


@pytest.mark.parametrize("name", ONE_WAY)
def test_what_has_one_meaning(name: str) -> None:
    assert ambiguity.find([ONE_WAY[name]]) == ()


def test_honest_mail_has_one_meaning() -> None:
    """Real mail, of people and lists."""
    folder = corpora.needs("sa-public") / "ham"
    nice = corpora.needs("spam-spamassassin-tdata") / "nice"
    found = {}
    paths = [path for one in (folder, nice) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(paths) > 200
    for path in paths:
        raw = path.read_bytes()
        if said := ambiguity.find([raw.partition(b"\n")[2] if raw.startswith(b"From ") else raw]):
            found[path.name] = said
    assert found == {}


def test_bounces_of_many_servers_have_one_meaning() -> None:
    """Of 333 only those whose editors broke them when they took out names."""
    paths = sorted(corpora.needs("bounce-sisimai").rglob("*.eml"))
    found = [path.name for path in paths if ambiguity.find([path.read_bytes()])]
    assert len(paths) > 300
    assert len(found) <= 6, found


def test_a_header_that_is_not_read_to_its_end() -> None:
    long = b"X-A: " + b"a" * mime.HEADER_CAP
    assert ambiguity.find([multipart(b"Content-Type: text/plain", long)]) == ("a header without end",)
    assert ambiguity.find([mail(MIXED, long)]) == ()  # of the message's own more is read
    longer = b"X-A: " + b"a" * mime.TOP_HEADER_CAP
    assert ambiguity.find([mail(MIXED, longer)]) == ("a header without end",)


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: " + b"(" * 500_000,
        b"Content-Type: multipart/mixed" + b"; boundary=a" * 80_000,
        b"Content-Type: multipart/mixed; boundary=" + b'"' * 500_000,
        b"X: y\n" + b" \n" * 400_000,
        encoded(b"=" * 3_000_000),
        encoded(b"= " * 1_500_000),
        encoded(b"=\r\n" + b"AAAA" * 750_000),
    ],
    ids=range(7),
)
def test_time_is_linear(raw: bytes) -> None:
    begun = time.process_time()
    ambiguity.find(raw[at : at + 65536] for at in range(0, len(raw), 65536))
    assert time.process_time() - begun < 2


def test_base64_that_is_padded_all_over_is_not_decoded_piece_by_piece() -> None:
    raw = HEAD + b"Content-Transfer-Encoding: base64\n\n" + b"QUJ=\nQUJD\n" * 20_000
    assert "base64 behind its end" in ambiguity.find(raw[at : at + 65536] for at in range(0, len(raw), 65536))
