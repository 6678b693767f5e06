"""The ICAP adapter against a real c-icap and against peers that misbehave."""

import asyncio
import hashlib
import time
from collections.abc import Iterator

import pytest
import scanner_servers
import servers
from scanned import EICAR, ENVELOPE, HAM, HEADER, InMemory, content, with_attachment, zipped

from deliver.scanners.icap import Answer, Icap, Service, request
from deliver.scanners.pool import BadAnswer
from deliver.values import Finding, Verdict

SLACK = 1.0  # seconds that a busy machine may add to a deadline
BIG = 4 * 1024 * 1024  # bytes: more than any socket's buffers hold
UNMODIFIED = b"ICAP/1.0 204 Unmodified\r\n\r\n"
AVSCAN = Service("avscan")
GO_ON = b"ICAP/1.0 100 Continue\r\n\r\n"
FOUND = (
    b"ICAP/1.0 200 OK\r\nX-Infection-Found: Type=0; Resolution=2; Threat=Eicar-Test;\r\n"
    b"Encapsulated: res-hdr=0, res-body=26\r\n\r\nHTTP/1.0 403 Forbidden\r\n\r\n2\r\nno\r\n0\r\n\r\n"
)


@pytest.fixture(scope="module")
def c_icap(clamd_server: servers.Server) -> Iterator[str]:
    """The address of a c-icap that asks the clamd of the tests."""
    with servers.scratch() as directory, scanner_servers.c_icap(directory, clamd_server.address) as server:
        yield server.address


def scan(addresses, message=HAM, timeout: float = 5, service: Service = AVSCAN) -> Verdict:
    """One scan, which must end within its timeout."""
    message = content(message) if isinstance(message, bytes) else message
    start = time.monotonic()
    verdict = asyncio.run(Icap("icap", addresses, 10**9, timeout, service).scan(message, ENVELOPE))
    assert time.monotonic() - start < timeout + SLACK
    return verdict


# The real one.


@pytest.mark.parametrize("method", ["RESPMOD", "REQMOD"])
@pytest.mark.parametrize("preview", [0, 10, 1024])
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(HEADER + b"\n" + EICAR + b"\n", id="mail"),
        pytest.param(with_attachment(zipped("eicar.com", EICAR), "eicar.zip"), id="zip"),
        pytest.param(with_attachment(b"x" * 300_000, "a") + EICAR, id="behind"),
    ],
)
def test_eicar_is_found(c_icap, method, preview, message):
    verdict = scan([c_icap], message, 30, Service("avscan", method, preview))
    assert verdict == Verdict("icap", Finding.VIRUS, names=("Eicar-Test-Signature.UNOFFICIAL",))


@pytest.mark.parametrize("preview", [0, 1024])
@pytest.mark.parametrize("message", [HAM, b"", b"\n", with_attachment(b"x" * 3_000_000, "a")])
def test_what_has_no_virus_is_clean(c_icap, preview, message):
    assert scan([c_icap], message, 30, Service("avscan", preview=preview)) == Verdict("icap", Finding.CLEAN)


def test_small_pieces_arrive_in_order(c_icap):
    pieces = (HEADER + b"\n", b"", EICAR[:30], b"", EICAR[30:], b"\n")
    assert scan([c_icap], InMemory(pieces), 30).finding is Finding.VIRUS


def test_what_the_server_does_not_want_to_see_is_not_clean(c_icap):
    """c-icap lets pass what is none of its ScanFileTypes: here a JPEG."""
    verdict = scan([c_icap], b"\xff\xd8\xff\xe0\0\x10JFIF" * 3000, 30)
    assert (verdict.finding, verdict.reason) == (Finding.SKIPPED, "icap does not scan this kind of message")


@pytest.mark.parametrize("message", [HAM, with_attachment(b"x" * 3_000_000, "a")], ids=["small", "big"])
def test_a_message_that_comes_back_as_it_was_is_clean(c_icap, message):
    """c-icap's echo sends the body back with 200, whatever the request allows."""
    assert scan([c_icap], message, 30, Service("echo", preview=0)) == Verdict("icap", Finding.CLEAN)


