"""The parts of messages: as Python's email package finds them where a message follows the RFCs, and in time where not."""

import email
import time
import tracemalloc
from collections.abc import Iterator

import corpora
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deliver.content import attachments, bodies, mime
from deliver.content.mime import UNREAD, Part, parameters_of, parts

EVERYTHING = 100 * 1024 * 1024


def all_parts(raw: bytes, chunk: int = 256 * 1024, keep: int = EVERYTHING) -> list[Part]:
    pieces = (raw[at : at + chunk] for at in range(0, len(raw), chunk))
    return list(parts(pieces, lambda _part: keep))


def leaf_parts(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Type and decoded content of the parts as Python's email package has them."""
    for part in email.message_from_bytes(raw).walk():
        if not part.is_multipart():
            payload = part.get_payload(decode=True)
            yield part.get_content_type(), payload if isinstance(payload, bytes) else b""


# Well-formed, with structure: read by an independent program to the same parts.
REGULAR = [
    "mime-cpython-testemail/msg_01.txt",
    "mime-cpython-testemail/msg_02.txt",
    "mime-cpython-testemail/msg_04.txt",
    "mime-cpython-testemail/msg_07.txt",
    "mime-cpython-testemail/msg_10.txt",
    "mime-cpython-testemail/msg_12.txt",
    "mime-cpython-testemail/msg_21.txt",
    "mime-cpython-testemail/msg_34.txt",
]


@pytest.mark.parametrize("name", REGULAR)
def test_parts_are_those_that_python_finds(name: str) -> None:
    raw = (corpora.needs(name.partition("/")[0]).parent / name).read_bytes()
    expected = [(kind, content.strip()) for kind, content in leaf_parts(raw)]
    found = [(one.type, one.content.strip()) for one in all_parts(raw) if one.type != "message/rfc822"]
    assert found == expected


def test_parts_do_not_depend_on_how_the_message_is_cut() -> None:
    folder = corpora.needs("mime-cpython-testemail")
    for path in sorted(folder.glob("msg_*.txt"))[::5]:
        raw = path.read_bytes()[:20_000]
        whole = all_parts(raw)
        for size in (1, 2, 3, 7, 64, 1000):
            assert all_parts(raw, size) == whole, (path, size)
            assert all_parts(raw.replace(b"\n", b"\r\n"), size) == all_parts(raw.replace(b"\n", b"\r\n")), (path, size)


def test_the_same_texts_as_python_finds_in_most_real_mail() -> None:
    folder = corpora.needs("sa-public")
    alike = other = 0
    for path in sorted(folder.rglob("*"))[::3]:
        if path.is_file():
            raw = path.read_bytes()
            expected = [(kind, b"".join(content.split())) for kind, content in leaf_parts(raw)]
            found = [
                (one.type, b"".join(one.content.split())) for one in all_parts(raw) if one.type != "message/rfc822"
            ]
            alike, other = alike + (found == expected), other + (found != expected)
    assert alike > 50
    assert other <= alike // 20  # boundaries that are not in the message, base64 with text behind it


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        (b"base64", b"SGVs\nbG8=\n", b"Hello"),
        (b"Base64", b"SGVs\nbG8", b"Hello"),
        (b"base64", b"SG!Vs*\n  bG8=", b"Hello"),
        (b"base64", b"SGVsbG8=\nSGVsbG8=\n", b"HelloHello"),
        (b"base64", b"SGVsbG8=\n\nA footer that a list adds", b"Hello\x00"),
        (b"base64 (so)", b"SGVsbG8=", b"Hello"),
        (b"base64", b"SGVsb=\nG8=\n", b"Hello"),  # padding where none can be: Python's and Perl's decoders pass over it
        (b"quoted-printable", b"a=3Db=\nc=E4=zz\n", b"a=bc\xe4=zz\n"),
        (b"quoted-printable", b"a= \t\nb=\t\r\nc = d\n", b"abc = d\n"),  # RFC 2045 section 6.7, rule 3
        (b"7bit", b"SGVsbG8=\n", b"SGVsbG8=\n"),
        (b"x-unknown", b"SGVsbG8=\n", b"SGVsbG8=\n"),
    ],
)
def test_transfer_encodings(encoding: bytes, body: bytes, expected: bytes) -> None:
    raw = b"Content-Type: text/plain\nContent-Transfer-Encoding: " + encoding + b"\n\n" + body
    for size in (1, 5, 1000):
        (only,) = all_parts(raw, size)
        if b"footer" in body:
            assert only.content.startswith(b"Hello")
        else:
            assert only.content.strip() == expected.strip()


