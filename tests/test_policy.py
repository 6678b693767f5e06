"""What each setting makes of what the scanners said, of a full mailbox and of an address with an extension."""

import pytest

from deliver import config
from deliver.message import Framing, Message, Source
from deliver.policy import Case, decide, words
from deliver.values import Action, Answer, Envelope, Finding, Plan, Step, Verb, Verdict

NOW = 1_795_341_600.0  # Sunday, 22 November 2026, 10:00 UTC
RECEIVED = b"Received: from a by b; %s +0000\n"
FRESH = RECEIVED % b"Sun, 22 Nov 2026 09:59:59"
JUST_UNDER = RECEIVED % b"Fri, 20 Nov 2026 10:00:01"
TWO_DAYS = RECEIVED % b"Fri, 20 Nov 2026 10:00:00"
CLEAN = Verdict("clamd", Finding.CLEAN)
VIRUS = Verdict("clamd", Finding.VIRUS, ("Eicar",))
FAILED = Verdict("clamd", Finding.FAILED, reason="down")
SKIPPED = Verdict("clamd", Finding.SKIPPED, reason="large")
SPAM_FAILED = Verdict("spamd", Finding.FAILED, reason="down")
FORWARD = '[[rule]]\nforward = "me@example.com"\n'


def ham(score: float) -> Verdict:
    return Verdict("spamd", Finding.CLEAN, score=score, required=5.0)


def spam(score: float) -> Verdict:
    return Verdict("spamd", Finding.SPAM, score=score, required=5.0)


class Mailbox:
    """Full, if the test says so; with the one folder Lists."""

    def __init__(self, full: str = "", answered: str = "") -> None:
        self.full = full
        self.why_not = answered

    def has_folder(self, name: str) -> bool:
        return name == "Lists"

    def over_quota(self, _sizes: list[tuple[str, int]]) -> str:
        return self.full

    def may_grow(self) -> bool:
        return True

    def keywords(self, _folder: str) -> dict[str, str]:
        return {}

    def answered(self, _answer: Answer, _now: float) -> str:
        return self.why_not


def plan(
    site: str,
    *verdicts: Verdict,
    header: bytes = FRESH,
    full: str = "",
    answered: str = "",
    extension: str = "",
    steps: list[Step] | None = None,
) -> Plan:
    settings, problems = config.parse(site.encode(), "site.toml")
    assert settings is not None
    assert not [problem for problem in problems if not problem.warning]
    message = Message(Source.of(header + b"Subject: x\n\nx\n"), Framing())
    envelope = Envelope("a@x", "b@x", "/nowhere/Maildir", extension)
    case = Case(message, envelope, verdicts, settings, settings.spam, settings.rules, "", Mailbox(full, answered), NOW)
    return decide(case, (steps if steps is not None else []).append)


def said(made: Plan) -> str:
    """Each action as "VERB WHERE", with the status code of what strangers read."""
    return ", ".join(
        " ".join(filter(None, (one.verb.value, one.target, one.text[:5] if one.verb.value in ("bounce", "defer") else "")))
        for one in made.actions
    )


