"""Message-IDs that a mailbox remembers: the file's life, and the condition from message to message."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deliver import config, pipeline, wiring
from deliver.message import Message, Source, read_framing
from deliver.seen import FILE_CAP, KEEP, Seen
from deliver.values import Envelope, Outcome, unheard

NOW = 1_795_341_600.0


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    for name in ("tmp", "new", "cur"):
        (tmp_path / "Maildir" / name).mkdir(parents=True)
    return tmp_path / "Maildir"


def test_nothing_was_seen_in_a_new_mailbox(maildir: Path) -> None:
    assert Seen(str(maildir)).last("<1@example.org>") is None
    assert not (maildir / "deliver").exists()


def test_the_last_time_is_remembered(maildir: Path) -> None:
    memory = Seen(str(maildir))
    memory.remember("<1@example.org>", NOW)
    memory.remember("<2@example.org>", NOW + 5)
    memory.remember("<1@example.org>", NOW + 9.7)
    assert memory.last("<1@example.org>") == NOW + 9
    assert Seen(str(maildir)).last("<2@example.org>") == NOW + 5
    assert memory.last("<3@example.org>") is None
    assert (maildir / "deliver" / "seen").stat().st_mode & 0o777 == 0o600
    assert (maildir / "deliver").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["\n0000000000 x", "\0", "\udcff", "x" * 100_000, " " * 50])
def test_any_id_can_be_remembered(maildir: Path, name: str) -> None:
    memory = Seen(str(maildir))
    memory.remember(name, NOW)
    assert memory.last(name) == NOW
    assert (maildir / "deliver" / "seen").stat().st_size == 44


def test_a_line_that_was_cut_hides_no_other(maildir: Path) -> None:
    memory = Seen(str(maildir))
    memory.remember("<1>", NOW)
    path = maildir / "deliver" / "seen"
    path.write_bytes(path.read_bytes() + b"17953416")
    memory.remember("<2>", NOW)
    assert memory.last("<1>") == memory.last("<2>") == NOW


def test_a_long_file_loses_its_older_half(maildir: Path) -> None:
    memory = Seen(str(maildir))
    memory.remember("<old>", NOW - KEEP - 1)
    path = maildir / "deliver" / "seen"
    filler = b"".join(b"%010d %032x\n" % (NOW - 100, n) for n in range(FILE_CAP // 44 - 1))
    path.write_bytes(path.read_bytes() + filler)
    memory.remember("<new>", NOW)
    memory.remember("<newer>", NOW)
    assert path.stat().st_size < FILE_CAP * 0.6
    assert memory.last("<new>") == memory.last("<newer>") == NOW
    assert memory.last("<old>") is None
    assert os.listdir(maildir / "deliver") == ["seen"]


def test_what_is_too_old_goes_first(maildir: Path) -> None:
    path = maildir / "deliver" / "seen"
    path.parent.mkdir()
    path.write_bytes(b"".join(b"%010d %032x\n" % (NOW - KEEP - 5, n) for n in range(FILE_CAP // 44)))
    Seen(str(maildir)).remember("<1>", NOW)
    assert path.stat().st_size == 44


def test_no_link_is_followed(maildir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (maildir / "deliver").symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        Seen(str(maildir)).remember("<1>", NOW)
    assert Seen(str(maildir)).last("<1>") is None
    (maildir / "deliver").unlink()
    (maildir / "deliver").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (maildir / "deliver" / "seen").symlink_to(victim)
    with pytest.raises(OSError, match="Too many levels"):
        Seen(str(maildir)).remember("<1>", NOW)
    assert victim.read_text() == "mine"
    (maildir / "deliver" / "seen").unlink()
    os.mkfifo(maildir / "deliver" / "seen")
    assert Seen(str(maildir)).last("<1>") is None
    with pytest.raises(OSError, match=r".*"):
        Seen(str(maildir)).remember("<1>", NOW)


# --- from message to message -------------------------------------------------------------------------------------


async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class Mailbox:
    """A mailbox with rules, and deliveries into it as the command makes them."""

    def __init__(self, maildir: Path, rules: str) -> None:
        self.maildir = maildir
        configuration, problems = config.parse(f'[log]\nto = "{maildir.parent}/log"\n{rules}'.encode(), "f")
        assert configuration is not None, problems
        assert problems == []
        self.site = wiring.site(configuration, blocking=at_once)._replace(now=lambda: self.now)
        self.now = NOW

    def deliver(self, message_id: str = "<1@example.org>") -> Outcome:
        source = Source.of(f"Message-ID: {message_id}\nSubject: x\n\nbody\n".encode())
        envelope = Envelope("a@example.org", "you@example.org", str(self.maildir))
        return asyncio.run(pipeline.deliver(self.site, Message(source, read_framing(source.head)), envelope, [].append))

    def folder(self, message_id: str = "<1@example.org>") -> str:
        return self.deliver(message_id).plan.actions[-1].target


DUPLICATES = "[[rule]]\nfile = 'Duplicates'\nwhen = { duplicate = '1 h' }\n"


def test_the_second_copy_is_known(maildir: Path) -> None:
    mailbox = Mailbox(maildir, DUPLICATES)
    assert [mailbox.folder(), mailbox.folder(), mailbox.folder("<2@example.org>")] == ["INBOX", "Duplicates", "INBOX"]
    mailbox.now += 3599
    assert mailbox.folder() == "Duplicates"
    mailbox.now += 3601
    assert mailbox.folder() == "INBOX"


def test_a_message_that_another_rule_has_placed_is_known_as_well(maildir: Path) -> None:
    mailbox = Mailbox(
        maildir, "[[rule]]\nfile = 'X'\nwhen = { subject = '*x*', not = { duplicate = true } }\n" + DUPLICATES
    )
    assert [mailbox.folder(), mailbox.folder()] == ["X", "Duplicates"]


def test_nothing_is_remembered_where_no_rule_asks(maildir: Path) -> None:
    mailbox = Mailbox(maildir, "[[rule]]\nfile = 'X'\nwhen = { subject = '*y*' }\n")
    mailbox.deliver()
    assert not (maildir / "deliver").exists()


def test_deciding_remembers_nothing(maildir: Path) -> None:
    mailbox = Mailbox(maildir, DUPLICATES)
    source = Source.of(b"Message-ID: <1@example.org>\n\n")
    message = Message(source, read_framing(source.head))
    envelope = Envelope("a@example.org", "you@example.org", str(maildir))
    decision = pipeline.judge(mailbox.site, message, envelope, (), unheard)
    decision.mailbox.close()
    assert decision.plan.remember == "<1@example.org>"
    assert not (maildir / "deliver" / "seen").exists()


def test_a_message_that_goes_back_or_comes_again_is_not_remembered(maildir: Path) -> None:
    (maildir / "maildirsize").write_text("10S\n")
    assert Mailbox(maildir, DUPLICATES).deliver().reply.code == 100
    assert Mailbox(maildir, "[quota]\nover = 'defer'\n" + DUPLICATES).deliver().reply.code == 75
    assert not (maildir / "deliver" / "seen").exists()


def test_a_memory_that_cannot_be_written_changes_no_answer(maildir: Path) -> None:
    (maildir / "deliver").mkdir()
    (maildir / "deliver" / "seen").mkdir()
    mailbox = Mailbox(maildir, DUPLICATES)
    assert mailbox.deliver().reply.code == 0
    assert len(list((maildir / "new").iterdir())) == 1
    assert "after delivery" in (maildir.parent / "log").read_text()
