"""[attachments]: what is objected to, what is done then, and what the message, the log and the owner are told."""

import asyncio
import base64
import email
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scanned import HEADER, content, with_attachment, zipped

from deliver import config, header_lines, layers, pipeline, scan, wiring
from deliver.content import attachments
from deliver.message import Message, Source, read_framing
from deliver.metrics import Metrics
from deliver.policy import Case, decide
from deliver.replay import Family, Replayer, Result, Settings
from deliver.scanners.attachments import MOST, Attached
from deliver.settings import Attachments, Config
from deliver.values import Answer, Envelope, Finding, Objection, Outcome, Plan, Step, Verb, Verdict, unheard

PROGRAM = b"MZ\x90\x00" + b"\x00" * 56 + b"\x80\x00\x00\x00" + b"\x00" * 64 + b"PE\x00\x00L\x01" + b"\x00" * 200
TRICKS = ("double-extension", "clsid", "too-long", "disguised")


def look(raw: bytes, forbidden: tuple[str, ...] = (), tricks: tuple[str, ...] = (), types: tuple[str, ...] = ()) -> Any:
    """What the scanner objects to, as pairs."""
    verdict = asyncio.run(Attached(forbidden, tricks, types).scan(content(raw), Envelope("", "", "")))
    assert verdict.finding is (Finding.POLICY if verdict.objections else Finding.CLEAN)
    return [tuple(one) for one in verdict.objections]


def named(name: str, data: bytes = b"hello\n", kind: str = "application/octet-stream") -> bytes:
    """A message with one file of that name, in RFC 2231's form."""
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    header = f"Content-Type: {kind}\nContent-Disposition: attachment; filename*=utf-8''{encoded}\n".encode()
    return (
        HEADER
        + b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nhello\n--b\n"
        + header
        + b"Content-Transfer-Encoding: base64\n\n"
        + base64.encodebytes(data)
        + b"--b--\n"
    )