@pytest.mark.parametrize(
    ("settings", "verdict", "header", "expected"),
    [
        ("", VIRUS, FRESH, "quarantine"),
        ('on-virus = "discard"', VIRUS, FRESH, "discard"),
        ('on-virus = "bounce"', VIRUS, FRESH, "bounce 5.7.1"),
        ('on-virus = "mark"', VIRUS, FRESH, "file INBOX"),
        ("", CLEAN, FRESH, "file INBOX"),
        ("", FAILED, FRESH, "defer 4.3.2"),
        ("", FAILED, b"", "defer 4.3.2"),  # nobody says since when it waits
        ("", FAILED, JUST_UNDER, "defer 4.3.2"),
        ("", FAILED, TWO_DAYS, "file INBOX"),  # defer-for is two days; then as on-skipped
        ("", FAILED, FRESH + TWO_DAYS, "defer 4.3.2"),  # the top one counts
        ('on-skipped = "bounce"', FAILED, TWO_DAYS, "bounce 5.3.4"),
        ('on-skipped = "quarantine"', FAILED, TWO_DAYS, "quarantine"),
        ('defer-for = "1 s"', FAILED, FRESH, "file INBOX"),
        ('on-failure = "quarantine"', FAILED, FRESH, "quarantine"),
        ('on-failure = "quarantine"\non-skipped = "bounce"', FAILED, TWO_DAYS, "quarantine"),
        ('on-failure = "deliver"\non-skipped = "bounce"', FAILED, TWO_DAYS, "file INBOX"),
        ("", SKIPPED, FRESH, "file INBOX"),
        ('on-skipped = "quarantine"', SKIPPED, FRESH, "quarantine"),
        ('on-skipped = "bounce"', SKIPPED, FRESH, "bounce 5.3.4"),
        ('on-skipped = "bounce"', CLEAN, FRESH, "file INBOX"),
        ('on-skipped = "bounce"', VIRUS, FRESH, "quarantine"),
    ],
)
def test_what_a_scanner_for_viruses_says(settings: str, verdict: Verdict, header: bytes, expected: str) -> None:
    made = plan(f"[clamd]\n{settings}\n[spamd]\n", verdict, ham(0.0), header=header)
    assert said(made) == expected
    status = {VIRUS: b"Infected (Eicar)", CLEAN: b"Clean", FAILED: b"Not scanned (down)", SKIPPED: b"Not scanned (large)"}
    assert b"X-Virus-Status: %s\n" % status[verdict] in made.headers


@pytest.mark.parametrize(
    ("settings", "verdict", "expected", "flags"),
    [
        ("", ham(4.9), "file INBOX", ""),
        ("", spam(5.0), "file Spam", ""),
        ("", spam(12.0), "file Spam", ""),
        ("", spam(12.1), "discard", ""),  # strictly above
        ("", Verdict("spamd", Finding.SPAM), "file Spam", ""),  # without a score
        ("", ham(12.1), "file INBOX", ""),  # the scanner's own word
        ("delete-above = 20.0", spam(19.9), "file Spam", ""),
        ('folder = "Junk"\nmark-read = true', spam(5.0), "file Junk", "S"),
        ("mark-read = true", ham(1.0), "file INBOX", ""),
        ("required-score = 7.0", spam(6.9), "file INBOX", ""),
        ("required-score = 7.0", spam(7.0), "file Spam", ""),
        ("required-score = 3.0", ham(3.0), "file Spam", ""),
        ("required-score = 3.0", SPAM_FAILED, "file INBOX", ""),
    ],
)
def test_what_a_scanner_for_spam_says(settings: str, verdict: Verdict, expected: str, flags: str) -> None:
    made = plan(f"[clamd]\n[spamd]\n[spam]\n{settings}\n", CLEAN, verdict)
    assert (said(made), made.flags, made.spam) == (expected, flags, expected != "file INBOX")


def test_the_header_says_whose_threshold_it_was() -> None:
    assert b"X-Spam-Status: No, score=6.9 required=7.0\n" in plan("[spamd]\n[spam]\nrequired-score = 7.0\n", spam(6.9)).headers
    assert b"X-Spam-Status: Yes, score=6.9 required=5.0\n" in plan("[spamd]\n", spam(6.9)).headers


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ('sees = "all"\nadd-score = 7.0\n', "file Spam"),
        ('sees = "all"\nadd-score = 7.1\n', "discard"),  # 5 and 7.1 are above 12
        ('sees = "all"\nadd-score = -0.1\n', "file INBOX"),
        ("never-spam = true\n", "file INBOX"),
        ('file = "Rules"\n', "file Spam"),  # it sees only what is not spam
        ('sees = "spam"\nfile = "Rules"\n', "file Rules"),
    ],
)
def test_what_a_rule_makes_of_spam(rule: str, expected: str) -> None:
    assert said(plan(f"[spamd]\n[[rule]]\n{rule}", spam(5.0))) == expected


