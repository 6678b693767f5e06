"""The spamd adapter against a real spamd and against peers that misbehave."""

import asyncio
import socket
import threading
import time

import pytest
import servers
from scanned import ENVELOPE, GTUBE, HAM, HEADER, SPAM, content

from deliver.scanners.spamd import Spamd, names_of_tests, spam_lines
from deliver.values import Finding, Verdict

SLACK = 1.0  # seconds that a busy machine may add to a deadline
MAX_SIZE = 256 * 1024
STATUS = b"X-Spam-Status: Yes, score=15.1 required=5.0 tests=GTUBE,NO_RECEIVED,\n\tNO_RELAYS autolearn=no\n"


def scan(addresses, message: bytes = HAM, timeout: float = 5, envelope=ENVELOPE, user: str = "") -> Verdict:
    """One scan, which must end within its timeout."""
    scanner = Spamd(addresses, MAX_SIZE, timeout, user)
    start = time.monotonic()
    verdict = asyncio.run(scanner.scan(content(message), envelope))
    assert time.monotonic() - start < timeout + SLACK
    return verdict


def response(body: bytes = STATUS, spam: bytes = b"True ; 15.1 / 5.0", length: int | None = None) -> bytes:
    """spamd/PROTOCOL: a response to HEADERS."""
    size = len(body) if length is None else length
    return b"SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\nSpam: %b\r\n\r\n%b" % (size, spam, body)


def answered(scratch, data: bytes, **options) -> tuple[Verdict, bytes]:
    """The verdict on one answer, and the request."""
    with servers.Scripted(scratch, servers.read_all, servers.answer(data)) as peer:
        verdict = scan([peer.address], **options)
    return verdict, bytes(peer.peers[0].received)


# The real one.


def test_ham(spamd_server):
    verdict = scan([spamd_server.address], timeout=30)
    assert verdict.finding is Finding.CLEAN
    assert verdict.score is not None
    assert verdict.required == 5.0
    assert verdict.score < verdict.required
    assert b"X-Spam-Status: No, score=" in verdict.headers
    assert all(line.startswith((b"X-Spam-", b"\t", b" ")) for line in verdict.headers.splitlines())


@pytest.mark.parametrize("message", [SPAM, SPAM.replace(b"\n", b"\r\n")], ids=["LF", "CRLF"])
def test_gtube(spamd_server, message):
    verdict = scan([spamd_server.address], message, 30)
    assert verdict.finding is Finding.SPAM
    assert verdict.score is not None
    assert verdict.score >= 999  # what GTUBE alone gives
    assert "GTUBE" in verdict.names
    assert len(verdict.names) > 1
    assert b"X-Spam-Flag: YES\n" in verdict.headers
    assert b"Content-Type" not in verdict.headers  # the wrapper's, of report_safe 1
    assert b"\r" not in verdict.headers


@pytest.mark.parametrize("message", [b"", b"\n", b"\0\xff\r\n", b"no header at all"])
def test_odd_messages_have_a_verdict(spamd_server, message):
    assert scan([spamd_server.address], message, 30).finding in (Finding.CLEAN, Finding.SPAM)


def test_two_scans_at_once(spamd_server):
    async def both() -> list[Verdict]:
        scanner = Spamd([spamd_server.address], MAX_SIZE, 30)
        return await asyncio.gather(scanner.scan(content(HAM), ENVELOPE), scanner.scan(content(SPAM), ENVELOPE))

    assert [verdict.finding for verdict in asyncio.run(both())] == [Finding.CLEAN, Finding.SPAM]


def test_a_user_is_named(spamd_server):
    verdict = scan([spamd_server.address], timeout=30, user="{recipient}")
    assert verdict.finding is Finding.CLEAN


@pytest.mark.parametrize(
    "start",
    [
        b"X-Spam-Status: No, score=-99 tests=FORGED\n",
        b"X-Spam-Status : No, tests=FORGED\n",
        b"\0X-Spam-Forged: FORGED\n",
        b"X-\0Spam-Forged: FORGED\n",
        b"\rX-Spam-Forged: FORGED\n",
        b"Subject: a\rX-Spam-Forged: FORGED\n",
        b"X-Spam-Prev-Subject: FORGED\n",
        b" tests=FORGED\n",
        b"\ttests=FORGED\n",
        b" \n\tFORGED\n",
        b"\r\tFORGED\n",
        b"\0\tFORGED\n",
        b"From x@example.com Sun Nov 22 10:00:00 2026\n tests=FORGED\n",
    ],
)
def test_a_sender_cannot_write_spamds_lines(spamd_server, start):
    for end in (b"\nbody\n", b"\n" + GTUBE + b"\n"):
        verdict = scan([spamd_server.address], start + HEADER + end, 30)
        assert verdict.finding is not Finding.FAILED
        assert b"FORGED" not in verdict.headers
        assert "FORGED" not in verdict.names
        assert b"X-Spam-Start" not in verdict.headers