def test_no_such_service(c_icap):
    verdict = scan([c_icap], HAM, 30, Service("nothere"))
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "icap reported an error")
    assert "404" in verdict.detail


# The codec.


def test_the_request_is_as_the_standard_has_it():
    """RFC 3507 section 4.4.1: offsets in Encapsulated are where its parts begin."""
    head, _, inner = request(Service("avscan"), "::1", 5, 3).partition(b"\r\n\r\n")
    assert head.startswith(b"RESPMOD icap://[::1]/avscan ICAP/1.0\r\nHost: [::1]\r\n")
    assert b"\r\nAllow: 204\r\nPreview: 3\r\n" in head
    offsets = dict(part.split(b"=") for part in head.rpartition(b": ")[2].split(b", "))
    assert inner[: int(offsets[b"res-hdr"])].startswith(b"GET ")
    assert inner[int(offsets[b"res-hdr"]) :].startswith(b"HTTP/1.1 200 OK\r\n")
    assert int(offsets[b"res-body"]) == len(inner)


def whole(data: bytes, size: int) -> Answer:
    answer = Answer(1000)
    for start in range(0, len(data), size):
        answer.feed(data[start : start + size])
    return answer


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_an_answer_in_pieces(size):
    answer = whole(GO_ON + FOUND, size)
    assert (answer.go_on, answer.complete, answer.status) == (True, True, 200)
    assert answer.names() == ("Eicar-Test",)
    assert answer.digest == hashlib.sha256(b"no").hexdigest()


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (b"", ()),
        (b"X-Virus-ID: Win.Worm\r\n", ("Win.Worm",)),
        (b"X-Virus-ID: no threats\r\n", ()),
        (b"x-infection-found: Threat=A b; Type=0\r\nX-Virus-ID: A b\r\n", ("A b",)),
        (b"X-Infection-Found: ?\r\n", ("?",)),
        (b"X-Infection-Found: Threat=\xe9\x1b;\r\n", ("??",)),
        (b"X-Violations-Found: 2\r\n\ta\r\n\tOne\r\n\t0\r\n\t0\r\n\tb\r\n\tTwo\r\n\t0\r\n\t0\r\n", ("One", "Two")),
        (b"X-Violations-Found: 0\r\n", ()),
        (b"X-Violations-Found: 1\r\n", ("unnamed",)),
        (b"X-Violations-Found:\r\n", ("unnamed",)),
    ],
)
def test_names(lines, names):
    assert whole(b"ICAP/1.0 204 x\r\n" + lines + b"\r\n", 1000).names() == names


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"x" * 20,
        b"ICAP/1.0 2000 OK\r\n\r\n",
        b"ICAP/1.0 200 OK\r\nX: " + b"x" * 100_000,
        b"ICAP/1.0 200 OK\r\nEncapsulated: res-body=99999999\r\n\r\n",
        b"ICAP/1.0 200 OK\r\nEncapsulated: res-body=0\r\n\r\nx\r\n",
        b"ICAP/1.0 200 OK\r\nEncapsulated: res-body=0\r\n\r\n-1\r\n",
        b"ICAP/1.0 200 OK\r\nEncapsulated: res-body=0\r\n\r\n" + b"1" * 100_000,
        b"ICAP/1.0 200 OK\r\nEncapsulated: res-body=0\r\n\r\n7fffffff\r\n",
        b"ICAP/1.0 200 OK\r\nEncapsulated: res-body=0\r\n\r\n0\r\n" + b"X: y\r\n" * 1000,
        b"ICAP/1.0 301 Moved\r\n\r\n",
        b"ICAP/1.0 500 Server error\r\n\r\n",
        GO_ON + GO_ON,
    ],
)
def test_what_icap_does_not_know(data):
    with pytest.raises(BadAnswer):
        whole(data, 1000)


# Peers that misbehave.


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "icap did not answer"),
        (b"garbage", "icap answered nonsense"),
        (UNMODIFIED[:10], "icap answered nonsense"),
        (FOUND[:-3], "icap answered nonsense"),
        (b"ICAP/1.0 200 OK\r\n\r\n", "icap answered nonsense"),
        (b"ICAP/1.0 503 Overloaded\r\n\r\n", "icap reported an error"),
        (bytes(range(256)), "icap answered nonsense"),
    ],
)
def test_what_is_no_verdict_is_a_failure(scratch, answer, reason):
    with servers.Scripted(scratch, read_message, servers.answer(answer)) as peer:
        verdict = scan([peer.address], service=Service("x", preview=0))
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, reason)
    assert peer.address in verdict.detail
    assert verdict.detail.isprintable()


