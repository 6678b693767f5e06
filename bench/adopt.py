"""How long `deliver adopt` takes for many mailboxes: `python bench/adopt.py [MAILBOXES [DIRECTORY]]`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LINES = [
    "| /usr/local/bin/maildrop /usr/local/etc/mail/mailfilter \n",
    "|preline /usr/local/bin/maildrop /etc/mailfilter\n| /usr/bin/autorespond 86400 3 /x/message /x\n",
    "&friend@example.net\n|preline /usr/local/bin/maildrop /etc/mailfilter\n",
    "",
]
MAILBOXES_OF_A_DOMAIN = 100


def make(root: Path, mailboxes: int) -> int:
    """A vpopmail tree with five messages a mailbox; how many of them have a line to rewrite."""
    lines = 0
    for number in range(mailboxes):
        home = root / f"domain{number // MAILBOXES_OF_A_DOMAIN}.example" / f"user{number}"
        for part in ("new", "cur", "tmp"):
            (home / "Maildir" / part).mkdir(parents=True)
        for message in range(5):
            (home / "Maildir" / "cur" / f"{message}.P1.host,S=12:2,S").write_text("Subject: x\n\n")
        if text := LINES[number % len(LINES)]:
            (home / ".qmail").write_text(text)
            lines += 1
    return lines


def main() -> None:
    """Make the tree, adopt it, and go back."""
    mailboxes = int(sys.argv[1]) if sys.argv[1:] else 20_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if sys.argv[2:] else None) as directory:
        top = Path(directory)
        expected = make(top / "domains", mailboxes)
        (top / "site.toml").write_text('maildir = "Maildir"\n')
        os.sync()
        command = [sys.executable, "-m", "deliver", "adopt", "--json"]
        site = ["--config", str(top / "site.toml"), "--command", "/bin/true"]
        for words, what in (
            ([*site, "--dry-run", str(top / "domains")], "dry run"),
            ([*site, "--backup", str(top / "backup"), str(top / "domains")], "adopt"),
            ([*site, "--backup", str(top / "other"), str(top / "domains")], "adopt again"),
            (["--undo", str(top / "backup")], "undo"),
        ):
            begun = time.monotonic()
            done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
            took = time.monotonic() - begun
            last = json.loads(done.stdout.splitlines()[-1])
            number = last.get("rewritten", len(done.stdout.splitlines()))
            print(f"{mailboxes} mailboxes, {what}: {took:.1f} s, {number} of {expected} files")


if __name__ == "__main__":
    main()
