"""Letting a held message go where it was going: once, and without filtering it again."""

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator

from deliver import wiring
from deliver.errors import DeliverError
from deliver.values import INBOX
from quarantine.store import Archive, Held

INTERRUPTED = 600.0
"""Seconds after which nobody is still at work on a release: `verify` takes the message back."""


_FULL = (errno.ENOSPC, errno.EDQUOT)
_DELIVERY_LINES = re.compile(rb"(?mi)^(?:return-path|delivered-to|x-original-to|envelope-to|delivery-date):.*\n")


class NotReleased(Exception):
    """Why, in words for the administrator."""


def release(archive: Archive, id_: str, who: str, to: str = "", maildir: str = "") -> Held:
    """Deliver a held message to where it was going, or to the address ``to``; its envelope.

    ``maildir`` is that address's own, where it is one of ours; else the message is given to the mail server. Of two who
    release the same message at once one succeeds: moving the envelope is the claim. Raises NotReleased; the message is
    then held as before, unless the words say otherwise.
    """
    try:
        archive.move(id_, "held", "releasing")
    except KeyError:
        raise NotReleased(_why_not(archive, id_)) from None
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
            words = (
                (error.detail or error.line) if isinstance(error, DeliverError) else f"{type(error).__name__}: {error}"
            )
            raise NotReleased(f"{id_}: {words}; it is still held") from error
        raise
    archive.move(id_, "releasing", "released")
    try:
        archive.note(time=time.time(), who=who, did="release", id=id_, recipient=held.recipient, to=to or held.folder)
    except OSError as error:
        raise NotReleased(f"{id_}: was released, but that could not be recorded: {error.strerror}") from error
    return held


def delete(archive: Archive, id_: str, who: str, did: str = "delete") -> None:
    """Forget an envelope; its message goes when nobody else's envelope names it. Raises NotReleased."""
    try:
        archive.move(id_, "held", "releasing")
    except KeyError:
        raise NotReleased(_why_not(archive, id_)) from None
    record = {"time": time.time(), "who": who, "did": did, "id": id_}
    try:
        archive.note(**record)
    except OSError as error:
        if error.errno not in _FULL:
            archive.move(id_, "releasing", "held")
            raise NotReleased(f"{id_}: could not be recorded, so it is still held: {error.strerror}") from error
        # What makes room must not need any.
        archive.forget(id_, "releasing")
        try:
            archive.note(**record)
        except OSError:
            raise NotReleased(f"{id_}: is gone, but that could not be recorded: {error.strerror}") from error
    else:
        archive.forget(id_, "releasing")


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


def repair(archive: Archive, referenced: Callable[[], set[str]], lifetime: float) -> Iterator[str]:
    """Mend what crashes left, and say what: interrupted releases, half-written files, messages nobody's envelope names.

    A message without an envelope was never answered with 0, so the mail server has it still or holds it anew; it goes
    after ``lifetime`` seconds, longer than any queue keeps mail.
    """
    for id_ in archive.ids("releasing"):
        try:
            held = archive.read(id_, "releasing")
        except (KeyError, ValueError, TypeError):  # gone since, or what `verify` says of it
            continue
        if time.time() - max(held.time, _moved(archive, id_)) >= INTERRUPTED:
            archive.move(id_, "releasing", "held")
            yield f"{id_}: a release was interrupted; held again (it may have been delivered)"
    for name in archive.sweep(36 * 3600):
        yield f"tmp/{name}: left by a crash; removed"
    for name in archive.collect(referenced, lifetime):
        yield f"{name}: nobody's envelope names it; removed"


def unsound(archive: Archive) -> Iterator[str]:
    """What is wrong with held messages whose envelopes can be read, in words."""
    for id_ in archive.ids("held"):
        digest = hashlib.sha256()
        try:
            held = archive.read(id_)
            for chunk in archive.chunks(held):
                digest.update(chunk)
        except KeyError as error:
            yield f"{id_}: its message {error} is gone"
        except (ValueError, TypeError):  # the index has said it
            continue
        else:
            if digest.hexdigest() != held.digest:
                yield f"{id_}: its message is not the one that was held (SHA-256 differs)"


def _moved(archive: Archive, id_: str) -> float:
    try:
        return os.stat(os.path.join(archive.path, "releasing", f"{id_}.json"), follow_symlinks=False).st_ctime
    except OSError:
        return 0.0


def _why_not(archive: Archive, id_: str) -> str:
    if id_ in archive.ids("released"):
        return f"{id_}: has been released already"
    if id_ in archive.ids("releasing"):
        return f"{id_}: somebody is releasing it now; if that was interrupted, `quarantine verify --repair` mends it"
    return f"{id_}: no such message is held here"