def test_something_else_in_its_place_is_no_clean_message(scratch):
    page = b"ICAP/1.0 200 OK\r\nEncapsulated: res-body=0\r\n\r\n2\r\nno\r\n0\r\n\r\n"
    with servers.Scripted(scratch, read_message, servers.answer(page)) as peer:
        verdict = scan([peer.address], service=Service("x", preview=0))
    assert (verdict.finding, verdict.names) == (Finding.VIRUS, ("unnamed",))


def read_message(peer: servers.Peer) -> None:
    """Read to the end of the chunked body."""
    while not bytes(peer.received).endswith(b"\r\n0\r\n\r\n") and peer.read(65536):
        pass


@pytest.mark.parametrize("answer", [UNMODIFIED, b"ICAP/1.0 200 OK\r\nEncapsulated: null-body=0\r\n\r\n"])
def test_no_message_is_clean_that_was_not_read(scratch, answer):
    with servers.Scripted(scratch, servers.read_some(100), servers.answer(answer), servers.hang) as peer:
        verdict = scan([peer.address], b"x" * BIG, service=Service("x", preview=0))
    assert verdict.finding is Finding.FAILED


def test_a_virus_counts_though_the_rest_was_not_read(scratch):
    with servers.Scripted(scratch, servers.read_some(100), servers.answer(FOUND), servers.hang) as peer:
        assert scan([peer.address], b"x" * BIG).names == ("Eicar-Test",)


def test_the_preview_is_never_the_whole_message(scratch):
    """So that a server that has seen enough can be told from one that has seen everything."""
    steps = (read_message, servers.answer(GO_ON), read_rest, servers.answer(UNMODIFIED))
    with servers.Scripted(scratch, *steps) as peer:
        assert scan([peer.address], b"12345").finding is Finding.CLEAN
    assert b"\r\nPreview: 4\r\n" in peer.peers[0].received
    assert peer.peers[0].received.endswith(b"\r\n\r\n4\r\n1234\r\n0\r\n\r\n1\r\n5\r\n0\r\n\r\n")


def read_rest(peer: servers.Peer) -> None:
    peer.read_exactly(len(b"1\r\n5\r\n0\r\n\r\n"))


@pytest.mark.parametrize("message", [HAM, b"x" * BIG], ids=["small", "big"])
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([servers.hang], id="reads and says nothing"),
        pytest.param([read_message, servers.drip(UNMODIFIED, 0.1)], id="drips"),
        pytest.param([read_message, servers.answer(GO_ON), servers.hang], id="does not go on"),
        pytest.param([read_message, servers.answer(FOUND[:-3]), servers.hang], id="does not end"),
    ],
)
def test_a_slow_peer_ends_with_the_deadline(scratch, steps, message):
    with servers.Scripted(scratch, *steps) as peer:
        verdict = scan([peer.address], message, 0.5)
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "icap did not answer in time")


@pytest.mark.parametrize("start", [b"", b"ICAP/1.0 200 OK\r\n", b"ICAP/1.0 200 OK\r\nEncapsulated: res-body=0\r\n\r\n"])
def test_an_endless_answer_ends(scratch, start):
    again = b"400\r\n" + b"x" * 1024 + b"\r\n"
    with servers.Scripted(scratch, servers.read_some(10), servers.endless(start, again)) as peer:
        verdict = scan([peer.address])
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "icap answered nonsense")


def test_the_next_member_is_asked(scratch):
    bad = servers.Scripted(scratch, read_message, servers.answer(b"ICAP/1.0 503 Overloaded\r\n\r\n"))
    good = servers.Scripted(scratch, read_message, servers.answer(FOUND))
    with servers.all_of(bad, good) as addresses:
        assert scan([f"unix:{scratch}/absent", *addresses]).names == ("Eicar-Test",)