@pytest.mark.parametrize(
    ("value", "word", "expected"),
    [
        (b"text/plain; charset=us-ascii", "text/plain", {"charset": "us-ascii"}),
        (b' TEXT/Plain (comment) ;\n Charset="utf-8"', "text/plain", {"charset": "utf-8"}),
        (b'a/b; name="a;b\\"c"', "a/b", {"name": 'a;b"c'}),
        (b'a/b; name="unclosed; x=y', "a/b", {"name": "unclosed", "x": "y"}),
        (b"a/b; name=one; name=two", "a/b", {"name": "one"}),
        # RFC 2231 sections 3 and 4.1
        (
            b'message/external-body; access-type=URL;\n URL*0="ftp://";\n URL*1="cs.utk.edu/pub/moore"',
            "message/external-body",
            {"access-type": "URL", "url*": "ftp://cs.utk.edu/pub/moore", "url": "ftp://cs.utk.edu/pub/moore"},
        ),
        (
            (
                b"application/x-stuff;\n title*0*=us-ascii'en'This%20is%20even%20more%20;\n"
                b' title*1*=%2A%2A%2Afun%2A%2A%2A%20;\n title*2="isn\'t it!"'
            ),
            "application/x-stuff",
            {"title*": "This is even more ***fun*** isn't it!", "title": "This is even more ***fun*** isn't it!"},
        ),
        (b"a/b; name*=no-such-charset''%FF", "a/b", {"name*": "ÿ", "name": "ÿ"}),
        (b"a/b; name*=x%ZZ%4", "a/b", {"name*": "x%ZZ%4", "name": "x%ZZ%4"}),
        (b'a/b; name="=?utf-8?b?w6Q=?="', "a/b", {"name": "ä"}),
        ("a/b; name=ä".encode(), "a/b", {"name": "ä"}),
        (b"a/b; name=\xe4", "a/b", {"name": "ä"}),
        (b"", "", {}),
        (b";;;=;", "", {}),
    ],
)
def test_parameters(value: bytes, word: str, expected: dict[str, str]) -> None:
    assert parameters_of(value) == (word, expected)


def test_a_part_without_a_type_in_a_digest_is_a_message() -> None:
    raw = b"Content-Type: multipart/digest; boundary=b\n\n--b\n\nFrom: x\n\ntext\n--b--\n"
    assert [(one.type, one.inside) for one in all_parts(raw)] == [
        ("message/rfc822", ("multipart/digest",)),
        ("text/plain", ("multipart/digest", "message/rfc822")),
    ]


def test_a_multipart_ends_where_the_one_around_it_goes_on() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=out\n\n--out\nContent-Type: multipart/mixed; boundary=in\n\n"
        b"--in\n\none\n--out\n\ntwo\n--out--\nepilogue\n--in\n\nnever\n"
    )
    assert [one.content for one in all_parts(raw)] == [b"one", b"two"]


def test_headers_that_end_at_a_boundary_leave_an_empty_part() -> None:
    raw = b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: a/b\n--b\n\ntwo\n--b--"
    assert [(one.type, one.content) for one in all_parts(raw)] == [("a/b", b""), ("text/plain", b"two")]


def test_a_message_in_base64_is_read() -> None:
    import base64

    inner = base64.encodebytes(b"Subject: x\nContent-Type: a/b\n\ninner\n")
    raw = b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + inner
    assert [(one.type, one.content) for one in all_parts(raw)][1:] == [("a/b", b"inner\n")]


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b"\n\r\n\n"])
@pytest.mark.parametrize("kind", [b"message/rfc822", b"message/global", b"message/x-unknown"])
def test_a_message_begins_at_its_first_field(blank: bytes, kind: bytes) -> None:
    raw = b"Content-Type: " + kind + b"\n\n" + blank + b"Subject: x\nContent-Type: text/html\n\n<p>hello\n"
    assert [(part.type, part.content) for part in all_parts(raw)][1:] == [("text/html", b"<p>hello\n")]
    assert all_parts(raw, 1) == all_parts(raw)


def test_a_message_without_fields_is_its_text() -> None:
    found = all_parts(b"Content-Type: message/rfc822\n\n\n\nhello there\n\nand more\n")
    assert [(part.type, part.content) for part in found][1:] == [("text/plain", b"hello there\n\nand more\n")]


def test_a_field_that_says_nothing_is_passed_over() -> None:
    found = all_parts(b"Content-Type:\nContent-Type: text/html\nContent-Type: text/csv\n\nhello\n")
    assert [part.type for part in found] == ["text/html"]


def test_only_what_is_wanted_is_kept() -> None:
    raw = b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\n" + b"x" * 5000 + b"\n--b\n\nshort\n--b--\n"
    found = all_parts(raw, 100, keep=50)
    assert [(one.content, one.complete) for one in found] == [(b"x" * 50, False), (b"short", True)]

    def more(part: Part) -> int:
        return 500 if part.content == b"x" * 50 else 50

    found = list(parts([raw], more))
    assert [(len(one.content), one.complete) for one in found] == [(500, False), (5, True)]


