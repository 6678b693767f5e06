"""The clamd adapter against a real clamd and against peers that misbehave."""

import asyncio
import socket
import threading
import time

import pytest
import servers
from scanned import EICAR, ENVELOPE, HAM, HEADER, InMemory, content, with_attachment, zipped

from deliver.scanners.address import UnixAddress
from deliver.scanners.clamd import Clamd, read_answer
from deliver.scanners.clamd_socket import open_socket
from deliver.scanners.pool import BadAnswer, NoAnswer
from deliver.values import Finding, Verdict

SLACK = 1.0  # seconds that a busy machine may add to a deadline
BIG = 4 * 1024 * 1024  # bytes: more than any socket's buffers hold
TOO_LARGE = b"INSTREAM size limit exceeded. ERROR\n"


def scan(addresses, message=HAM, timeout: float = 5) -> Verdict:
    """One scan, which must end within its timeout."""
    message = content(message) if isinstance(message, bytes) else message
    start = time.monotonic()
    verdict = asyncio.run(Clamd(addresses, 10**9, timeout).scan(message, ENVELOPE))
    assert time.monotonic() - start < timeout + SLACK
    return verdict


# The real one.


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(EICAR, id="raw"),
        pytest.param(HEADER + b"\n" + EICAR + b"\n", id="mail"),
        pytest.param(with_attachment(EICAR, "eicar.com"), id="base64"),
        pytest.param(with_attachment(zipped("eicar.com", EICAR), "eicar.zip"), id="zip"),
    ],
)
def test_eicar_is_found_wherever_it_hides(clamd_server, message):
    verdict = scan([clamd_server.address], message, 30)
    assert verdict.finding is Finding.VIRUS
    assert verdict.names == ("Eicar-Test-Signature.UNOFFICIAL",)


@pytest.mark.parametrize(
    "message", [HAM, b"", b"\n", b"\0" * 10, with_attachment(b"x" * 300_000, "a"), b"x" * (128 * 1024)]
)
def test_what_has_no_virus_is_clean(clamd_server, message):
    assert scan([clamd_server.address], message, 30) == Verdict("clamd", Finding.CLEAN)


def test_a_signature_across_pieces_is_found_and_an_empty_piece_does_not_end_the_stream(clamd_server):
    pieces = (HEADER + b"\n", b"", EICAR[:30], b"", EICAR[30:], b"\n")
    assert scan([clamd_server.address], InMemory(pieces), 30).finding is Finding.VIRUS


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 2 * BIG])
def test_over_clamds_own_limit_is_skipped(scratch, size):
    with servers.clamd(scratch, stream_max_length="1M") as server:
        verdict = scan([server.address], b"x" * size, 30)
        assert (verdict.finding, verdict.reason) == (Finding.SKIPPED, "larger than clamd's own limit")
        assert scan([server.address], b"x" * (1024 * 1024), 30).finding is Finding.CLEAN


def test_two_scans_at_once(clamd_server):
    async def both() -> list[Verdict]:
        scanner = Clamd([clamd_server.address], 10**9, 30)
        return await asyncio.gather(scanner.scan(content(HAM), ENVELOPE), scanner.scan(content(EICAR), ENVELOPE))

    assert [verdict.finding for verdict in asyncio.run(both())] == [Finding.CLEAN, Finding.VIRUS]


def test_version(clamd_server, scratch):
    assert asyncio.run(Clamd([clamd_server.address], 1, 30).version()).startswith("ClamAV ")
    for steps in ([], [servers.answer(b"hello\n")]):
        with servers.Scripted(scratch, *steps) as peer, pytest.raises(NoAnswer):
            asyncio.run(Clamd([peer.address], 1, 5).version())


# The grammar.


def test_the_answers_that_are_verdicts():
    assert read_answer("stream: OK") == Verdict("clamd", Finding.CLEAN)
    assert read_answer("stream: OK FOUND").names == ("OK",)
    assert read_answer("stream: Two Words FOUND").names == ("Two Words",)
    assert read_answer("stream: a\rb\x1b[1m\0é\x7f FOUND").names == ("a?b?[1m???",)
    assert read_answer(f"stream: {'x' * 1000} FOUND").names == ("x" * 200,)
    assert read_answer("INSTREAM size limit exceeded. ERROR").finding is Finding.SKIPPED