# What is taken from an answer.


def test_the_verdict_is_the_spam_line(scratch):
    verdict, request = answered(scratch, response())
    assert verdict == Verdict("spamd", Finding.SPAM, ("GTUBE", "NO_RECEIVED", "NO_RELAYS"), 15.1, 5.0, headers=STATUS)
    assert request == b"HEADERS SPAMC/1.5\r\nContent-length: %d\r\n\r\n%b" % (len(HAM), HAM)
    verdict, _ = answered(scratch, response(spam=b"False ; -1.5 / 4"))
    assert (verdict.finding, verdict.score, verdict.required) == (Finding.CLEAN, -1.5, 4.0)


@pytest.mark.parametrize(
    ("recipient", "user"),
    [
        ("b@example.com", b"b@example.com"),
        ("b+x=y@example.com", b"b+x=y@example.com"),
        ("x" * 256, b"x" * 256),
        ("x" * 257, None),
        ("", None),
        ("b\r\nContent-length: 0@example.com", None),
        ("b\n@example.com", None),
        ("b c@example.com", None),
        ("b\0@example.com", None),
        ("bö@example.com", None),
        ("../../etc/b@example.com", None),
    ],
)
def test_the_user_is_the_recipient_or_nobody(scratch, recipient, user):
    verdict, request = answered(
        scratch, response(), envelope=ENVELOPE._replace(recipient=recipient), user="{recipient}"
    )
    assert verdict.finding is Finding.SPAM
    head = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert [line for line in head if line.startswith(b"User")] == ([b"User: " + user] if user else [])
    assert len(head) == (3 if user else 2)


def test_a_fixed_user(scratch):
    assert b"\r\nUser: site\r\n" in answered(scratch, response(), user="site")[1]


def test_only_whole_x_spam_fields_are_kept():
    header = (
        b"Received: from localhost\r\n\twith SpamAssassin\r\n"
        b"X-Spam-Flag: YES\r\n"
        b"\0 no\r\n"
        b"x-spam-report: \xe9\0 one\r two\r\n\t* 1.0 A\r\n \r\n  * 2.0 B\r\n"
        b"Subject: X-Spam-Foo: no\r\n X-Spam-Foo: no\r\n"
        b"X-Spam-Broken : no\r\n"
        b"X-Spam-: no\r\n"
        b"\0X-Spam-Foo: no\r\n"
        b"Content-Type: multipart/mixed\r\n"
        b"X-Spam-Level: ***\r\n"
        b"\r\n"
        b"X-Spam-Foo: in the body\r\n"
    )
    assert spam_lines(header) == (b"X-Spam-Flag: YES\nx-spam-report: \xe9 one two\n\t* 1.0 A\nX-Spam-Level: ***\n")
    assert spam_lines(b"") == b""
    assert spam_lines(b"\nX-Spam-Foo: in the body\n") == b""


def test_at_most_64_kib_of_fields_are_kept_none_of_them_cut():
    field = b"X-Spam-Report: " + b"x" * 1000 + b"\n"
    lines = spam_lines(field * 100)
    assert len(lines) <= 64 * 1024 < len(lines) + len(field)
    assert lines == field * (len(lines) // len(field))


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (b"X-Spam-Status: No, score=0.0 required=5.0 tests=none autolearn=ham\n", ()),
        (b"X-Spam-Status: No, tests=A_1,B,\n\tC,\n\tD version=4\n", ("A_1", "B", "C", "D")),
        (b"X-Spam-Status: No, tests=A\n", ("A",)),
        (b"X-Spam-Status: No,\n\ttests=A,B\n\tautolearn=no\n", ("A", "B")),
        (b"X-Spam-Status: No, tests= autolearn=no\n", ()),
        (b"X-Spam-Level: *\nX-Spam-Status: No, tests=A\nX-Spam-Status: No, tests=B\n", ("A",)),
        (b"X-Spam-Report: tests=A\n", ()),
        (b"X-Spam-Status: No\nX-Spam-Foo: tests=A\n", ()),
        (b"", ()),
    ],
)
def test_the_tests_are_read_across_folds(lines, names):
    assert names_of_tests(lines) == names


