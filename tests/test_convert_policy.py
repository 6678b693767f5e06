"""qmail-scanner's quarantine-events.txt and simscan's simcontrol: what comes out does what they did."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from scanned import HEADER, with_attachment

from deliver import config
from deliver.convert import qmail_scanner, simcontrol, write
from deliver.convert.model import Conversion, Wrong
from deliver.message import Source
from deliver.replay import Family, Replayer, Result, Settings
from deliver.settings import Config
from deliver.values import Verb

# As in qmail-scanner's documentation and in the files of PLD Linux.
EVENTS = """\
# A comment for the next rule
You are 0wNed\tPolicy-Subject:\tThis is what a virus says
.pif\tSIZE=-1\tPIF files blocked by Policy
.VBS\tSIZE=-1\tVBS files not allowed per Company security policy
winmail.dat\tSIZE=-1\tRich Text Format Emails Not Allowed
EICAR.COM\tSIZE=69\tEICAR Test Virus
.*@evil\\.example\tVirus-MAILFROM:\tA known sender
staff@example\\.com\tPolicy-RCPTTO:\tNobody may write there

message/partial.*\tPolicy-Content-Type:\tMessage/partial blocked by policy
"""


def converted(conversion: Conversion) -> Config:
    """What comes of it as a configuration, which must be right."""
    settings, problems = config.parse(write.text(conversion, "x").encode(), "site.toml")
    assert settings is not None
    assert [problem.text for problem in problems] == []
    return settings


def judged(settings: Config, raw: bytes, sender: str = "a@example.com", recipient: str = "b@example.com") -> Result:
    said = {"envelope": {"sender": sender, "recipient": recipient}}
    if settings.spamd is not None:
        said["scan"] = {"spamd": {"finding": "clean", "score": 0.0}}
    return asyncio.run(Replayer(Settings(settings, scan=False)).judge("x", Source.of(raw), Family({}, said)))


def held(settings: Config, raw: bytes, sender: str = "a@example.com", recipient: str = "b@example.com") -> str:
    """Why it is held, "" if it is not."""
    result = judged(settings, raw, sender, recipient)
    return result.action.text if result.action.verb is Verb.QUARANTINE else ""


PLAIN = HEADER + b"\nx\n"


@pytest.mark.parametrize(
    ("raw", "sender", "recipient", "reason"),
    [
        (PLAIN, "a@example.com", "b@example.com", ""),
        (with_attachment(b"x", "a.pif"), "", "b@example.com", "attachments: Forbidden (a.pif)"),
        (with_attachment(b"x", "A.PIF"), "", "b@example.com", "attachments: Forbidden (A.PIF)"),
        (with_attachment(b"x", "a.vbs"), "", "b@example.com", "attachments: Forbidden (a.vbs)"),
        (with_attachment(b"x", "winmail.dat"), "", "b@example.com", "attachments: Forbidden (winmail.dat)"),
        (with_attachment(b"x", "notwinmail.dat"), "", "b@example.com", ""),
        (with_attachment(b"x", "pif"), "", "b@example.com", ""),
        (with_attachment(b"x", "a.exe"), "", "b@example.com", ""),  # our default, but not in the list
        (with_attachment(b"x", "EICAR.COM"), "", "b@example.com", ""),
        (PLAIN.replace(b"Minutes", b"You are 0wNed"), "", "b@example.com", "This is what a virus says"),
        (PLAIN, "x@evil.example", "b@example.com", "A known sender"),
        (PLAIN, "a@example.com", "staff@example.com", "Nobody may write there"),
        (
            HEADER + b"Content-Type: message/partial; id=a\n\nx\n",
            "",
            "b@example.com",
            "attachments: Ambiguous (a part of a message)",
        ),
    ],
)
def test_events_hold_what_they_held(raw: bytes, sender: str, recipient: str, reason: str) -> None:
    assert held(converted(qmail_scanner.convert(EVENTS)), raw, sender, recipient) == reason


def test_events_count_for_spam_as_well() -> None:
    settings = Settings(converted(qmail_scanner.convert(EVENTS)))
    said = {"envelope": {}, "scan": {"spamd": spam(7.0)}}
    raw = PLAIN.replace(b"Minutes", b"You are 0wNed")
    result = asyncio.run(Replayer(settings).judge("x", Source.of(raw), Family({}, said)))
    assert result.action.verb is Verb.QUARANTINE


def test_what_events_cannot_say_is_told_with_its_line() -> None:
    said = qmail_scanner.convert(EVENTS).reported
    assert [(one.line, one.text.partition("\t")[0], one.warning) for one in said] == [(6, "EICAR.COM", False)]
    text = write.text(qmail_scanner.convert(EVENTS), "quarantine-events.txt")
    assert "# line 6, not converted: no condition knows the size of one file" in text
    assert "PIF files blocked by Policy" in text
    assert "# A comment for the next rule\n[[rule]]" in text


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("yes\tPolicy-ZIPPASSWORDPROTECTED:\tno locked zips", "on_encrypted", "quarantine"),
        (".*\tVirus-FILELENGTHTOOLONG:\ttoo long", "tricks", ("too-long",)),
        (".*\tVirus-FILEDOUBLEBARRELED:\tdouble", "tricks", ("double-extension",)),
        (".*\tVirus-FILECLSID:\tclass", "tricks", ("clsid",)),
    ],
)
def test_what_qmail_scanner_finds_itself(line: str, key: str, value: object) -> None:
    settings = converted(qmail_scanner.convert(line))
    assert settings.attachments is not None
    assert getattr(settings.attachments, key) == value
    assert settings.attachments.forbidden == ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("192.0.2.1\tPolicy-REMOTEIPADDR:\tx", "a delivery is not told the client's address"),
        ("x\tPolicy-ISSENSITIVEANDNOCRYPTO:\tx", "how a message was encrypted on its way is not known here"),
        ("x\tPolicy-CRYPTODETAILS:\tx", "how a message was encrypted on its way is not known here"),
        ("(?!x)\tPolicy-Subject:\tx", "RE2"),
        (".pif   SIZE=-1   spaces for tabs", "with TABs between"),
        (".pif\tsize\tx", "with TABs between"),
        (".pif", "with TABs between"),
    ],
)
def test_a_line_that_cannot_be_said(line: str, words: str) -> None:
    said = qmail_scanner.convert(f".scr\tSIZE=-1\tx\n{line}\n").reported
    assert [(one.line, one.text) for one in said] == [(2, line)]
    assert words in said[0].reason


def test_address_fields_are_almost_the_same() -> None:
    said = qmail_scanner.convert("spammer@.*\tPolicy-From:\tx\n")
    assert [(one.line, one.warning) for one in said.reported] == [(1, True)]
    assert held(converted(said), PLAIN.replace(b"a@example.com", b"spammer@example.com")) == "x"


CONTROL = """\
# whom: what
postmaster@example.com:clam=yes,spam=no,attach=.txt:.com
example.com:clam=yes,spam=yes,spam_hits=9.8,attach=.mp3
example.net:clam=yes,spam=yes,spam_passthru=yes
:clam=yes,spam=yes,spam_hits=12.0,attach=.exe:.scr,size_limit=250000
"""


def spam(points: float) -> dict[str, object]:
    return {"finding": "spam" if points >= 5 else "clean", "score": points, "required": 5.0}


def outcome(recipient: str, raw: bytes = PLAIN, points: float = 0.0) -> str:
    settings = Settings(converted(simcontrol.convert(CONTROL)))
    said = {"envelope": {"recipient": recipient}, "scan": {"spamd": spam(points)}}
    result = asyncio.run(Replayer(settings).judge("x", Source.of(raw), Family({}, said)))
    return result.folder or result.action.verb.value


@pytest.mark.parametrize(
    ("recipient", "held_names", "kept_names"),
    [
        ("postmaster@example.com", ["a.txt", "a.COM"], ["a.mp3", "a.exe"]),
        ("postmaster-x@example.com", ["a.txt"], ["a.mp3"]),  # simscan tries the address without its extension
        ("bob@example.com", ["a.mp3"], ["a.txt", "a.exe"]),
        ("bob@example.net", [], ["a.txt", "a.exe", "a.mp3"]),
        ("bob@elsewhere.example", ["a.exe", "a.scr", "a.b.exe"], ["a.mp3", "a.txt", "exe.a"]),
    ],
)
def test_simscan_takes_the_most_specific_line(recipient: str, held_names: list[str], kept_names: list[str]) -> None:
    said = {name: outcome(recipient, with_attachment(b"x", name)) for name in (*held_names, *kept_names)}
    assert said == {**dict.fromkeys(held_names, "quarantine"), **dict.fromkeys(kept_names, "INBOX")}


@pytest.mark.parametrize(
    ("recipient", "points", "where"),
    [
        ("bob@example.com", 9.7, "Spam"),
        ("bob@example.com", 9.8, "quarantine"),
        ("bob@elsewhere.example", 11.9, "Spam"),
        ("bob@elsewhere.example", 12.0, "quarantine"),
        ("bob@example.net", 11.9, "Spam"),
        ("postmaster@example.com", 50.0, "INBOX"),
        ("bob@example.com", 0.0, "INBOX"),
    ],
)
def test_simscans_thresholds(recipient: str, points: float, where: str) -> None:
    assert outcome(recipient, PLAIN, points) == where


def test_any_spam_is_refused_without_a_threshold() -> None:
    settings = Settings(converted(simcontrol.convert(":spam=yes\n")))
    said = {"envelope": {}, "scan": {"spamd": spam(5.1)}}
    result = asyncio.run(Replayer(settings).judge("x", Source.of(PLAIN), Family({}, said)))
    assert result.action.verb is Verb.QUARANTINE


def test_nothing_but_letters_is_special_for_whom() -> None:
    """simscan looks whole addresses and domains up: "*" is nobody's, and takes nobody from the line for everybody."""
    settings = converted(simcontrol.convert("*:attach=.txt\n*@example.com:attach=.txt\n:attach=.exe\n"))
    assert held(settings, with_attachment(b"x", "a.exe")) == "forbidden by policy"
    assert held(settings, with_attachment(b"x", "a.txt")) == ""