@pytest.mark.parametrize(
    "line",
    [
        "",
        "OK",
        "stream: ok",
        "stream:OK",
        "stream: x OK",
        "stream: OK ",
        "stream: OK\r",
        " stream: OK",
        "stream:  OK",
        "/tmp/file: OK",
        "stream: FOUND",
        "stream: x FOUND ",
        "LibClamAV Warning: not FOUND",
        "1: stream: OK",
        "stream: Can't allocate memory ERROR",
        "COMMAND READ TIMED OUT",
        "UNKNOWN COMMAND",
    ],
)
def test_no_other_answer_is(line):
    with pytest.raises(BadAnswer):
        read_answer(line)


# Peers that misbehave.


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "clamd did not answer"),
        (b"\n", "clamd answered nonsense"),
        (b"stream: OK", "clamd answered nonsense"),  # cut
        (b"stream: Eica", "clamd answered nonsense"),
        (b"stream: OK\nstream: OK\n", "clamd answered nonsense"),
        (b"stream: Evil\nName FOUND\n", "clamd answered nonsense"),
        (b"stream: x OK\n", "clamd answered nonsense"),
        (b"stream: " + b"x" * 5000 + b" FOUND\n", "clamd answered nonsense"),
        (b"stream: OK\0", "clamd answered nonsense"),
        (bytes(range(256)), "clamd answered nonsense"),
        (b"stream: Can't allocate memory ERROR\n", "clamd reported an error"),
    ],
)
def test_what_is_no_verdict_is_a_failure(scratch, answer, reason):
    with servers.Scripted(scratch, servers.read_stream, servers.answer(answer)) as peer:
        verdict = scan([peer.address])
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, reason)
    assert peer.address in verdict.detail
    assert verdict.detail.isprintable()


