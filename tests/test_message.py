"""A message is stored as it came: framing, line ends, forged lines, size; and it is found to loop, or not."""

import os
import tempfile
import threading

import pytest

from deliver.errors import Deferred
from deliver.message import CHUNK, HEADER_CAP, IN_MEMORY, Forgeries, Message, Source, drain, read_framing

FORGERIES = Forgeries(frozenset({b"x-virus-status", b"x-filter-error"}), (b"x-spam-",), b"mx.example.org")


def message(content: bytes, return_path: bytes = b"", forgeries: Forgeries = FORGERIES) -> Message:
    """A message that is in memory."""
    source = Source.of(content)
    return Message(source, read_framing(source.head), return_path, forgeries)


def stored(content: bytes, **more: bytes) -> bytes:
    """What is stored of it, without lines of ours."""
    return b"".join(message(content, **more).stored(b"", b""))


PLAIN = b"Received: by mx\nSubject: x\n\nbody\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"no newline",
        b"Subject: only a header\n",
        b"\nbody without a header\n",
        b"Subject: nul\n\n\x00\xff\n",
        b"Subject: bare\rcr\n\nx\ry\n",
        b"Subject: mixed\r\n\nlf\nand crlf\r\n",
        b"Subject: long\n\n" + b"x" * 3_000_000,
        b">From the heart\nSubject: not framing\n\nx\n",
        b"from small letters no mbox line is made\nSubject: not framing\n\nx\n",
        PLAIN,
    ],
)
def test_a_message_is_stored_byte_for_byte(content: bytes) -> None:
    """maildir(5): whatever came; bad inputs 1 to 7."""
    assert stored(content) == content


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_crlf_throughout_is_stored_as_lf_wherever_the_chunks_end(size: int) -> None:
    """Courier-IMAP would show every line end twice."""
    body = b"y" * (size - 6) + b"\r\nz\r\n"
    content = b"Subject: x\r\n\r\n" + body
    assert stored(content) == content.replace(b"\r\n", b"\n")


def test_crlf_from_a_pipe_is_recognised_wherever_the_reads_end() -> None:
    """A read may end between CR and LF."""
    source = Source()
    for byte in (b"a: b\r", b"\n\r", b"\nbody\r", b"\n"):
        source._look(byte)
    assert (source.lf, source.crlf) == (3, 3)


@pytest.mark.parametrize(
    ("framing", "kept"),
    [
        pytest.param(b"From a@b Sun Nov 22 12:00:00 2026\nReturn-Path: <a@b>\nDelivered-To: c@d\n", 0, id="preline"),
        pytest.param(
            b"From a@b  Sun Nov 22 12:00:00 2026\nX-Original-To: e@d\nDelivered-To: c@d\nReturn-Path: <a@b>\n",
            1,
            id="postfix-local",
        ),
        pytest.param(b"Return-Path: <a@b>\nX-Original-To: e@d\nDelivered-To: c@d\n", 1, id="postfix-pipe-DRO"),
        pytest.param(b"From a@b Sun Nov 22 12:00:00 2026\n", 0, id="exim-default"),
        pytest.param(
            b"Return-path: <a@b>\nEnvelope-to: c@d\nDelivery-date: Sun, 22 Nov 2026 12:00:00 +0000\n", 2, id="exim-adds"
        ),
        pytest.param(b"Return-Path: <a@b>\nDelivered-To: c@d\n", 0, id="getmail"),
        pytest.param(b"", 0, id="qmail"),
    ],
)
def test_framing_is_known_for_what_it_is(framing: bytes, kept: int) -> None:
    """One Return-Path, one Delivered-To, no From_ line, whoever put them there; the rest of the framing stays."""
    from_outside = message(framing + PLAIN, return_path=b"Return-Path: <a@b>\n")
    result = b"".join(from_outside.stored(b"Delivered-To: c@d\n", b"X-Ours: 1\n"))
    lines = result.lower().split(b"\n")
    assert lines[:3] == [b"return-path: <a@b>", b"delivered-to: c@d", b"x-ours: 1"]
    assert sum(line.startswith((b"return-path:", b"from ")) for line in lines) == 1
    assert result.endswith(PLAIN)
    assert result.count(b"\n") == 3 + kept + PLAIN.count(b"\n")
    assert not from_outside.loops(["c@d"])


def test_a_delivered_to_below_the_framing_is_a_loop() -> None:
    """qmail-local(8): header only, byte for byte."""
    for line, loops in ((b"Delivered-To: c@d", True), (b"delivered-to:  c@d ", True), (b"Delivered-To: C@D", False)):
        assert message(b"Delivered-To: c@d\nReceived: by mx\n" + line + b"\n\nx\n").loops(["c@d"]) is loops
    assert not message(b"Received: by mx\n\nDelivered-To: c@d\n").loops(["c@d"])