def test_yes_in_capitals() -> None:
    """It can mean nothing else."""
    settings = converted(simcontrol.convert(":CLAM=YES,Spam=No\n"))
    assert (settings.clamd is not None, settings.spamd) == (True, None)


def test_settings_for_everybody() -> None:
    settings = converted(simcontrol.convert(CONTROL))
    assert settings.clamd is not None
    assert settings.spamd is not None
    assert settings.spamd.max_size == 250_000
    assert settings.clamd.on_virus == "quarantine"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("example.com:clam=no", "clam: viruses are looked for in all mail"),
        (":regex=a,b", "regex: no condition looks at raw lines"),
        (":trophie=yes", "trophie: "),
        (":qmailqueue=/var/qmail/bin/other", "qmailqueue: "),
        ("example.com:size_limit=100", "size_limit: one size holds for all"),
        ("a@example.com:spamuser=bob", "spamuser: one setting holds for all"),
        (":spam_hits=many", 'spam_hits: expected a number, not "many"'),
        (":attach=yes", "attach: the list is in control/ssattach"),
        (":clma=yes", 'simscan has no key "clma"'),
        ("no colon here", "expected WHOM:KEY=VALUE"),
        ("example.com:clam", "expected WHOM:KEY=VALUE"),
    ],
)
def test_what_simcontrol_says_and_we_cannot(line: str, words: str) -> None:
    said = simcontrol.convert(f":clam=yes\n{line}\n").reported
    assert [(one.line, one.text) for one in said] == [(2, line)]
    assert words in said[0].reason


@pytest.mark.parametrize("convert", [qmail_scanner.convert, simcontrol.convert])
def test_a_file_that_is_something_else(convert: object) -> None:
    with pytest.raises(Wrong) as caught:
        convert("# maildrop\n\nif (/^Subject: x/)\n{\n}\n")  # type: ignore[operator]
    assert caught.value.line == 3


@pytest.mark.parametrize(("kind", "text"), [("qmail-scanner", EVENTS), ("simcontrol", CONTROL)])
def test_the_command(tmp_path: Path, kind: str, text: str) -> None:
    path, out = tmp_path / "old", tmp_path / "new.toml"
    path.write_text(f"\ufeff{text}", encoding="utf-8")  # as editors under Windows begin a file
    command = [sys.executable, "-m", "deliver", "convert", kind, str(path), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert config.read(str(out))[1] == []
    assert len(done.stderr.splitlines()) == (1 if kind == "qmail-scanner" else 0)