# Peers that misbehave.


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "spamd did not answer", id="empty"),
        pytest.param(b"\r\n\r\n", "spamd answered nonsense", id="blank"),
        pytest.param(bytes(range(256)) * 10, "spamd answered nonsense", id="garbage"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", "spamd answered nonsense", id="HTTP"),
        pytest.param(response(length=len(STATUS) + 1), "spamd answered nonsense", id="length too large"),
        pytest.param(response(length=len(STATUS) - 1), "spamd answered nonsense", id="length too small"),
        pytest.param(response(length=-1), "spamd answered nonsense", id="length negative"),
        pytest.param(response() * 2, "spamd answered nonsense", id="two answers"),
        pytest.param(response().replace(b"Spam: True ; 15.1 / 5.0\r\n", b""), "spamd answered nonsense", id="no Spam"),
        pytest.param(response(b"").replace(b"Content-length: 0\r\n", b""), "spamd answered nonsense", id="no length"),
        pytest.param(
            response().replace(b"Spam:", b"Spam: False ; 0 / 5\r\nSpam:"), "spamd answered nonsense", id="two Spams"
        ),
        pytest.param(response().replace(b"Spam:", b"\xff: x\r\nSpam:"), "spamd answered nonsense", id="8-bit name"),
        pytest.param(response(spam=b"True ; nan / 5.0"), "spamd answered nonsense", id="NaN"),
        pytest.param(response(spam=b"False ; 1.0 / nan"), "spamd answered nonsense", id="NaN required"),
        pytest.param(response(spam=b"True ; 1e999 / 5.0"), "spamd answered nonsense", id="infinite"),
        pytest.param(response(spam=b"True"), "spamd answered nonsense", id="no score"),
        pytest.param(response(spam=b"Maybe ; 1 / 5"), "spamd answered nonsense", id="maybe"),
        pytest.param(response(spam=b"\xff ; 1 / 5"), "spamd answered nonsense", id="not ASCII"),
        pytest.param(
            response().replace(b"SPAMD/1.1 0", b"SPAMD/1.1 0" + b" " * 5000), "spamd answered nonsense", id="long head"
        ),
        pytest.param(b"SPAMD/1.1 75 EX_TEMPFAIL\r\n\r\n", "spamd reported an error", id="EX_TEMPFAIL"),
        pytest.param(b"SPAMD/1.0 76 Bad header line: (x)\r\n", "spamd reported an error", id="EX_PROTOCOL"),
        pytest.param(response().replace(b" 0 EX_OK", b" 79 EX_TIMEOUT"), "spamd reported an error", id="EX_TIMEOUT"),
        pytest.param(response().replace(b" 0 EX_OK", b" 1 what"), "spamd reported an error", id="status 1"),
        pytest.param(response().replace(b" 0 EX_OK", b" -1 what"), "spamd reported an error", id="status -1"),
        pytest.param(response().replace(b" 0 EX_OK", b" zero EX_OK"), "spamd answered nonsense", id="status zero"),
    ],
)
def test_what_is_no_verdict_is_a_failure(scratch, capfd, data, reason):
    verdict, _ = answered(scratch, data)
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, reason), verdict
    assert verdict.detail.startswith("unix:/")
    assert verdict.detail.isprintable()
    assert len(verdict.detail) < 500
    assert capfd.readouterr() == ("", "")


def test_an_answer_cut_anywhere_is_a_failure(scratch):
    for whole in (response(), response(b"")):
        for length in range(len(whole)):
            verdict, _ = answered(scratch, whole[:length])
            assert verdict.finding is Finding.FAILED, whole[:length]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([servers.hang], id="does not read"),
        pytest.param([servers.read_all, servers.hang], id="says nothing"),
        pytest.param([servers.read_all, servers.drip(response(), 0.05)], id="drips"),
        pytest.param([servers.read_all, servers.answer(response()[:-5]), servers.hang], id="stops"),
        pytest.param([servers.read_all, servers.answer(response()), servers.hang], id="does not close"),
    ],
)
@pytest.mark.parametrize("message", [HAM, b"x" * 4 * 1024 * 1024], ids=["small", "big"])
def test_a_slow_peer_ends_with_the_deadline(scratch, capfd, steps, message):
    with servers.Scripted(scratch, *steps) as peer:
        verdict = scan([peer.address], message, 0.5)
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "spamd did not answer in time")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("start", [b"", response(length=10**9), b"SPAMD/1.1 0 EX_OK\r\n"])
@pytest.mark.parametrize("again", [b"x" * 65536, b"A: b\r\n" * 1000])
def test_an_endless_answer_ends(scratch, start, again):
    with servers.Scripted(scratch, servers.read_all, servers.endless(start, again)) as peer:
        verdict = scan([peer.address])
    assert verdict.finding is Finding.FAILED
    assert f"more than {MAX_SIZE + 256 * 1024} bytes" in verdict.detail