def test_a_return_path_further_down_counts_for_nothing() -> None:
    """It is the sender's invention."""
    forged = message(b"Received: by mx\nReturn-Path: <forged@x>\n\nx\n", return_path=b"Return-Path: <a@b>\n")
    assert forged.fields("return-path") == [b" <a@b>\n"]
    assert forged.framing.sender is None


def test_forged_lines_are_removed_whole_from_the_own_header_only() -> None:
    """With their continuations, in any case, also with a blank before the colon; never in nested messages."""
    top = b"Subject: x\n\tX-Spam-Flag: folded into the subject\n"
    forged = (
        b"X-Spam-Status: Yes,\n score=99\nx-spam-flag : YES\nX-Virus-Status: Clean\nX-Filter-Error: none\n"
        b"Authentication-Results: (hello) MX.example.org; dkim=pass\n"
    )
    rest = b"Authentication-Results: other.example; spf=pass\n\nX-Spam-Flag: YES\n\n--\nX-Virus-Status: Clean\n"
    one = message(top + forged + rest)
    assert b"".join(one.stored(b"", b"")) == top + rest
    assert one.fields("x-spam-flag") == []
    assert one.size == len(top + rest) == sum(map(len, one.chunks()))
    crlf = message((top + forged + rest).replace(b"\n", b"\r\n"))
    assert b"".join(crlf.stored(b"", b"")) == top + rest
    assert crlf.size == len(top + rest)


@pytest.mark.parametrize(
    "name",
    [
        b"mx.example.org;",
        b'"MX.example.org" 1;',
        b'"mx\\.ex\\ample.org";',
        b"(a (nested) comment) mx.example.org(another);",
        b"(\\) still (in it)) mx.example.org;",
        b"\n\t(folded\n\tcomment)\n mx.example.org\n\t;",
    ],
)
def test_results_in_our_name_go_however_it_is_written(name: bytes) -> None:
    """RFC 8601 section 5: who reads the field leaves out comments and quotes."""
    assert stored(b"Authentication-Results: " + name + b" dkim=pass\n\nx\n") == b"\nx\n"


@pytest.mark.parametrize("name", [b"example.org; (", b"(mx.example.org) other.example;", b"(mx.example.org;", b"other.example; mx.example.org;"])
def test_results_in_other_names_stay(name: bytes) -> None:
    content = b"Authentication-Results: " + name + b" dkim=pass\n\nx\n"
    assert stored(content) == content


@pytest.mark.parametrize("blank", [b" ", b"\t"])
def test_a_message_that_begins_with_a_folded_line_does_not_write_into_ours(blank: bytes) -> None:
    """Unfolded, X-Virus-Status would read "Clean Infected (Fake)" (RFC 5322 section 2.2.3)."""
    content = blank + b"Infected (Fake)\nSubject: x\n\nbody\n"
    one = message(content)
    ours = b"X-Virus-Status: Clean\n"
    for lines in (one.stored(b"", ours), one.forwarded(b"Delivered-To: c@d\n", ours)):
        assert b"".join(lines).endswith(ours + b"X-Unfolded:\n" + content)
    assert one.stored_size(b"", ours) == sum(map(len, one.stored(b"", ours)))
    assert b"".join(one.stored(b"", b"")) == content


def test_the_size_that_quota_counts_is_the_size_that_is_stored() -> None:
    """Framing, forged lines, line ends and lines of ours all change it."""
    for content in (PLAIN, b"From x\nReturn-Path: <a@b>\n" + PLAIN, b"X-Spam-A: b\r\nA: b\r\n\r\nx\r\n", b"a\r\nb\n"):
        one = message(content)
        for delivered_to, headers in ((b"", b""), (b"Delivered-To: c@d\n", b"X-Virus-Status: Clean\n")):
            assert one.stored_size(delivered_to, headers) == sum(map(len, one.stored(delivered_to, headers)))


def test_what_is_scanned_has_the_return_path_and_nothing_of_one_recipient() -> None:
    """spamd's SPF needs the sender; the scan of one message serves fifty recipients."""
    framed = message(b"Return-Path: <a@b>\nX-Original-To: e@d\nDelivered-To: c@d\n" + PLAIN)
    assert b"".join(framed.chunks()) == b"Return-Path: <a@b>\n" + PLAIN


