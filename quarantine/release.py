"""Letting a held message go where it was going: once, and without filtering it again."""

import contextlib
import errno
import hashlib
import re
import time
from collections.abc import Callable, Iterator

from deliver import wiring
from deliver.errors import DeliverError
from deliver.values import INBOX
from quarantine.store import Archive, Held

INTERRUPTED = 600.0
"""Seconds after which nobody is still at work on a release: `verify` takes the message back."""


_ABOUT = ("recipient", "sender", "subject", "reason")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DELIVERY_LINES = re.compile(rb"(?mi)^(?:return-path|delivered-to|x-original-to|envelope-to|delivery-date):.*\n")


class NotReleased(Exception):
    """Why, in words for the administrator."""


class NotHeld(NotReleased):
    """The message is not held here, or no longer."""


def release(archive: Archive, id_: str, who: str, to: str = "", maildir: str = "") -> Held:
    """Deliver a held message to where it was going, or to the address ``to``; its envelope.

    ``maildir`` is that address's own, where it is one of ours; else the message is given to the mail server. Of two who
    release the same message at once one succeeds: moving the envelope is the claim. Raises NotReleased; the message is
    then held as before, unless the words say otherwise.
    """
    try:
        archive.move(id_, "held", "releasing")
    except KeyError:
        raise NotHeld(_why_not(archive, id_)) from None
    try:
        held = archive.read(id_, "releasing")
        if maildir:
            wiring.store(maildir, INBOX, lambda: whole(held, archive))
        elif to:
            wiring.send(held.sender, to, _anew(held, archive))
        else:
            wiring.store(held.maildir, held.folder, lambda: whole(held, archive))
    except BaseException as error:
        archive.move(id_, "releasing", "held")
        if isinstance(error, DeliverError | OSError | KeyError | ValueError):
            raise NotReleased(f"{id_}: {_words(error)}; it is still held") from error
        raise
    archive.move(id_, "releasing", "released")
    try:
        archive.note(**_record(who, "release", id_, held), to=to or held.folder)
    except OSError as error:
        raise NotReleased(f"{id_}: was released, but that could not be recorded: {error.strerror}") from error
    return held


def delete(archive: Archive, id_: str, who: str, did: str = "delete", state: str = "held") -> None:
    """Forget an envelope; its message goes when nobody else's envelope names it. Raises NotReleased."""
    place = "releasing" if state == "held" else state  # what is being deleted must not be released
    try:
        if place != state:
            archive.move(id_, state, place)
        try:
            held = archive.read(id_, place)
        except (ValueError, OSError):  # damaged, and to be got rid of all the same
            held = None
        record = _record(who, did, id_, held)
        try:
            archive.note(**record)
        except OSError as error:
            if error.errno not in _FULL:
                if place != state:
                    archive.move(id_, place, state)
                raise NotReleased(f"{id_}: could not be recorded, so it is still held: {error.strerror}") from error
            # What makes room must not need any.
            archive.forget(id_, place)
            try:
                archive.note(**record)
            except OSError:
                raise NotReleased(f"{id_}: is gone, but that could not be recorded: {error.strerror}") from error
        else:
            archive.forget(id_, place)
    except KeyError:
        raise NotHeld(_why_not(archive, id_)) from None


def _record(who: str, did: str, id_: str, held: Held | None) -> dict[str, object]:
    """A line of the audit log: once the envelope is gone nothing else says what it was."""
    about = {} if held is None else {name: getattr(held, name) for name in _ABOUT}
    return {"time": time.time(), "who": who, "did": did, "id": id_, **about}


def _words(error: BaseException) -> str:
    if isinstance(error, DeliverError):
        return error.detail or error.line
    if isinstance(error, KeyError):
        return f"its message {error.args[0]} is gone"
    return f"{type(error).__name__}: {error}"


def whole(held: Held, archive: Archive) -> Iterator[bytes]:
    """The message as it would have been stored: our lines, then the message without the Return-Path they begin with."""
    top = held.top.encode("latin-1")
    first = top.partition(b"\n")[0] + b"\n"
    yield top
    skipped = False
    for chunk in archive.chunks(held):
        if not skipped and first.lower().startswith(b"return-path:") and chunk.startswith(first):
            chunk = chunk[len(first) :]  # noqa: PLW2901
        skipped = True
        yield chunk


def _anew(held: Held, archive: Archive) -> Iterator[bytes]:
    """The message for the mail server: as it would have been stored, without what says that it was delivered.

    Return-Path is the next delivery's to write, and our own Delivered-To would look like a loop to it.
    """
    chunks = whole(held, archive)
    yield _DELIVERY_LINES.sub(b"", next(chunks))
    yield from chunks


def repair(archive: Archive, needed: Callable[[], set[str]], lifetime: float) -> Iterator[str]:
    """Mend what crashes left, and say what: interrupted releases, half-written files, messages nobody's envelope names.

    A message without an envelope was never answered with 0, so the mail server has it still or holds it anew; it goes
    after ``lifetime`` seconds, longer than any queue keeps mail.
    """
    for id_ in interrupted(archive):
        with contextlib.suppress(KeyError):  # somebody has just finished
            archive.move(id_, "releasing", "held")
            yield f"{id_}: a release was interrupted; held again (it may have been delivered)"
    for name in archive.sweep(36 * 3600):
        yield f"tmp/{name}: left by a crash; removed"
    for name in archive.collect(needed, lifetime):
        yield f"{name}: nobody's envelope names it; removed"


def interrupted(archive: Archive) -> Iterator[str]:
    """The ids of what is neither held nor released, since a crash came between."""
    for id_ in archive.ids("releasing"):
        with contextlib.suppress(KeyError):
            if time.time() - archive.moved(id_, "releasing") >= INTERRUPTED:
                yield id_


def unsound(archive: Archive, id_: str) -> str:
    """What is wrong with a held message whose envelope can be read, in words; "" for nothing."""
    digest = hashlib.sha256()
    try:
        held = archive.read(id_)
    except (KeyError, ValueError, OSError):  # gone since, or the index has said it
        return ""
    try:
        for chunk in archive.chunks(held):
            digest.update(chunk)
    except (KeyError, OSError) as error:
        return f"{id_}: {_words(error)}"
    if digest.hexdigest() != held.digest:
        return f"{id_}: its message is not the one that was held (SHA-256 differs)"
    return ""


def _why_not(archive: Archive, id_: str) -> str:
    if id_ in archive.ids("released"):
        return f"{id_}: has been released already"
    if id_ in archive.ids("releasing"):
        return f"{id_}: somebody is releasing it now; if that was interrupted, `quarantine verify --repair` mends it"
    return f"{id_}: no such message is held here"