@pytest.mark.parametrize(
    ("settings", "verdict", "rule", "expected"),
    [
        ("", ham(0.0), "", "bounce 5.2.2"),
        ('over = "defer"', ham(0.0), "", "defer 4.2.2"),
        ("", spam(6.0), "", "quarantine Spam"),  # its sender is forged: it never bounces
        ('over = "defer"\nspam-over = "discard"', spam(6.0), "", "discard"),
        ('spam-over = "defer"', spam(6.0), "", "defer 4.2.2"),
        ('spam-over = "discard"', ham(0.0), "", "bounce 5.2.2"),
        ("", spam(13.0), "", "discard"),
        ("", ham(0.0), FORWARD, "forward me@example.com"),  # nothing is stored here
        ("", ham(0.0), '[[rule]]\ncopy = "Copies"\n' + FORWARD, "bounce 5.2.2"),
    ],
)
def test_a_full_mailbox(settings: str, verdict: Verdict, rule: str, expected: str) -> None:
    made = plan(f"[spamd]\n[quota]\n{settings}\n{rule}", verdict, full="90 of 90 bytes")
    assert said(made) == expected
    stored = "file" in said(plan(f"[spamd]\n[quota]\n{settings}\n{rule}", verdict))
    assert ("the mailbox is full (90 of 90 bytes)" in made.reason) is stored


@pytest.mark.parametrize(
    ("rule", "verdict", "expected"),
    [
        (FORWARD, SPAM_FAILED, "defer 4.3.2"),
        (FORWARD, Verdict("spamd", Finding.SKIPPED, reason="large"), "forward me@example.com"),
        ('[[rule]]\ncopy = "me@example.com"\n', SPAM_FAILED, "defer 4.3.2"),
        ('[[rule]]\ncopy = "Copies"\n', SPAM_FAILED, "file Copies, file INBOX"),
    ],
)
def test_mail_to_others_needs_every_verdict(rule: str, verdict: Verdict, expected: str) -> None:
    assert said(plan(f"[clamd]\n[spamd]\n{rule}", CLEAN, verdict)) == expected


def test_the_extension_names_a_folder_that_is_there() -> None:
    assert said(plan("[spamd]\n", ham(0.0), extension="Lists")) == "file Lists"
    assert said(plan("[spamd]\n", ham(0.0), extension="Nope")) == "file INBOX"
    assert said(plan("[spamd]\n", spam(6.0), extension="Lists")) == "file Spam"
    assert said(plan('[[rule]]\nfile = "INBOX"\n', extension="Lists")) == "file INBOX"


def test_of_several_scanners_for_spam_one_that_told_counts() -> None:
    settings = '[spamd]\n[spam]\ndelete-above = 20.0\n[[scanner]]\nname = "rspamd"\nkind = "rspamd"\n'
    rspamd = Verdict("rspamd", Finding.SPAM, score=15.0, required=15.0)
    for first, second, expected, score in (
        (SPAM_FAILED, rspamd._replace(finding=Finding.CLEAN, score=1.0), "file INBOX", b"No, score=1.0"),
        (ham(4.0), rspamd, "file Spam", b"Yes, score=15.0"),
        (spam(6.0), rspamd, "file Spam", b"Yes, score=6.0"),
        (ham(4.0), rspamd._replace(finding=Finding.CLEAN, score=1.0), "file INBOX", b"No, score=4.0"),
    ):
        made = plan(settings, first, second)
        assert said(made) == expected
        assert b"X-Spam-Status: " + score in made.headers


def test_points_cannot_change_what_has_no_threshold() -> None:
    told = Verdict("spamd", Finding.SPAM, score=6.0)
    assert said(plan('[spamd]\n[[rule]]\nsees = "all"\nadd-score = -9.0\n', told)) == "file Spam"