def nested(depth: int) -> bytes:
    raw = b"Content-Type: multipart/mixed; boundary=b0\n\n"
    for level in range(depth):
        raw += b"--b%d\nContent-Type: multipart/mixed; boundary=b%d\n\n" % (level, level + 1)
    return raw + b"--b%d\n\nbottom\n" % depth


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n" * 200_000,
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--\n" * 2_000_000,
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b \t" * 400_000,
        b"Content-Type: multipart/mixed; boundary=b\n\n" + b"\n" * 4_000_000,
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\n" + b"X: y\n" * 400_000,
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: a/b" + b'; a="' * 200_000,
        b"Content-Transfer-Encoding: base64\n\n" + b" " * 4_000_000 + b"SGVsbG8=",
        b"Content-Transfer-Encoding: base64\n\n" + b"A=" * 1_000_000,
        b"Content-Transfer-Encoding: base64\n\n" + b"AAAA\nAA=\n" * 3_000_000,
        b"Content-Transfer-Encoding: quoted-printable\n\n" + b"=" * 4_000_000,
        b"Content-Transfer-Encoding: quoted-printable\n\n" + b"x" * 4_000_000,
        nested(1000),
        nested(mime.DEEPEST - 1) + nested(10),
        b"Content-Type: message/rfc822\n\n" * 10_000,
        (b"--x\nContent-Type: multipart/mixed; boundary=x\n\n" * 100_000).partition(b"\n")[2],
    ],
    ids=range(15),
)
def test_hostile_messages_take_linear_time_and_little_memory(raw: bytes) -> None:
    start = time.process_time()
    found = [one.type for one in parts([raw[at : at + 65536] for at in range(0, len(raw), 65536)], lambda _part: 4096)]
    assert time.process_time() - start < 10
    assert len(found) <= mime.MOST_PARTS + 1


def test_what_lies_too_deep_is_said_to_be_unread() -> None:
    assert all_parts(nested(1000))[-1] == UNREAD
    assert all_parts(b"Content-Type: message/rfc822\n\n" * 100 + b"x")[-1] == UNREAD
    assert UNREAD not in all_parts(nested(mime.DEEPEST - 2))


def test_messages_that_are_encoded_in_each_other() -> None:
    def letter(depth: int, text: bytes) -> bytes:
        raw = b"Subject: x\n\n" + text
        for _ in range(depth):
            raw = b"Content-Type: message/rfc822\nContent-Transfer-Encoding: quoted-printable\n\n" + raw
        return raw

    assert [one.content for one in all_parts(letter(mime.DEEPEST, b"hello\n"))][-1] == b"hello\n"
    assert all_parts(letter(mime.DEEPEST + 1, b"hello\n"))[-1] == UNREAD
    raw = letter(mime.DEEPEST, b"hello there\n" * 200_000)
    tracemalloc.start()
    try:
        list(parts((raw[at : at + 65536] for at in range(0, len(raw), 65536)), lambda _part: 0))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000  # 20 times two pieces
    finally:
        tracemalloc.stop()


def test_a_large_message_is_not_held_in_memory() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Transfer-Encoding: base64\n\n"
        line = b"QUFB" * 19 + b"\n"
        for _ in range(120):
            yield line * 3000
        yield b"--b\n\nlast\n--b--\n"

    tracemalloc.start()
    try:
        found = list(parts(chunks(), lambda _part: 4096))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert [one.content[:5] for one in found] == [b"AAAAA", b"last"]


def test_the_most_divided_message_is_read_whole() -> None:
    folder = corpora.needs("mime-flanker")
    largest = max((len(all_parts(path.read_bytes())), path) for path in folder.rglob("*") if path.is_file())
    assert 3000 < largest[0] < mime.MOST_PARTS


# --- whatever arrives --------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    (
        b"--a|--a--|--b|--|\n|\r\n|\n\n|Content-Type: |multipart/mixed; boundary=a|multipart/digest; boundary=\"b\"|"
        b"message/rfc822|text/html|; name*0*=x''%FF; name=\"|SGVsbG8=|Content-Transfer-Encoding: base64\n|"
        b"Content-Transfer-Encoding: quoted-printable\n|=E4=\n| |\0\xff|Content-Disposition: attachment; filename=|"
        b"PK\x03\x04|x.zip|charset=utf-16|<script>|<!--"
    ).split(b"|")
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(PIECES, max_size=60).map(b"".join), st.integers(1, 50))
def test_anything_is_read_the_same_however_it_is_cut(raw: bytes, size: int) -> None:
    assert all_parts(raw, size) == all_parts(raw)
    chunks = [raw[at : at + size] for at in range(0, len(raw), size)]
    assert bodies.read(chunks) == bodies.read([raw])
    assert attachments.read(chunks) == attachments.read([raw])