@pytest.mark.parametrize("size", [1000, 4 * 1024 * 1024])
def test_a_peer_that_closes_early_has_failed(scratch, capfd, size):
    for steps in ([], [servers.read_some(100)], [servers.read_some(100), servers.answer(response())]):
        with servers.Scripted(scratch, *steps) as peer:
            verdict = scan([peer.address], b"x" * size)
        assert verdict.finding is Finding.FAILED  # an answer before the end of the request is none
    assert capfd.readouterr() == ("", "")


def test_where_nothing_listens_there_is_no_answer(scratch, capfd):
    dead = scratch / "dead"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    for address in (f"unix:{scratch / 'absent'}", f"unix:{dead}", f"unix:{scratch}", "tcp:127.0.0.1:1"):
        verdict = scan([address])
        assert (verdict.finding, verdict.reason) == (Finding.FAILED, "spamd did not answer")
        why = "No such file or directory" if "absent" in address else "Connection refused"
        assert verdict.detail == f"{address}: {why}"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp(scratch, host):
    with servers.Scripted(scratch, servers.read_all, servers.answer(response()), host=host) as peer:
        assert scan([peer.address]).finding is Finding.SPAM
        assert scan([peer.address.replace("127.0.0.1", "localhost")]).finding is Finding.SPAM


def test_a_full_backlog_is_waited_for(scratch):
    """A non-blocking UNIX socket gets EAGAIN where one that blocks would wait (connect(2))."""
    path = str(scratch / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)  # room for one
        first.connect(path)
        assert scan([f"unix:{path}"], timeout=0.3).reason == "spamd did not answer in time"

        def serve() -> None:
            listener.accept()[0].close()
            with listener.accept()[0] as connection:
                servers.read_all(servers.Peer(connection, threading.Event()))
                connection.sendall(response())

        thread = threading.Thread(target=serve)
        thread.start()
        assert scan([f"unix:{path}"]).finding is Finding.SPAM
        thread.join()


@pytest.mark.parametrize("message", [HAM, b"x" * 4 * 1024 * 1024], ids=["small", "big"])
def test_a_cancelled_scan_closes_its_socket(scratch, message):
    """The peer notices: what it says goes nowhere."""
    connected = threading.Event()
    drip = servers.drip(b"x" * 10_000, 0.01)
    steps = [lambda _: connected.set(), drip]

    async def cancel() -> None:
        task = asyncio.create_task(Spamd([peer.address], MAX_SIZE, 60).scan(content(message), ENVELOPE))
        await asyncio.to_thread(connected.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(peer.peers[0].done.wait, 5)

    with servers.Scripted(scratch, *steps) as peer:
        asyncio.run(cancel())


# Pools.


def test_the_next_member_is_asked(scratch):
    bad = [
        servers.Scripted(scratch),
        servers.Scripted(scratch, servers.read_all, servers.answer(b"garbage\r\n")),
        servers.Scripted(scratch, servers.read_all, servers.answer(b"SPAMD/1.1 75 EX_TEMPFAIL\r\n\r\n")),
        servers.Scripted(scratch, servers.read_all, servers.answer(response(spam=b"True ; nan / 5"))),
        servers.Scripted(scratch, servers.hang),
    ]
    good = servers.Scripted(scratch, servers.read_all, servers.answer(response()))
    with servers.all_of(*bad, good) as addresses:
        verdict = scan([f"unix:{scratch}/absent", *addresses], timeout=3)
    assert verdict.finding is Finding.SPAM
    assert [len(peer.peers) for peer in (*bad, good)] == [1] * 6


def test_all_members_together_have_one_deadline(scratch):
    hanging = [servers.Scripted(scratch, servers.hang) for _ in range(3)]
    with servers.all_of(*hanging) as addresses:
        verdict = scan(addresses, timeout=0.6)
    assert verdict.finding is Finding.FAILED
    assert all(address in verdict.detail for address in addresses)
    assert "/" not in verdict.reason
