"""How long the quarantine's commands take with many messages held: `python bench/held.py [MESSAGES [DIRECTORY]]`."""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import spread

from quarantine.store import Held

ROUNDS = 5


def hold(root: Path, maildir: Path, number: int) -> str:
    """Put a message where a delivery would, without its syncs; the envelope's id."""
    body = f"From: s{number}@example.net\nSubject: invoice {number}\n\nhello {number}\n".encode()
    digest = hashlib.sha256(body).hexdigest()
    (root / "messages" / digest).write_bytes(body)
    id_ = f"{1_700_000_000 + number}.1.{number:012x}"
    held = Held(
        recipient=f"u{number % 1000}@example.org",
        sender=f"s{number}@example.net",
        subject=f"invoice {number}",
        reason="clamd found the virus X",
        time=time.time() - number,
        maildir=str(maildir),
        folder="INBOX",
        top=f"Return-Path: <s{number}@example.net>\n",
        verdicts=({"scanner": "clamd", "finding": "virus"},),
        id=id_,
        size=len(body),
        digest=digest,
        body=f"messages/{digest}",
    )
    (root / "held" / f"{id_}.json").write_text(json.dumps(held._asdict(), indent=1))
    return id_


def main() -> None:
    """Fill a quarantine, and time each command some times."""
    messages = int(sys.argv[1]) if sys.argv[1:] else 100_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if sys.argv[2:] else None) as directory:
        root, maildir = Path(directory, "quarantine"), Path(directory, "Maildir")
        for one in ("messages", "held", "tmp"):
            (root / one).mkdir(parents=True)
        for one in ("tmp", "new", "cur"):
            (maildir / one).mkdir(parents=True)
        ids = [hold(root, maildir, number) for number in range(messages)]
        command = [sys.executable, "-I", "-m", "quarantine", "--directory", str(root)]

        def seconds(*words: str) -> float:
            begun = time.monotonic()
            subprocess.run([*command, *words], stdout=subprocess.DEVNULL, check=True)
            return time.monotonic() - begun

        print(f"{messages} messages, first list, which makes the index: {seconds('list'):.1f} s")
        for words in (["list"], ["list", "--json"], ["list", "--subject", "*e 4711*"], ["list", "--older", "1 d"]):
            print(f"{messages} messages, {' '.join(words)}: {spread(seconds(*words) for _ in range(ROUNDS))} s")
        print(f"{messages} messages, release: {spread(seconds('release', id_) for id_ in ids[:ROUNDS])} s")


if __name__ == "__main__":
    main()
