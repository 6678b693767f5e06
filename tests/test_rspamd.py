"""The rspamd adapter against a real rspamd and against peers that misbehave."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
import scanner_servers
import servers
from scanned import ENVELOPE, HAM, SPAM, InMemory, content

from deliver.scanners.pool import BadAnswer
from deliver.scanners.rspamd import Rspamd, read_answer, read_verdict, request, spam_lines
from deliver.scanners.spamd import names_of_tests
from deliver.values import Finding, Verdict

SLACK = 1.0  # seconds that a busy machine may add to a deadline
BIG = 4 * 1024 * 1024  # bytes: more than any socket's buffers hold
SAID = {"is_skipped": False, "score": 7.04, "required_score": 15.0, "action": "add header", "symbols": {"A_1": {}}}


@pytest.fixture(scope="module")
def rspamd() -> Iterator[str]:
    """The address of an rspamd for all tests here."""
    with servers.scratch() as directory, scanner_servers.rspamd(directory) as server:
        yield server.address


def scan(addresses, message=HAM, timeout: float = 5, **settings) -> Verdict:
    """One scan, which must end within its timeout."""
    message = content(message) if isinstance(message, bytes) else message
    start = time.monotonic()
    verdict = asyncio.run(Rspamd("rspamd", addresses, 10**9, timeout, **settings).scan(message, ENVELOPE))
    assert time.monotonic() - start < timeout + SLACK
    return verdict


def http(said, status: bytes = b"200 OK") -> bytes:
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def read_request(peer: servers.Peer) -> None:
    """Read a whole request: the header, and as much as it says."""
    while b"\r\n\r\n" not in peer.received and peer.read(1):
        pass
    peer.read_exactly(int(bytes(peer.received).partition(b"Content-Length: ")[2].partition(b"\r\n")[0]))


# The real one.


def test_gtube_is_spam(rspamd):
    """rspamd rejects GTUBE as such, with the score that "reject" takes: 15 (its actions.conf)."""
    verdict = scan([rspamd], SPAM, 30)
    assert (verdict.finding, verdict.score, verdict.required) == (Finding.SPAM, 15.0, 15.0)
    assert verdict.names == ("GTUBE",)
    lines = verdict.headers.split(b"\n")
    assert lines[:2] == [b"X-Spam-Flag: YES", b"X-Spam-Status: Yes, score=15.0 required=15.0"]


def test_ham_is_clean(rspamd):
    verdict = scan([rspamd], HAM, 30)
    assert verdict.finding is Finding.CLEAN
    assert verdict.score is not None
    assert verdict.score < 6
    assert "TO_DN_ALL" in verdict.names  # a symbol of its own for To: Bob <b@...>
    assert verdict.headers.startswith(b"X-Spam-Status: No, score=")
    assert names_of_tests(verdict.headers) == verdict.names


def test_a_large_message_in_pieces(rspamd):
    message = InMemory((HAM, *[(b"x" * 70 + b"\n") * 1000] * 30))
    assert scan([rspamd], message, 30).finding is Finding.CLEAN


def test_sender_and_recipient_are_known(rspamd):
    """FROM_EQ_ENVFROM and RCPT symbols are what rspamd makes of the envelope."""
    assert "FROM_EQ_ENVFROM" in scan([rspamd], HAM, 30).names
    assert "TO_MATCH_ENVRCPT_ALL" not in scan([rspamd], HAM, 30).names
    assert "TO_MATCH_ENVRCPT_ALL" in scan([rspamd], HAM, 30, user="{recipient}").names


# The grammar.


@pytest.mark.parametrize(
    ("action", "finding"),
    [
        ("no action", Finding.CLEAN),
        ("greylist", Finding.CLEAN),
        ("add header", Finding.SPAM),
        ("rewrite subject", Finding.SPAM),
        ("reject", Finding.SPAM),
        ("discard", Finding.SPAM),
        ("quarantine", Finding.SPAM),
    ],
)
def test_actions(action, finding):
    verdict = read_verdict("rspamd", SAID | {"action": action}, "failed")
    assert (verdict.finding, verdict.score, verdict.names) == (finding, 7.04, ("A_1",))


def test_soft_reject_is_a_setting():
    said = SAID | {"action": "soft reject"}
    failed = read_verdict("rspamd", said, "failed")
    assert (failed.finding, failed.reason) == (Finding.FAILED, "rspamd wants the message to come later")
    assert read_verdict("rspamd", said, "clean").finding is Finding.CLEAN


def test_what_rspamd_did_not_check_is_skipped():
    """But its test messages have a verdict, and are said to be skipped all the same (rspamd 3.4)."""
    skipped = SAID | {"is_skipped": True, "score": 0.0}
    assert read_verdict("rspamd", skipped | {"action": "no action"}, "failed").finding is Finding.SKIPPED
    assert read_verdict("rspamd", skipped | {"action": "reject"}, "failed").finding is Finding.SPAM


def test_the_threshold_is_that_of_spam():
    """``required_score`` is that of "reject": where another action says spam, it is not the threshold."""
    assert read_verdict("rspamd", SAID, "failed").required is None
    assert b"required=none" in read_verdict("rspamd", SAID, "failed").headers
    thresholds = {"reject": 15.0, "add header": 6.0, "rewrite subject": None, "greylist": 4.0}
    assert read_verdict("rspamd", SAID | {"thresholds": thresholds}, "failed").required == 6.0
    assert read_verdict("rspamd", SAID | {"action": "no action"}, "failed").required == 15.0


def test_lines_are_those_of_spamassassin():
    """Mail::SpamAssassin::Conf: flag only for spam, one asterisk a point, the tests folded."""
    names = tuple(f"SYMBOL_OF_SOME_LENGTH_{number}" for number in range(20))
    lines = spam_lines(True, 7.06, 6.0, names)
    assert lines.startswith(b"X-Spam-Flag: YES\nX-Spam-Status: Yes, score=7.1 required=6.0\n\ttests=SYMBOL_OF")
    assert lines.endswith(b"\nX-Spam-Level: *******\n")
    assert max(map(len, lines.split(b"\n"))) <= 78
    assert names_of_tests(lines) == names
    assert spam_lines(False, -1.0, None, ()) == (
        b"X-Spam-Status: No, score=-1.0 required=none\n\ttests=none\nX-Spam-Level: \n"
    )
    assert spam_lines(True, 1e6, 6.0, ()).count(b"*") == 50


def test_strange_symbols_are_left_out():
    said = SAID | {"symbols": {"A b": {}, "X\nSubject: y": {}, "é": {}, "GOOD": {}}}
    verdict = read_verdict("rspamd", said, "failed")
    assert verdict.names == ("GOOD",)
    assert b"Subject" not in verdict.headers


def test_nobody_writes_into_the_request():
    head = request(5, "a@example.com\r\nUser: root", "b c@example.com")
    assert head == b"POST /checkv2 HTTP/1.0\r\nContent-Length: 5\r\n\r\n"
    assert b"\r\nFrom: a@example.com\r\nRcpt: b@x\r\nDeliver-To: b@x\r\n\r\n" in request(5, "a@example.com", "b@x")


@pytest.mark.parametrize(
    "change",
    [
        {"action": "custom"},
        {"action": None},
        {"action": ["reject"]},
        {"score": None},
        {"score": "7"},
        {"score": True},
        {"score": float("nan")},
        {"score": float("inf")},
    ],
)
def test_what_is_no_verdict(change):
    with pytest.raises(BadAnswer):
        read_verdict("rspamd", SAID | change, "failed")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage",
        http(SAID)[:-1],
        http(SAID) + b"x",
        http(b"[]"),
        http(b"{"),
        http(b"[" * 100_000),
        http(b"\xff"),
        http({"error": "no\nsense"}),
        http(SAID, b"500 Oops"),
        http(SAID, b"204 No Content"),
        http(SAID).replace(b"Content-Length", b"X"),
        http(SAID).replace(b"Content-Length", b"Content-Length: 5\r\nContent-Length"),
        http(SAID).replace(b"HTTP/1.1", b"HTTP/3"),
    ],
)
def test_what_is_no_answer(answer):
    with pytest.raises(BadAnswer):
        read_answer(answer)


# Peers that misbehave.


@pytest.mark.parametrize("message", [HAM, b"x" * BIG], ids=["small", "big"])
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([servers.hang], id="reads and says nothing"),
        pytest.param([read_request, servers.drip(http(SAID), 0.1)], id="drips"),
        pytest.param([read_request, servers.answer(http(SAID)), servers.hang], id="does not close"),
    ],
)
def test_a_slow_peer_ends_with_the_deadline(scratch, steps, message):
    with servers.Scripted(scratch, *steps) as peer:
        verdict = scan([peer.address], message, 0.5)
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "rspamd did not answer in time")


def test_an_endless_answer_ends(scratch):
    with servers.Scripted(scratch, servers.read_some(10), servers.endless(http(SAID), b"x" * 10_000)) as peer:
        verdict = scan([peer.address])
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "rspamd answered nonsense")


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_no_message_is_judged_that_was_not_read(scratch, host):
    clean = http(SAID | {"action": "no action"})
    with servers.Scripted(scratch, servers.read_some(100), servers.answer(clean), host=host) as peer:
        assert scan([peer.address], b"x" * BIG).finding is Finding.FAILED


def test_the_next_member_is_asked_and_the_dead_one_passed_over(scratch):
    """In a process that stays, what has failed is not asked again at once."""
    bad = servers.Scripted(scratch, read_request, servers.answer(http(SAID, b"500 Oops")))
    good = servers.Scripted(scratch, read_request, servers.answer(http(SAID)))

    async def three(scanner: Rspamd) -> list[Verdict]:
        return [await scanner.scan(content(HAM), ENVELOPE) for _ in range(3)]

    with servers.all_of(bad, good) as addresses:
        verdicts = asyncio.run(three(Rspamd("rspamd", addresses, 10**9, 5)))
    assert [verdict.finding for verdict in verdicts] == [Finding.SPAM] * 3
    assert (len(bad.peers), len(good.peers)) == (1, 3)