def archive(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name in names:
            file.writestr(name, b"hello\n")
    return packed.getvalue()


def encrypted(packed: bytes) -> bytes:
    """APPNOTE.TXT section 4.4.4: bit 0 of the flags, in the local and in the central header."""
    raw = bytearray(packed)
    raw[raw.index(b"PK\x03\x04") + 6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    return bytes(raw)


# What is objected to.


@pytest.mark.parametrize(
    ("glob", "raw", "text"),
    [
        ("*.exe", named("setup.exe"), "setup.exe"),
        ("*.exe", named("SETUP.EXE"), "SETUP.EXE"),
        ("*.EXE", named("setup.exe"), "setup.exe"),
        ("setup.*", named("setup.exe"), "setup.exe"),
        ("setup.???", named("setup.exe"), "setup.exe"),
        ("*.exe", named("setup.exe. . "), "setup.exe"),  # Windows leaves these out
        ("*.exe", named("C:\\temp\\setup.exe"), "setup.exe"),
        ("*.exe", named("a.zip", archive("docs/setup.exe")), "setup.exe"),
        ("*.exe", named("a.zip", archive("x.txt", "b/setup.exe")), "setup.exe"),
        ("*/secret/*", named("a.zip", archive("a/secret/x.txt")), "x.txt"),
        ("secret/*", named("a.zip", archive("secret/x.txt")), "x.txt"),
        ("*.exe", named("a.zip", zipped("b.zip", archive("setup.exe"))), "setup.exe"),
        ("*.[e]xe", named("setup.[e]xe"), "setup.[e]xe"),
    ],
)
def test_forbidden_names_are_found(glob: str, raw: bytes, text: str) -> None:
    assert look(raw, (glob,)) == [("forbidden", text)]


@pytest.mark.parametrize(
    ("glob", "raw"),
    [
        ("*.exe", named("setup.exe.txt")),
        ("*.exe", named("exe")),
        ("*.[e]xe", named("setup.exe")),
        ("setup", named("setup.exe")),
        ("*.exe", with_attachment(b"see setup.exe\n", "a.txt")),
    ],
)
def test_other_names_are_not(glob: str, raw: bytes) -> None:
    assert look(raw, (glob,)) == []


@pytest.mark.parametrize(
    ("trick", "name", "text"),
    [
        ("double-extension", "invoice.pdf.exe", "invoice.pdf.exe: double extension"),
        ("double-extension", "Invoice.DOC.JS", "Invoice.DOC.JS: double extension"),
        ("double-extension", "invoice.pdf                .scr", "invoice.pdf                .scr: double extension"),
        ("double-extension", "invoice          .scr", "invoice          .scr: double extension"),
        ("double-extension", "annex\u202efdp.exe", "annex?fdp.exe: double extension"),
        (
            "clsid",
            "a.txt.{3050F4D8-98B5-11CF-BB82-00AA00BDCE0B}",
            "a.txt.{3050F4D8-98B5-11CF-BB82-00AA00BDCE0B}: CLSID",
        ),
    ],
)
def test_tricks_with_names(trick: str, name: str, text: str) -> None:
    assert look(named(name), tricks=(trick,)) == [("forbidden", text)]
    others = tuple(one for one in TRICKS if one != trick)
    assert look(named(name), tricks=others) == []
    assert look(named("a.zip", archive(name)), tricks=(trick,))[0][0] == "forbidden"


def test_a_name_that_is_too_long() -> None:
    """qmail-scanner's limit is 256 characters."""
    assert look(named("a" * 252 + ".txt"), tricks=TRICKS) == []
    found = look(named("a" * 253 + ".txt"), tricks=("too-long",))
    assert [kind for kind, _ in found] == ["forbidden"]
    assert found[0][1].endswith("aaa.txt")
    assert len(found[0][1]) <= 150


@pytest.mark.parametrize(
    "name",
    [
        "report.2026.pdf",
        "archive.tar.gz",
        "v1.2.exe",
        "a.b.c.docx",
        "jquery.min.js",
        "{x}.txt",
        "x.pdf.pdf",
        "a  b.exe",
    ],
)
def test_ordinary_names_are_no_trick(name: str) -> None:
    assert look(named(name), tricks=TRICKS) == []


def test_what_something_is_against_what_it_says() -> None:
    disguised = ("disguised",)
    assert look(named("photo.jpg", PROGRAM, "image/jpeg"), tricks=disguised) == [
        ("forbidden", "photo.jpg: a program in disguise")
    ]
    assert look(named("photo", PROGRAM, "image/jpeg"), tricks=disguised) != []
    assert look(named("invoice.pdf", PROGRAM), tricks=disguised) != []
    assert look(named("a.zip", zipped("photo.jpg", PROGRAM)), tricks=disguised) != []
    # It says what it is, or nothing.
    assert look(named("setup.exe", PROGRAM, "image/jpeg"), tricks=disguised) == []
    assert look(named("setup", PROGRAM), tricks=disguised) == []
    assert look(named("photo.jpg", b"\xff\xd8\xff\xe0JFIF", "image/jpeg"), tricks=disguised) == []
    pe = "application/vnd.microsoft.portable-executable"
    assert look(named("setup", PROGRAM), types=(pe,)) == [("forbidden", f"setup: {pe}")]
    assert look(named("setup", PROGRAM), types=("application/*",)) != []
    assert look(named("setup", PROGRAM), types=("image/*",)) == []


def test_encrypted_archives_and_not_the_mail_that_people_encrypt() -> None:
    assert look(named("a.zip", encrypted(archive("x.txt")))) == [("encrypted", "a.zip")]
    assert look(named("a.zip", archive("x.txt"))) == []
    pgp = b"-----BEGIN PGP MESSAGE-----\n\nhQEMA\n-----END PGP MESSAGE-----\n"
    assert attachments.read([HEADER + b"\n" + pgp]).encrypted == {"pgp"}
    assert look(HEADER + b"\n" + pgp) == []


def test_macros_and_documents_that_may_have_some() -> None:
    docm = io.BytesIO()
    with zipfile.ZipFile(docm, "w") as file:
        file.writestr("[Content_Types].xml", b"<Types/>")
        file.writestr("word/vbaProject.bin", b"x")
    assert look(named("a.docx", docm.getvalue())) == [("macro", "a.docx")]
    pytest.importorskip("oletools")
    broken = named("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 and nothing that is a document")
    [(kind, text)] = look(broken)
    assert (kind, text) == ("macro", attachments.read([broken]).untold)


def test_a_message_that_can_be_read_in_two_ways() -> None:
    raw = HEADER + b"Content-Type: multipart/mixed; boundary=a; boundary=b\n\n--a\n\nx\n--a--\n"
    assert look(raw) == [("ambiguous", "more than one boundary")]


def test_what_is_beyond_the_limits_of_unpacking() -> None:
    nested = archive("x.txt")
    for _ in range(8):
        nested = zipped("a.zip", nested)
    found = look(named("a.zip", nested))
    assert [kind for kind, _ in found] == ["too-big"]
    assert found[0][1] == attachments.read([named("a.zip", nested)]).unread


def test_only_so_much_is_told() -> None:
    names = [f"{number}.exe" for number in range(100)]
    assert look(named("a.zip", archive(*names)), ("*.exe",)) == [("forbidden", name) for name in names[:MOST]]


def test_a_glob_takes_no_time() -> None:
    raw = named("a" * 20_000)
    begun = time.process_time()
    assert look(raw, ("*a*a*a*a*a*a*a*a*a*b",)) == []
    assert time.process_time() - begun < 2


# What is done.


def site(table: str, more: str = "") -> Config:
    settings, problems = config.parse(f"{more}\n[attachments]\n{table}\n".encode(), "site.toml")
    assert settings is not None
    assert [problem.text for problem in problems] == []
    return settings


def judged(table: str, raw: bytes, more: str = "", user: str = "") -> Result:
    """What would happen to a message."""
    settings = Settings(site(table, more), user_file=user, scan=False)
    return asyncio.run(Replayer(settings).judge("x", Source.of(raw), Family({}, {})))


EXE = named("setup.exe")


@pytest.mark.parametrize(
    ("measure", "verb", "code"),
    [
        ("quarantine", Verb.QUARANTINE, 0),
        ("bounce", Verb.BOUNCE, 100),
        ("discard", Verb.DISCARD, 0),
        ("mark", Verb.FILE, 0),
        ("ignore", Verb.FILE, 0),
    ],
)
def test_each_measure(measure: str, verb: Verb, code: int) -> None:
    result = judged(f'on-forbidden = "{measure}"', EXE)
    assert (result.action.verb, result.reply.code) == (verb, code)
    marks = {"ignore": b"", "mark": b"X-Attachment-Status: Forbidden (setup.exe)\n"}
    if measure in marks:
        assert result.plan.headers == marks[measure]
    else:
        assert result.plan.reason == "attachments: Forbidden (setup.exe)"


def test_a_bounce_tells_strangers_no_detail() -> None:
    assert judged('on-forbidden = "bounce"', EXE).reply.line == (
        "5.7.1 Message has an attachment that is not accepted (#5.7.1)"
    )


KINDS = ("forbidden", "encrypted", "macro", "ambiguous", "too-big")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_own_setting(kind: str) -> None:
    others = "".join(f'on-{one} = "ignore"\n' for one in KINDS if one != kind)
    verdict = Verdict("attachments", Finding.POLICY, objections=tuple(Objection(one, f"<{one}>") for one in KINDS))
    plan = planned(site(f'{others}on-{kind} = "quarantine"'), verdict)
    assert plan.actions[0].verb is Verb.QUARANTINE
    assert plan.reason == f"attachments: {kind.capitalize().replace('-', ' ')} (<{kind}>)"


def planned(settings: Config, *verdicts: Verdict) -> Plan:
    message = Message(Source.of(HEADER + b"\nx\n"), read_framing(HEADER), b"")
    return decide(
        Case(
            message,
            Envelope("a@x", "b@y", "/nowhere"),
            verdicts,
            settings,
            settings.spam,
            (),
            "",
            NoMailbox(),
            0.0,
            attachments=settings.attachments,
        ),
        unheard,
    )


class NoMailbox:
    """One without folders and quota."""

    def has_folder(self, _name: str) -> bool:
        return False

    def over_quota(self, _sizes: list[tuple[str, int]]) -> str:
        return ""

    def may_grow(self) -> bool:
        return True

    def keywords(self, _folder: str) -> dict[str, str]:
        return {}

    def answered(self, _answer: Answer, _now: float) -> str:
        return ""


@pytest.mark.parametrize(
    ("measures", "verb"),
    [
        (("mark", "quarantine"), Verb.QUARANTINE),
        (("quarantine", "bounce"), Verb.BOUNCE),
        (("bounce", "discard"), Verb.DISCARD),
        (("mark", "ignore"), Verb.FILE),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_strictest_wins_and_all_are_named(measures: tuple[str, str], verb: Verb, turned: bool) -> None:
    first, second = reversed(measures) if turned else measures
    raw = named("a.zip", encrypted(archive("setup.exe")))
    result = judged(f'on-forbidden = "{first}"\non-encrypted = "{second}"', raw)
    assert result.action.verb is verb
    said = [
        text
        for text, measure in (("Forbidden (setup.exe)", first), ("Encrypted (a.zip)", second))
        if measure != "ignore"
    ]
    told = result.plan.headers.decode() if verb is Verb.FILE else result.plan.reason
    assert ", ".join(said) in told


def test_a_virus_comes_first() -> None:
    settings = site('on-forbidden = "discard"', "[clamd]\n")
    virus = Verdict("clamd", Finding.VIRUS, names=("Eicar",))
    policy = Verdict("attachments", Finding.POLICY, objections=(Objection("forbidden", "a.exe"),))
    for verdicts in ((virus, policy), (policy, virus)):
        assert planned(settings, *verdicts).reason == "clamd found the virus Eicar"
    failed = Verdict("clamd", Finding.FAILED, reason="clamd did not answer")
    assert planned(settings, failed, policy).actions[0].verb is Verb.DISCARD
    marked = site('on-forbidden = "mark"', "[clamd]\n")
    assert planned(marked, failed, policy).actions[0].verb is Verb.DEFER


def test_what_nobody_looked_at_is_not_called_clean() -> None:
    clean = Verdict("clamd", Finding.CLEAN)
    assert planned(site("", "[clamd]\n"), clean).headers == b"X-Virus-Status: Clean\n"
    looked = planned(site("", "[clamd]\n"), clean, Verdict("attachments", Finding.CLEAN))
    assert looked.headers == b"X-Virus-Status: Clean\nX-Attachment-Status: Clean\n"


def test_what_could_not_be_read_is_not_clean() -> None:
    """A walk that fails is as one that ends at its limits."""
    failed = Verdict("attachments", Finding.FAILED, reason="attachments failed", detail="OSError: x")
    plan = planned(site('on-too-big = "quarantine"'), failed)
    assert plan.actions[0].verb is Verb.QUARANTINE
    assert plan.headers == b"X-Attachment-Status: Too big (not read: attachments failed)\n"
    plan = planned(site(""), failed)
    assert plan.actions[0].verb is Verb.FILE
    assert b"X-Attachment-Status: Too big (" in plan.headers


def test_a_scanner_that_raises_is_such_a_walk() -> None:
    class Unreadable(type(content(b""))):  # type: ignore[misc]
        def chunks(self) -> Iterator[bytes]:
            raise OSError("gone")

    scanner = Attached((), (), ())
    verdict = asyncio.run(scan.scan_all([scanner], Unreadable((b"x",)), Envelope("", "", ""), unheard))[0]
    assert (verdict.scanner, verdict.finding) == ("attachments", Finding.FAILED)


def test_defaults_are_the_contracts() -> None:
    table = Attachments()
    assert table.forbidden == ("*.exe", "*.scr", "*.pif")
    assert [table.measure(kind) for kind in KINDS] == ["quarantine", "mark", "mark", "quarantine", "mark"]


def test_no_table_no_function() -> None:
    settings, _ = config.parse(b"[spam]\n", "site.toml")
    assert settings is not None
    assert wiring.scanners(settings) == ()
    result = asyncio.run(Replayer(Settings(settings)).judge("x", Source.of(EXE), Family({}, {})))
    assert (result.action.verb, result.verdicts, result.plan.headers) == (Verb.FILE, (), b"")


# The header line.


def status(*found: tuple[str, str]) -> str:
    line = header_lines.attachment_status([Objection(*one) for one in found])
    parsed = email.message_from_bytes(line + b"\nbody\n")
    assert parsed.keys() == ["X-Attachment-Status"]
    assert parsed.get_payload() == "body\n"
    assert len(line) < 998  # RFC 5322 section 2.1.1
    return str(parsed["X-Attachment-Status"])


def test_the_header_line() -> None:
    assert status() == "Clean"
    assert status(("forbidden", "invoice.exe"), ("encrypted", "a.zip")) == "Forbidden (invoice.exe), Encrypted (a.zip)"
    assert status(("forbidden", "a.exe"), ("macro", "a.doc"), ("forbidden", "b.exe")) == (
        "Forbidden (a.exe, b.exe), Macro (a.doc)"
    )
    assert status(("too-big", "archives hold too much")) == "Too big (archives hold too much)"


def test_names_cannot_write_header_lines() -> None:
    assert status(("forbidden", "x\r\nX-Spam-Flag: NO\r\n\r\nbody")) == "Forbidden (x?X-Spam-Flag: NO?body)"
    assert status(("forbidden", "x), Clean (y")) == "Forbidden (x], Clean [y)"
    assert status(("forbidden", "\u00e4\u202e\0.exe")) == "Forbidden (?.exe)"
    status(*[("forbidden", "a" * 150)] * 10, *[("macro", "\u00e4b" * 70)] * 10)


def test_names_from_a_message_cannot_either() -> None:
    result = judged('on-forbidden = "mark"', named("x\r\nX-Evil: yes\r\n.exe"))
    lines = email.message_from_bytes(result.plan.headers + b"\n")
    assert lines.keys() == ["X-Attachment-Status"]


@pytest.mark.parametrize(("table", "kept"), [("[attachments]", False), ("[spam]", True)])
def test_lines_that_arrive_are_removed(table: str, kept: bool) -> None:
    settings = config.parse(table.encode(), "")[0]
    assert settings is not None
    raw = b"X-Attachment-Status: Clean\nSubject: x\nX-ATTACHMENT-STATUS:\n Clean\n\nX-Attachment-Status: Clean\n"
    message = Message(Source.of(raw), read_framing(raw), b"", wiring.forgeries(settings))
    stored = b"".join(message.stored(b"", b""))
    assert stored == (raw if kept else b"Subject: x\n\nX-Attachment-Status: Clean\n")


def test_a_rule_may_not_write_it() -> None:
    problems = config.parse(b'[[rule]]\nadd-header = { "X-Attachment-Status" = "Clean" }\n', "")[1]
    assert len(problems) == 1


# The configuration.


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('on-forbiden = "mark"', '[attachments] has no key of this name; did you mean "on-forbidden"?'),
        ('on-macro = "delete"', "expected one of quarantine, bounce, discard, mark, ignore"),
        ('tricks = ["class"]', 'expected some of double-extension, clsid, too-long, disguised, not "class"; did you mean "clsid"?'),
        ('types = ["exe"]', 'expected media types such as "application/java-archive" or "video/*", not "exe"'),
        ('forbidden = [""]', 'expected patterns of file names such as "*.exe", not ""'),
        ('forbidden = [".exe"]', '".exe" is a file of just this name; did you mean "*.exe"?'),
        ('forbidden = "*.exe"', "expected an array in [], got text in quotes"),
    ],
)
def test_slips(tmp_path: Path, table: str, words: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(f"[spam]\n[attachments]\n{table}\n")
    done = subprocess.run(
        [sys.executable, "-m", "deliver", "check", "--config", str(path)], capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if line.startswith(f"{path}:3: ") and words in line], lines


def test_an_owner_may_set_what_the_site_allows(tmp_path: Path) -> None:
    mine = tmp_path / "mailfilter.toml"
    mine.write_text('[attachments]\non-forbidden = "mark"\n')
    allowed = '[user]\nmay-set = ["attachments.on-forbidden"]\n'
    assert judged("", EXE, allowed, str(mine)).action.verb is Verb.FILE
    refused = judged("", EXE, "", str(mine))
    assert refused.action.verb is Verb.QUARANTINE
    assert b"X-Filter-Error: " in refused.plan.headers
    # What is looked for is the site's to say, whatever it allows.
    mine.write_text("[attachments]\nforbidden = []\n")
    refused = judged("", EXE, allowed, str(mine))
    assert refused.action.verb is Verb.QUARANTINE


def test_an_owner_has_own_names_in_rules(tmp_path: Path) -> None:
    mine = tmp_path / "mailfilter.toml"
    rule = '[[rule]]\nname = "mine"\nsees = "all"\ndiscard = true\n[rule.when]\nattachment = "*.doc"\n'
    mine.write_text('[attachments]\non-forbidden = "ignore"\n' + rule)
    allowed = '[user]\nmay-set = ["attachments.on-forbidden"]\n'
    assert judged("", EXE, allowed, str(mine)).action.verb is Verb.FILE
    assert judged("", named("a.doc"), allowed, str(mine)).action.verb is Verb.DISCARD


def test_where_the_site_has_no_such_table_an_owners_does_nothing() -> None:
    own, problems = config.parse_personal(b'[attachments]\non-macro = "mark"\n', "x", Config())
    assert own.attachments is None
    assert [problem.warning for problem in problems] == [True]


def test_the_last_word_is_the_owners_behind_the_domains(tmp_path: Path) -> None:
    allowed = 'domain-rules = "/none/{domain}.toml"\n[user]\nmay-set = ["attachments.on-macro"]\n'
    settings = site("", allowed)
    (tmp_path / "domain").write_text('[attachments]\non-forbidden = "mark"\non-macro = "bounce"\n')
    (tmp_path / "owner").write_text('[attachments]\non-macro = "ignore"\n')
    files = [("domain", str(tmp_path / "domain")), ("owner", str(tmp_path / "owner"))]
    found = layers.stacked(settings, files, config.personal, os.geteuid())
    own = layers.together(settings, found)
    assert own.error == ""
    assert own.attachments is not None
    assert (own.attachments.on_forbidden, own.attachments.on_macro) == ("mark", "ignore")


def test_a_domain_may_set_all_measures() -> None:
    settings = site("")
    own, problems = config.parse_personal(b'[attachments]\non-forbidden = "mark"\n', "x", settings, domain=True)
    assert problems == []
    assert own.attachments is not None
    assert (own.attachments.on_forbidden, own.attachments.forbidden) == ("mark", ("*.exe", "*.scr", "*.pif"))


# A delivery, and what shows it.


def test_a_delivery_says_what_it_found(tmp_path: Path) -> None:
    maildir = tmp_path / "Maildir"
    for part in ("cur", "new", "tmp"):
        (maildir / part).mkdir(parents=True)
    written: list[dict[str, Any]] = []

    async def blocking(work: Any, *arguments: Any) -> Any:
        return work(*arguments)

    one = wiring.site(site('on-forbidden = "mark"'), blocking=blocking)._replace(
        log=lambda **said: written.append(said)
    )
    steps: list[Step] = []
    raw = b"X-Attachment-Status: Clean\n" + EXE
    message = Message(Source.of(raw), read_framing(raw), b"", wiring.forgeries(one.config))
    envelope = Envelope("a@example.com", "b@example.com", str(maildir))
    outcome: Outcome = asyncio.run(pipeline.deliver(one, message, envelope, [].append, steps.append))
    assert outcome.reply.code == 0
    stored = [path.read_bytes() for path in (maildir / "new").iterdir()]
    assert [one.count(b"X-Attachment-Status:") for one in stored] == [1]
    assert b"X-Attachment-Status: Forbidden (setup.exe)\n" in stored[0]
    [line] = [said for said in written if "verdicts" in said]
    [verdict] = json.loads(json.dumps(line["verdicts"]))
    assert (verdict["scanner"], verdict["finding"]) == ("attachments", "policy")
    assert verdict["objections"] == [{"kind": "forbidden", "text": "setup.exe"}]
    assert [step.text for step in steps if step.text.startswith("attachments: policy, Forbidden (setup.exe)")]
    assert [step.text for step in steps if step.text.endswith("the setting says mark")]


def test_a_service_looks_once_for_all_recipients() -> None:
    async def twice() -> tuple[list[Verdict], str]:
        async def blocking(work: Any, *arguments: Any) -> Any:
            return work(*arguments)

        metrics = Metrics()
        one, _ = wiring.resident(site(""), blocking, metrics)
        [scanner] = one.scanners
        envelopes = (Envelope("", "a@x", ""), Envelope("", "b@x", ""))
        return [await scanner.scan(content(EXE), envelope) for envelope in envelopes], metrics.text(one.scanners)

    verdicts, text = asyncio.run(twice())
    assert [verdict.finding for verdict in verdicts] == [Finding.POLICY] * 2
    assert 'deliver_scans_total{scanner="attachments",finding="policy"} 1\n' in text


def test_replay_looks_at_attachments_whatever_scanners_are_said_to_say(tmp_path: Path) -> None:
    """It needs no server, and so also with --no-scan and where a file says what clamd says."""
    (tmp_path / "site.toml").write_text("[clamd]\n[attachments]\n")
    (tmp_path / "m.eml").write_bytes(EXE)
    (tmp_path / "m.scan.toml").write_text('[clamd]\nfinding = "clean"\n')
    command = [sys.executable, "-m", "deliver", "replay", "--json", "--config", str(tmp_path / "site.toml")]
    done = subprocess.run([*command, str(tmp_path / "m.eml")], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["action"] == "quarantine"
    assert [one["scanner"] for one in said["verdicts"]] == ["clamd", "attachments"]


def test_what_is_held_says_why(tmp_path: Path) -> None:
    maildir = tmp_path / "Maildir"
    for part in ("cur", "new", "tmp"):
        (maildir / part).mkdir(parents=True)
    path = tmp_path / "site.toml"
    path.write_text('[attachments]\n[log]\nto = "stderr"\n')
    path.chmod(0o644)
    command = [sys.executable, "-m", "deliver", "--config", str(path), "--maildir", str(maildir), "--sender", "a@x"]
    done = subprocess.run(
        [*command, "--recipient", "b@y"], input=EXE, capture_output=True, check=False, env={**os.environ, "HOME": "/"}
    )
    assert done.returncode == 0, done
    [held] = (maildir / "deliver" / "quarantine" / "held").iterdir()
    envelope = json.loads(held.read_text())
    assert envelope["reason"] == "attachments: Forbidden (setup.exe)"
    assert envelope["verdicts"][0]["objections"] == [{"kind": "forbidden", "text": "setup.exe"}]
