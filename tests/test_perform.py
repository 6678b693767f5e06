"""A plan is carried out whole or not at all, in the contract's order: prepared, sent on, committed."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from deliver.actions import Tools, perform, summary
from deliver.errors import Deferred
from deliver.maildir import FolderUnusable
from deliver.message import Framing, Message, Source
from deliver.values import Action, Answer, Envelope, Finding, Objection, Plan, Step, Verb, Verdict
from quarantine.store import Held

ENVELOPE = Envelope("a@x", "caf\udce9@y", "/home/you/Maildir", delivered_to=b"Delivered-To: b@y\n")
FILE, FORWARD, HOLD = Action(Verb.FILE, "Lists"), Action(Verb.FORWARD, "c@z"), Action(Verb.QUARANTINE, text="a virus")
PIPE = Action(Verb.PIPE, "crm")


class World:
    """All collaborators; what they did is in ``events``, and the one called ``broken`` fails."""

    def __init__(self, broken: str = "", code: int = 0) -> None:
        self.broken = broken
        self.code = code
        self.events: list[str] = []
        self.held: list[Held] = []
        self.tools = Tools(self, lambda: self, lambda: self, self.program, "the subject", 5.0)  # type: ignore[arg-type]

    def did(self, what: str) -> None:
        if what == self.broken:
            raise OSError(28, "No space left on device", "tmp/1")
        self.events.append(what)

    def prepare(self, what: Any, chunks: Iterable[bytes], flags: str = "") -> "Part":
        if what == "Unusable":
            raise FolderUnusable("a link")
        if isinstance(what, Held):
            self.held.append(what)
        name = "hold" if isinstance(what, Held) else " ".join(filter(None, (what, flags)))
        self.did(f"prepare {name}")
        assert b"".join(chunks).endswith(b"Subject: x\n\nx\n")
        return Part(self, name, what if isinstance(what, Held) else None)

    def send(self, sender: str, address: str, chunks: Iterable[bytes]) -> None:
        self.did(f"send {sender} {address}")
        assert b"".join(chunks) == b"Delivered-To: b@y\nX-A: b\nSubject: x\n\nx\n"

    def program(self, name: str, _envelope: Envelope, _content: Iterable[bytes]) -> int:
        self.did(f"program {name}")
        return self.code

    def answer(self, _answer: Answer, _now: float, _send: Callable[[], object]) -> str:
        raise AssertionError

    def perform(self, *actions: Action, note: Callable[[Step], object] = lambda _step: None) -> Plan:
        message = Message(Source.of(b"Subject: x\n\nx\n"), Framing())
        plan = Plan(actions, "a rule", "S", b"X-A: b\n", keywords=(("Lists", "b"), ("INBOX", "c")))
        return perform(plan, message, ENVELOPE, (), self.tools, note)


class Part:
    def __init__(self, world: World, name: str, held: Held | None) -> None:
        self.world = world
        self.name = name
        self.held = held

    def commit(self) -> Held | None:
        self.world.did(f"commit {self.name}")
        return self.held._replace(id="id1") if self.held else None

    def abort(self) -> None:
        self.world.did(f"abort {self.name}")


def test_everything_is_prepared_then_sent_on_then_committed() -> None:
    world = World()
    steps: list[Step] = []
    done = world.perform(FORWARD, FILE, PIPE, HOLD, note=steps.append)
    assert world.events == [
        "prepare Lists Sb", "prepare hold", "program crm", "send a@x c@z", "commit Lists Sb", "commit hold",
    ]  # fmt: skip
    assert done.actions == (FORWARD, FILE, PIPE, HOLD)
    assert [step.text for step in steps] == ["the program crm took it", "queued for c@z"]
    assert world.tools.held == ["id1"]
    (held,) = world.held
    assert held.recipient == "caf\ufffd@y"  # JSON takes no lone surrogate
    assert (held.sender, held.subject, held.reason, held.time) == ("a@x", "the subject", "a virus", 5.0)
    assert (held.maildir, held.folder) == ("/home/you/Maildir", "INBOX")


@pytest.mark.parametrize(
    ("broken", "events"),
    [
        ("prepare Lists Sb", []),
        ("prepare hold", ["prepare Lists Sb", "abort Lists Sb"]),
        ("send a@x c@z", ["prepare Lists Sb", "prepare hold", "abort Lists Sb", "abort hold"]),
        ("commit Lists Sb", ["prepare Lists Sb", "prepare hold", "send a@x c@z", "abort Lists Sb", "abort hold"]),
        # What is committed stays: a message twice is better than none.
        ("commit hold", ["prepare Lists Sb", "prepare hold", "send a@x c@z", "commit Lists Sb", "abort hold"]),
    ],
)
def test_what_fails_leaves_nothing_behind(broken: str, events: list[str]) -> None:
    world = World(broken)
    with pytest.raises(Deferred, match=r"No space left on device: tmp/1") as failure:
        world.perform(FILE, HOLD, FORWARD)
    assert failure.value.line == "4.3.0 Temporary failure"
    assert world.events == events
    assert world.tools.held == []


def test_a_plan_that_waits_does_nothing() -> None:
    world = World()
    wait = Action(Verb.DEFER, text="4.3.2 Content scanner is not available")
    assert world.perform(wait).actions == (wait,)
    assert world.events == []


def test_a_folder_that_cannot_be_used_becomes_the_inbox() -> None:
    world = World()
    steps: list[Step] = []
    done = world.perform(Action(Verb.FILE, "Unusable"), note=steps.append)
    assert done.actions == (Action(Verb.FILE, "INBOX"),)
    assert world.events == ["prepare INBOX Sc", "commit INBOX Sc"]
    assert [step.text for step in steps] == ["the folder Unusable cannot be used (a link); the inbox is"]


@pytest.mark.parametrize("code", [0, 99, 100, 111, 1])
def test_a_program_answers_as_qmail_command_8_says(code: int) -> None:
    world = World(code=code)
    if code in (0, 99):
        assert world.perform(FILE, PIPE).actions == (FILE, PIPE)
        assert world.events[-1] == "commit Lists Sb"
        return
    if code == 100:
        done = world.perform(FILE, PIPE)
        assert done.actions == (Action(Verb.BOUNCE, text="5.7.1 Message refused"),)
        assert done.reason == "a rule; the program crm gave it back"
    else:
        with pytest.raises(Deferred, match=f"the program crm ended with {code}"):
            world.perform(FILE, PIPE)
    assert world.events[-1] == "abort Lists Sb"


def test_a_verdict_for_the_log_says_what_is_known_and_no_more() -> None:
    assert summary(Verdict("clamd", Finding.CLEAN, seconds=0.00123)) == {"scanner": "clamd", "finding": "clean", "ms": 1.2}
    objection = Objection("forbidden", "a.exe")
    full = Verdict("s", Finding.SPAM, ("A",), 0.0, 5.0, "why", "more", b"X: y\n", 2.0, (objection,))
    assert json.loads(json.dumps(summary(full))) == {
        "scanner": "s", "finding": "spam", "score": 0.0, "required": 5.0, "names": ["A"], "reason": "why", "detail": "more",
        "objections": [{"kind": "forbidden", "text": "a.exe"}], "ms": 2000.0,
    }  # fmt: skip
