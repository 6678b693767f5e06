"""What every kind of quarantine's store must do; a second backend joins by a line in BACKENDS."""

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from test_quarantine import BODY, DAY, held, put

from quarantine.files import Files
from quarantine.release import NotReleased, delete, release, repair, unsound
from quarantine.sqlite import STATES, Index
from quarantine.store import Archive, Held


class Memory:
    """A store that forgets everything, to see that nobody counts on files; ``path`` is for the index."""

    def __init__(self, base: str, relative: str) -> None:
        self.path = str(Path(base, relative))
        Path(self.path).mkdir()
        self.log: list[dict[str, object]] = []
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._envelopes: dict[str, dict[str, tuple[Held, float]]] = {state: {} for state in STATES}
        self._bodies: dict[str, tuple[bytes, float]] = {}

    def prepare(self, one: Held, chunks: Iterable[bytes]) -> "Memory.Pending":
        data = b"".join(chunks)
        digest = hashlib.sha256(data).hexdigest()
        return Memory.Pending(
            self, one._replace(id=f"{next(self._numbers)}.a", size=len(data), digest=digest, body=digest), data
        )

    class Pending:
        def __init__(self, store: "Memory", one: Held, data: bytes) -> None:
            self._store, self._one, self._data = store, one, data

        def commit(self) -> Held:
            with self._store._lock:
                self._store._bodies[self._one.body] = (self._data, time.time())
                self._store._envelopes["held"][self._one.id] = (self._one, time.time())
            return self._one

        def abort(self) -> None:
            pass

    def ids(self, state: str = "held") -> list[str]:
        return list(self._envelopes[state])

    def read(self, id_: str, state: str = "held") -> Held:
        return self._envelopes[state][id_][0]

    def chunks(self, one: Held) -> Iterator[bytes]:
        yield self._bodies[one.body][0]

    def move(self, id_: str, before: str, after: str) -> None:
        with self._lock:
            one, _ = self._envelopes[before].pop(id_)
            self._envelopes[after][id_] = (one, time.time())

    def moved(self, id_: str, state: str) -> float:
        return self._envelopes[state][id_][1]

    def forget(self, id_: str, state: str) -> None:
        del self._envelopes[state][id_]

    def bodies(self) -> dict[str, float]:
        return {name: when for name, (_, when) in self._bodies.items()}

    def collect(self, referenced: Callable[[], set[str]], older_than: float = 0.0, *, remove: bool = True) -> list[str]:
        with self._lock:
            named, now = referenced(), time.time()
            gone = [name for name, when in self.bodies().items() if name not in named and now - when >= older_than]
            for name in gone if remove else ():
                del self._bodies[name]
        return gone

    def sweep(self, _older_than: float) -> list[str]:
        return []

    def note(self, **record: object) -> None:
        self.log.append(record)


BACKENDS: dict[str, Callable[[str, str], Archive]] = {"files": Files, "memory": Memory}


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    return BACKENDS[request.param](str(tmp_path), "quarantine")


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    for part in ("tmp", "new", "cur"):
        (tmp_path / "Maildir" / part).mkdir(parents=True)
    return tmp_path / "Maildir"


def test_what_was_put_is_there(store: Archive, maildir: Path) -> None:
    """Byte for byte, with its envelope."""
    one = put(store, held(maildir))
    assert store.ids() == [one.id]
    assert store.read(one.id) == one
    assert b"".join(store.chunks(one)) == BODY
    assert (one.size, one.digest) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert list(store.bodies()) == [one.body]
    assert unsound(store, one.id) == ""


def test_what_was_aborted_is_not(store: Archive, maildir: Path) -> None:
    """Nor is anything left of it."""
    store.prepare(held(maildir), [BODY]).abort()
    assert store.ids() == []
    assert store.bodies() == {}
    assert store.sweep(0) == []


def test_what_is_not_there(store: Archive, maildir: Path) -> None:
    one = put(store, held(maildir))
    for ask in (
        lambda: store.read("1.2"),
        lambda: store.read(one.id, "released"),
        lambda: store.move("1.2", "held", "releasing"),
        lambda: store.moved("1.2", "held"),
        lambda: store.forget("1.2", "held"),
        lambda: list(store.chunks(one._replace(body="messages/none"))),
    ):
        with pytest.raises(KeyError):
            ask()


def test_the_states(store: Archive, maildir: Path) -> None:
    """An envelope is in one of them, and its store knows since when."""
    one = put(store, held(maildir))
    for before, after in itertools.pairwise(STATES):
        begun = time.time() - 1  # file systems' clocks tick in ms
        store.move(one.id, before, after)
        assert [store.ids(state) for state in STATES] == [[one.id] if state == after else [] for state in STATES]
        assert store.read(one.id, after) == one
        assert begun <= store.moved(one.id, after) <= time.time() + 1
    store.forget(one.id, "released")
    assert store.ids("released") == []


def test_a_body_goes_with_its_last_envelope(store: Archive, maildir: Path) -> None:
    """Two recipients, one message."""
    one, two = put(store, held(maildir)), put(store, held(maildir, recipient="else@example.org"))
    assert len(store.bodies()) == 1
    index = Index(store)
    delete(store, one.id, "me")
    assert store.collect(index.needed) == []
    assert b"".join(store.chunks(store.read(two.id))) == BODY
    delete(store, two.id, "me")
    assert store.collect(index.needed, 60.0) == []
    assert store.collect(index.needed, remove=False) == [two.body]
    assert store.collect(index.needed) == [two.body]
    assert store.bodies() == {}
    index.close()


def test_no_body_goes_while_an_envelope_is_added(store: Archive, maildir: Path) -> None:
    """Deliveries and the removal of bodies in turn, many times: no envelope ever loses its message."""
    done = threading.Event()

    def collect() -> None:
        index = Index(store)
        while not done.is_set():
            store.collect(index.needed)
        index.close()

    put(store, held(maildir))
    collector = threading.Thread(target=collect)
    collector.start()
    for _ in range(60):
        one = put(store, held(maildir))
        assert b"".join(store.chunks(one)) == BODY
        delete(store, one.id, "me")
    done.set()
    collector.join()


def test_two_who_release_at_once_deliver_once(store: Archive, maildir: Path) -> None:
    """Whoever moves the envelope first."""
    one = put(store, held(maildir))
    outcomes: list[str] = []

    def try_it() -> None:
        try:
            release(store, one.id, "me")
            outcomes.append("released")
        except NotReleased:
            outcomes.append("not")

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["not"] * 7 + ["released"]
    assert len(list((maildir / "new").iterdir())) == 1
    assert store.ids("released") == [one.id]


def test_a_release_that_fails_leaves_it_held(store: Archive, tmp_path: Path) -> None:
    """The mailbox is gone."""
    one = put(store, held(tmp_path / "nowhere"))
    with pytest.raises(NotReleased, match="still held"):
        release(store, one.id, "me")
    assert store.ids() == [one.id]


def test_an_interrupted_release_is_taken_back(store: Archive, maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the claim and the delivery; a release in work is left alone."""
    one = put(store, held(maildir, time=time.time() - DAY))
    store.move(one.id, "held", "releasing")
    index = Index(store)
    assert list(repair(store, index.needed, DAY)) == []
    monkeypatch.setattr("quarantine.release.INTERRUPTED", 0.0)
    (said,) = repair(store, index.needed, DAY)
    assert "interrupted" in said
    assert store.ids() == [one.id]
    index.close()
