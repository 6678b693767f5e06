"""Delivery failures: the addresses that flufl.bounce's own samples have, and no surprise on anything else."""

import time
from collections import defaultdict

import corpora
import pytest

from deliver.content.bounces import Bounce, read


def expected() -> dict[str, Bounce]:
    """What the samples' own table says: the addresses of all its rows for one file."""
    found: dict[str, dict[bool, set[str]]] = defaultdict(lambda: {True: set(), False: set()})
    for line in (corpora.needs("bounce-flufl") / "_expected.tsv").read_text().splitlines():
        name, _, addresses, temporary = line.split("\t")
        found[name][temporary == "temporary=True"] |= set(addresses.split())
    return {name: Bounce(frozenset(one[False]), frozenset(one[True])) for name, one in found.items()}


def test_the_addresses_that_the_samples_have() -> None:
    folder = corpora.needs("bounce-flufl")
    wanted = expected()
    assert len(wanted) > 100
    wrong = {}
    for name, bounce in wanted.items():
        # Rows without an address say that one detector has none; for the whole they say nothing.
        if any(bounce) and (said := read([(folder / name).read_bytes()])) != bounce:
            wrong[name] = (said, bounce)
    assert not wrong


def test_ordinary_mail_is_no_bounce() -> None:
    folder = corpora.needs("sa-public") / "ham"
    recognised = [path.name for path in folder.iterdir() if any(read([path.read_bytes()]))]
    assert len(recognised) <= 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 1000,
        b"Content-Type: multipart/report; boundary=b\n\n" + b"--b\nContent-Type: message/delivery-status\n\n" * 5000,
        b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(5000)),
        b"Subject: x\n\n" + b"This message was created automatically by mail delivery software\n" * 5000,
        b"Subject: x\n\n" + b"<" * 500_000,
        b"Subject: x\n\n" + b" " * 1_000_000,
        b"Subject: x\n\nThe following addresses had\n" + b" (expanded from: " * 50_000,
        b"Subject: x\n\n" + b"\n" * 300_000,
    ],
    ids=range(9),
)
def test_hostile_mail_is_looked_at_for_a_short_time(raw: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.process_time()
    read([raw[at : at + 65536] for at in range(0, len(raw), 65536)])
    assert time.process_time() - start < 3
    assert capfd.readouterr() == ("", "")