@pytest.mark.parametrize(
    ("verdict", "header", "answered", "why"),
    [
        (ham(0.0), b"To: b@x\n", "", ""),
        (spam(6.0), b"To: b@x\n", "", "it is spam"),
        (Verdict("clamd", Finding.VIRUS, ("A",)), b"To: b@x\n", "", "it has a virus"),
        (ham(0.0), b"To: b@x\nPrecedence: bulk\n", "", "Precedence"),  # RFC 3834 section 2
        (ham(0.0), b"To: b@x\n", "a@x had one a day ago", "a@x had one a day ago"),
    ],
)
def test_whom_a_rule_answers(verdict: Verdict, header: bytes, answered: str, why: str) -> None:
    steps: list[Step] = []
    rule = '[[rule]]\nsees = "all"\nreply = "I am away."\n'
    made = plan(f'[clamd]\non-virus = "mark"\n[spamd]\n{rule}', verdict, header=FRESH + header, answered=answered, steps=steps)
    assert (made.answer is None) is bool(why)
    told = [step.text for step in steps if step.text.startswith(("no reply goes out: ", "a@x gets a reply"))]
    assert len(told) == 1
    assert why in told[0]


@pytest.mark.parametrize("site", ["[quota]\n", '[quota]\nover = "defer"\n'])
def test_who_hears_of_a_message_in_another_way_gets_no_reply(site: str) -> None:
    rule = '[[rule]]\nreply = "I am away."\n'
    assert plan(f"[spamd]\n{site}{rule}", ham(0.0), header=FRESH + b"To: b@x\n", full="full").answer is None
    bounce = plan(f"[spamd]\n{rule}[[rule]]\nbounce = true\n", ham(0.0), header=FRESH + b"To: b@x\n")
    assert (said(bounce), bounce.answer) == ("bounce 5.7.1", None)
    waits = plan(f"[spamd]\n{rule}", SPAM_FAILED, header=FRESH + b"To: b@x\n")
    assert (said(waits), waits.answer) == ("defer 4.3.2", None)


def test_a_plan_in_words() -> None:
    made = Plan(
        (Action(Verb.FILE, "INBOX"), Action(Verb.FILE, "Lists"), Action(Verb.FORWARD, "c@z"), Action(Verb.PIPE, "crm")), ""
    )
    assert words(made) == "goes into the inbox, goes into Lists, is sent on to c@z, is given to the program crm"
    for verb, expected in (
        (Verb.QUARANTINE, "is held in quarantine"),
        (Verb.DISCARD, "is deleted"),
        (Verb.BOUNCE, "goes back to its sender"),
        (Verb.DEFER, "is left with the mail server for another try"),
    ):
        assert words(Plan((Action(verb),), "")) == expected


def test_a_keyword_that_no_mail_program_uses_is_told() -> None:
    steps: list[Step] = []
    plan('[[rule]]\nflag = "keyword:Work"\ncopy = "Copies"\n', steps=steps)
    told = [step.text for step in steps if step.text.startswith("the keyword ")]
    assert told == [f"the keyword Work is not set: no mail program has used it in {one} yet" for one in ("Copies", "the inbox")]


def test_the_order_is_virus_then_what_was_not_scanned() -> None:
    """And every step of the decision can be read by the mailbox's owner."""
    settings = '[clamd]\non-virus = "discard"\n[[scanner]]\nname = "gate"\nkind = "icap"\n'
    down = Verdict("gate", Finding.FAILED, reason="down")
    assert said(plan(settings, down, VIRUS)) == "discard"
    steps: list[Step] = []
    made = plan(settings, CLEAN, down, steps=steps)
    assert made.reason == "gate did not scan it: down"
    assert [step.text for step in steps] == [
        "gate did not scan it: down; the setting says defer",
        "is left with the mail server for another try: gate did not scan it: down",
    ]
    waited = plan(settings, CLEAN, down, header=TWO_DAYS, steps=steps)
    assert waited.reason == "no rule placed it"
    assert "gate did not scan it: down, and it has waited long enough; the setting says deliver" in [s.text for s in steps]