def test_what_is_sent_on_names_us_once_and_keeps_no_return_path() -> None:
    """qmail-queue and sendmail write their own; a loop is found by our Delivered-To."""
    framed = message(b"Return-Path: <a@b>\nDelivered-To: c@d\n" + PLAIN)
    assert b"".join(framed.forwarded(b"Delivered-To: c@d\n", b"")) == b"Delivered-To: c@d\n" + PLAIN
    assert b"".join(message(PLAIN).forwarded(b"Delivered-To: c@d\n", b"")) == b"Delivered-To: c@d\n" + PLAIN
    other = message(b"Delivered-To: other@d\n" + PLAIN)
    assert b"".join(other.forwarded(b"Delivered-To: c@d\n", b"")).startswith(
        b"Delivered-To: c@d\nDelivered-To: other@d\n"
    )


@pytest.mark.parametrize("size", [IN_MEMORY, IN_MEMORY + 1, 3 * IN_MEMORY])
def test_a_pipe_gives_the_same_message_as_a_file(size: int) -> None:
    """Small ones stay in memory, large ones go through the spool."""
    content = b"Subject: x\n\n" + b"z" * size
    spools = []

    def spool() -> int:
        spools.append(tempfile.TemporaryFile())  # noqa: SIM115 - closed below
        return spools[-1].fileno()

    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as pipe:
            pipe.write(content)

    feeder = threading.Thread(target=write)
    feeder.start()
    source = Source.read(reading, spool)
    feeder.join()
    os.close(reading)
    one = Message(source, read_framing(source.head))
    assert b"".join(one.stored(b"", b"")) == content
    assert len(spools) == (len(content) > IN_MEMORY)
    for file in spools:
        file.close()


def test_a_file_is_read_from_its_offset() -> None:
    """A line of .qmail may have read the first bytes already; qmail itself rewinds."""
    with tempfile.TemporaryFile() as file:
        file.write(b"gone" + PLAIN)
        file.seek(4)
        source = Source.read(file.fileno(), lambda: -1)
        assert b"".join(Message(source, read_framing(source.head)).stored(b"", b"")) == PLAIN


def test_a_file_that_shrinks_is_tried_again() -> None:
    """Half a message must never be stored."""
    with tempfile.TemporaryFile() as file:
        file.write(PLAIN * 1000)
        file.seek(0)
        source = Source.read(file.fileno(), lambda: -1)
        file.truncate(10)
        with pytest.raises(Deferred, match="shorter"):
            list(Message(source, read_framing(source.head)).stored(b"", b""))


def test_a_directory_is_no_message() -> None:
    """Bad input 18."""
    fd = os.open("/", os.O_RDONLY)
    with pytest.raises(Deferred):
        Source.read(fd, lambda: -1)
    os.close(fd)


def test_an_enormous_header_is_stored_whole_and_seen_in_part() -> None:
    """Bad input 8: 10 MB of header; rules look at the first HEADER_CAP."""
    content = b"Subject: x\n" + b"X-Line: y\n" * 1_000_000 + b"\nbody\n"
    one = message(content)
    assert one.header_is_cut
    assert b"".join(one.stored(b"", b"")) == content
    assert len(one.fields("x-line")) <= HEADER_CAP // 10


@pytest.mark.parametrize(
    ("line", "when"),
    [
        (b"Received: (qmail 1 invoked by uid 0); 22 Nov 2026 12:00:00 -0000", 1795348800.0),
        (b"Received: from a by b;\n\tSun, 22 Nov 2026 13:00:00 +0100", 1795348800.0),
        (b"Received: from a by b; whenever", None),
        (b"Received: x; Mon, 99 Foo 99999999999999999999 99:99:99 +9999", None),
    ],
)
def test_the_top_received_tells_when_it_came(line: bytes, when: float | None) -> None:
    """RFC 5322 section 3.6.7: behind the last semicolon. 1795348800 is `date -d 2026-11-22T12:00Z +%s`."""
    assert message(line + b"\nReceived: older; Sun, 1 Jan 2006 00:00:00 +0000\n\nx\n").received() == when


def test_without_a_received_nobody_knows_when_it_came() -> None:
    """The Date line is the sender's word."""
    assert message(b"Date: Sun, 22 Nov 2026 12:00:00 +0000\n\nx\n").received() is None


def test_what_is_left_in_a_pipe_is_drained() -> None:
    """preline(1) calls a broken pipe a failure, whatever the command answered."""
    reading, writing = os.pipe()
    os.write(writing, b"x" * 1000)
    os.close(writing)
    drain(reading)
    assert os.read(reading, 1) == b""
    os.close(reading)
