"""What conditions cost: each on every test message, a thousand patterns on long texts, a thousand rules on headers.

`python bench/conditions.py [PATH...]`; without paths the test material beside the checkout. CPU is this process's,
memory what Python has allocated at once above what was there before (tracemalloc, which slows what it watches).
"""

import base64
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(CHECKOUT / "tests"), str(CHECKOUT)]

import corpora  # noqa: E402
import every_condition  # noqa: E402
from measure import table  # noqa: E402

from deliver.rules.evaluate import walk  # noqa: E402
from deliver.rules.load import load  # noqa: E402
from deliver.rules.model import Rule, View  # noqa: E402
from deliver.values import unheard  # noqa: E402

MB = 1_000_000


def cpu(work: Callable[[], object], least: float = 0.0) -> float:
    """Milliseconds of CPU for one call; repeated until ``least`` seconds are over."""
    calls = 0
    start = time.process_time()
    while not calls or time.process_time() - start < least:
        work()
        calls += 1
    return (time.process_time() - start) / calls * 1000


def memory(work: Callable[[], object]) -> float:
    """MB at most, above what there was."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / MB
    finally:
        tracemalloc.stop()


def large_messages() -> dict[str, bytes]:
    """25 MB each, of what is costly."""
    random = os.urandom(18 * MB)
    return {
        "25 MB of base64": b"Content-Transfer-Encoding: base64\nContent-Type: a/b\n\n" + base64.encodebytes(random),
        "25 MB of text": b"Subject: x\n\n" + b"the quick brown fox jumps over the lazy dog\n" * (25 * MB // 44),
        "25 MB of HTML": b"Content-Type: text/html\n\n" + b"<p>the <b>quick</b> &amp; brown" * (25 * MB // 31),
        "25 MB of empty lines": b"Subject: x\n\n" + b"\n" * (25 * MB),
        "25 MB of boundaries": b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n" * (5 * MB),
        "25 MB of tar.gz": b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(b"\x1f\x8b\x08" + random),
    }


def each_condition(messages: dict[str, bytes]) -> None:
    """The dearest message for each condition, in CPU and in memory."""
    rows = []
    for name, rules in every_condition.rules().items():
        dearest, hungriest = (0.0, ""), (0.0, "")
        for called, raw in messages.items():
            known = every_condition.facts(raw)
            spent = cpu(lambda rules=rules, known=known: _ask(rules, known))
            dearest = max(dearest, (spent, called))
            if spent > 1 or len(raw) > MB:
                known = every_condition.facts(raw)
                hungriest = max(hungriest, (memory(lambda rules=rules, known=known: _ask(rules, known)), called))
        rows.append([name, str(len(rules)), f"{dearest[0]:.1f}", dearest[1], f"{hungriest[0]:.1f}", hungriest[1]])
    print(f"Every condition in all its forms on {len(messages)} messages: the dearest")
    print(table(["condition", "forms", "CPU ms", "on", "MB", "on"], rows))


def _ask(rules: tuple[Rule, ...], known: Any) -> None:
    view = View(known)
    for rule in rules:
        rule.condition.matches(view)


PATTERNS: dict[str, Callable[[int], str]] = {
    "(a+)+N$": lambda n: f"(a+)+{n}$",
    "(wordN|wN)+.*fooN": lambda n: f"(word{n}|w{n})+.*foo{n}",
    r"\bfree\W+offerN": lambda n: rf"\bfree\W+offer{n}",
}


def patterns() -> None:
    """Linear in the patterns and in the text."""
    rows = []
    for shown, pattern in PATTERNS.items():
        for count in (10, 100, 1000):
            row = [shown, str(count)]
            for size in (10_000, 100_000, MB):
                tables = [{"flag": "seen", "when": {"body": {"regex": pattern(n)}}} for n in range(count)]
                rules, problems = load(tables, "f", user=True)
                assert not problems
                text = b"lorem ipsum aaaaaaaaaaaaaaaaaaaa! free offers 4711 "
                known = every_condition.facts(b"\n" + (text * (size // len(text) + 1))[:size])
                row.append(f"{cpu(lambda rules=rules, known=known: _ask(rules, known)):.1f}")
            rows.append(row)
    print("\nRules with a pattern for the body, each delivery's first look: CPU ms")
    print(table(["pattern", "rules", "10 KB", "100 KB", "1 MB"], rows))


HEADER = (
    b"From: Alice <alice@example.org>\nTo: bob@example.net, carol@example.net\nList-Id: A list <announce.example.org>\n"
    b"Subject: =?utf-8?q?Re=3A_Rechnung_f=C3=BCr_M=C3=A4rz?= and some more words of a usual subject\n\nbody\n"
)


def header_rules() -> None:
    """What a thousand rules for headers cost a message in a process that has them compiled."""
    kinds: dict[str, Callable[[int], dict[str, Any]]] = {
        "subject glob": lambda n: {"subject": f"*nothing {n}*"},
        "subject contains": lambda n: {"subject": {"contains": f"nothing {n}"}},
        "subject regex": lambda n: {"subject": {"regex": rf"nothing\s+{n}\b"}},
        "subject regex (a+)+$": lambda n: {"subject": {"regex": f"(a+)+{n}$"}},
        "from": lambda n: {"from": f"nobody{n}@example.org"},
        "from domain": lambda n: {"from": {"domain": f"example{n}.org"}},
        "from in a list": lambda _n: {"cc": {"in": "friends"}},
        "list-id": lambda n: {"list-id": f"*.list{n}.example.org"},
        "two conditions": lambda n: {"from": "*@example.org", "subject": f"*nothing {n}*"},
    }
    rows = []
    for shown, when in kinds.items():
        rules, _ = load([{"flag": "seen", "when": when(n)} for n in range(1000)], "f", user=True, lists=["friends"])
        known = every_condition.facts(HEADER)

        def once(rules: tuple[Rule, ...] = rules, known: Any = known) -> None:
            walk(rules, known, lambda _added: False, unheard)

        rows.append([shown, f"{cpu(once, 0.5):.2f}"])
    print("\nA thousand rules that look at headers, none of which matches: CPU ms for a message")
    print(table(["rule", "ms"], rows))


def main(paths: list[str]) -> None:
    """All of it."""
    files = [Path(path) for path in paths] or [path for path in corpora.ROOT.rglob("*") if path.is_file()]
    each_condition({**{path.name: path.read_bytes() for path in files}, **large_messages()})
    patterns()
    header_rules()


if __name__ == "__main__":
    main(sys.argv[1:])