def test_the_message_arrives_whole(scratch):
    message = bytes(range(256)) * (BIG // 256)
    pieces = InMemory((message[:10], b"", message[10:300_000], message[300_000:]))
    with servers.Scripted(scratch, servers.read_stream, servers.answer(b"stream: OK\n")) as peer:
        assert scan([peer.address], pieces).finding is Finding.CLEAN
    assert bytes(peer.peers[0].received) == message


def test_a_short_write_is_continued():
    """With little room in the socket's buffer, send(2) takes a part; what is left must follow, or the framing breaks."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = open_socket(UnixAddress("/unused"), time.monotonic() + 5)
        client.clamd_socket = ours
        peer = servers.Peer(theirs, threading.Event())
        thread = threading.Thread(target=peer.read_exactly, args=(BIG,))
        thread.start()
        client._send(b"x" * BIG)
        ours.shutdown(socket.SHUT_WR)
        thread.join()
    assert len(peer.received) == BIG


@pytest.mark.parametrize("message", [HAM, b"x" * BIG], ids=["small", "big"])
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([servers.hang], id="reads and says nothing"),
        pytest.param([servers.read_stream, servers.hang], id="says nothing"),
        pytest.param([servers.read_stream, servers.drip(b"stream: OK\n", 0.1)], id="drips"),
        pytest.param([servers.read_stream, servers.answer(b"stream: "), servers.hang], id="stops"),
        pytest.param([servers.read_stream, servers.answer(b"stream: OK\n"), servers.hang], id="does not close"),
    ],
)
def test_a_slow_peer_ends_with_the_deadline(scratch, steps, message):
    with servers.Scripted(scratch, *steps) as peer:
        verdict = scan([peer.address], message, 0.5)
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "clamd did not answer in time")


def test_an_endless_answer_ends(scratch):
    with servers.Scripted(scratch, servers.read_stream, servers.endless(b"", b"stream: OK" * 1000)) as peer:
        verdict = scan([peer.address])
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "clamd answered nonsense")


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
@pytest.mark.parametrize("size", [1000, BIG])
def test_the_size_limit_is_heard_through_the_broken_pipe(scratch, host, size):
    """clamd answers and closes while the message is still coming: the send fails, the answer can still be read."""
    with servers.Scripted(scratch, servers.read_some(100), servers.answer(TOO_LARGE), host=host) as peer:
        verdict = scan([peer.address], b"x" * size)
    assert verdict.finding is Finding.SKIPPED, verdict


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
@pytest.mark.parametrize("size", [1000, BIG])
@pytest.mark.parametrize("answer", [b"", b"stream: OK\n", b"stream: Eicar FOUND\n", b"stream: No memory ERROR\n"])
def test_no_message_is_judged_that_was_not_read(scratch, host, answer, size):
    with servers.Scripted(scratch, servers.read_some(100), servers.answer(answer), host=host) as peer:
        assert scan([peer.address], b"x" * size).finding is Finding.FAILED


def test_where_nothing_listens_there_is_no_answer(scratch):
    dead = scratch / "dead"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    for path in (scratch / "absent", dead, scratch):
        verdict = scan([f"unix:{path}"])
        assert (verdict.finding, verdict.reason) == (Finding.FAILED, "clamd did not answer")
        assert str(path) in verdict.detail


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp(scratch, host):
    with servers.Scripted(scratch, servers.read_stream, servers.answer(b"stream: OK\n"), host=host) as peer:
        assert scan([peer.address]).finding is Finding.CLEAN
        assert scan([peer.address.replace("127.0.0.1", "localhost")]).finding is Finding.CLEAN


def test_a_full_backlog_is_waited_for(scratch):
    """A UNIX socket with a timeout gets EAGAIN at once where one without would wait (connect(2))."""
    path = str(scratch / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)  # room for one
        first.connect(path)
        assert scan([f"unix:{path}"], timeout=0.3).reason == "clamd did not answer in time"
        asked = threading.Event()

        class Asked(InMemory):
            def chunks(self):
                asked.set()
                return super().chunks()

        def serve() -> None:
            listener.accept()[0].close()
            # What the attempt above has left behind, if anything, is closed by now.
            connection = listener.accept()[0]
            with connection:
                peer = servers.Peer(connection, threading.Event())
                servers.read_stream(peer)
                connection.sendall(b"stream: OK\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert scan([f"unix:{path}"], Asked((HAM,))).finding is Finding.CLEAN
        thread.join()
        assert asked.is_set()


# Pools.


def test_the_next_member_is_asked(scratch):
    bad = [
        servers.Scripted(scratch),
        servers.Scripted(scratch, servers.read_stream, servers.answer(b"garbage\n")),
        servers.Scripted(scratch, servers.read_stream, servers.answer(b"stream: No memory ERROR\n")),
        servers.Scripted(scratch, servers.hang),
    ]
    good = servers.Scripted(scratch, servers.read_stream, servers.answer(b"stream: Eicar FOUND\n"))
    with servers.all_of(*bad, good) as addresses:
        verdict = scan([f"unix:{scratch}/absent", *addresses], timeout=2)
    assert (verdict.finding, verdict.names) == (Finding.VIRUS, ("Eicar",))
    assert [len(peer.peers) for peer in (*bad, good)] == [1, 1, 1, 1, 1]
    assert bytes(good.peers[0].received) == HAM


def test_a_verdict_ends_the_round(scratch):
    skipped = servers.Scripted(scratch, servers.read_stream, servers.answer(TOO_LARGE))
    second = servers.Scripted(scratch, servers.read_stream, servers.answer(b"stream: OK\n"))
    with servers.all_of(skipped, second) as addresses:
        assert scan(addresses).finding is Finding.SKIPPED
    assert not second.peers


def test_all_members_together_have_one_deadline(scratch):
    hanging = [servers.Scripted(scratch, servers.hang) for _ in range(3)]
    with servers.all_of(*hanging) as addresses:
        verdict = scan(addresses, timeout=0.6)
    assert verdict.finding is Finding.FAILED
    assert all(address in verdict.detail for address in addresses)
    assert "/" not in verdict.reason
