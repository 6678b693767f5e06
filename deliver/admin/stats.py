"""What the log says about many deliveries: numbers by outcome, day and scanner, and whom and what most of it concerned.

Lines are read one by one, and what is kept does not grow with their number.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

OUTCOMES = ("inbox", "folder", "spam", "held", "forwarded", "program", "discarded", "bounced", "deferred")
"""What became of a message for one recipient; the first that holds of those below it, from the right."""

SHOWN = 10
"""Recipients, viruses and reasons of failures that a summary names."""

_MOST_NAMES = 10_000
_MOST_DAYS = 4000
_STEP = math.log(1.05)
"""Times are counted in steps of 5 %: what is said of them is right to 2.5 %."""
_LONGEST_NAME = 200


class Times:
    """How long something took, in milliseconds; of any number of them, in bounded memory."""

    def __init__(self) -> None:
        self._steps: Counter[int] = Counter()
        self.count = 0

    def add(self, ms: float) -> None:
        """One more."""
        self._steps[round(math.log(min(max(ms, 0.1), 1e8)) / _STEP)] += 1
        self.count += 1

    def below(self, share: float) -> float:
        """The time that so many of them did not exceed; 0 where there is none."""
        wanted, seen = math.ceil(share * self.count), 0
        for step in sorted(self._steps):
            seen += self._steps[step]
            if seen >= wanted:
                return float(f"{math.exp(step * _STEP):.3g}")
        return 0.0


class Names:
    """How often each name came. Of more than _MOST_NAMES the rarest are forgotten: those at the top stay right."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Once more."""
        self._counts[name[:_LONGEST_NAME]] += 1
        if len(self._counts) > 2 * _MOST_NAMES:
            self._counts = Counter(dict(self._counts.most_common(_MOST_NAMES)))

    def top(self, number: int = SHOWN) -> dict[str, int]:
        """The most frequent."""
        return dict(self._counts.most_common(number))


class Scanner:
    """One scanner's findings and times."""

    def __init__(self) -> None:
        self.findings: Counter[str] = Counter()
        self.times = Times()


class Stats:
    """The sums so far."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.spam = 0
        self.viruses = 0
        self.policy = 0
        self.warnings = 0
        self.unreadable = 0
        self.first = math.inf
        self.last = -math.inf
        self.outcomes: Counter[str] = Counter()
        self.days: dict[str, Counter[str]] = {}
        self.scanners: dict[str, Scanner] = {}
        self.recipients = Names()
        self.names_of_viruses = Names()
        self.failures = Names()

    def read(self, lines: Iterable[bytes]) -> None:
        """Take every line of a log. Before the JSON may stand what syslog writes; other programs' lines are skipped."""
        for line in lines:
            start = line.find(b"{")
            if start < 0:
                continue
            try:
                record = json.loads(line[start:])
            except (ValueError, RecursionError):
                # Ours begin with "time"; one that syslog has cut is no JSON any more.
                self.unreadable += line[start:].startswith(b'{"time"')
                continue
            if isinstance(record, dict) and isinstance(record.get("time"), int | float):
                self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        when = record["time"]
        if not 0 <= when < 2**35:  # NaN is neither; beyond it no calendar goes
            self.unreadable += 1
            return
        if "actions" not in record:
            if record.get("level") == "warning":
                self.warnings += 1
                self.failures.add(str(record.get("detail", "")).partition("\n")[0])
            return
        self.first, self.last = min(self.first, float(when)), max(self.last, float(when))
        self.messages += 1
        self.bytes += _number(record.get("size"))
        self.recipients.add(str(record.get("recipient", "")))
        found = [verdict for verdict in _list(record.get("verdicts")) if isinstance(verdict, dict)]
        kinds = {str(verdict.get("finding")) for verdict in found}
        spam = bool(record.get("spam", "spam" in kinds))
        outcome = _outcome(record, spam)
        self.outcomes[outcome] += 1
        self.spam += spam
        self.viruses += "virus" in kinds
        self.policy += "policy" in kinds
        self._day(when, outcome, spam, kinds)
        for verdict in found:
            self._verdict(verdict)

    def _day(self, when: float, outcome: str, spam: bool, kinds: set[str]) -> None:
        name = time.strftime("%Y-%m-%d", time.localtime(when))
        if name not in self.days and len(self.days) >= _MOST_DAYS:
            return
        day = self.days.setdefault(name, Counter())
        day["messages"] += 1
        day["spam"] += spam
        day["viruses"] += "virus" in kinds
        day["policy"] += "policy" in kinds
        day[outcome] += outcome in ("held", "discarded", "bounced", "deferred")

    def _verdict(self, verdict: dict[str, Any]) -> None:
        name = str(verdict.get("scanner"))[:_LONGEST_NAME]
        if name not in self.scanners and len(self.scanners) >= _MOST_NAMES:
            return
        scanner = self.scanners.setdefault(name, Scanner())
        finding = str(verdict.get("finding"))
        scanner.findings[finding[:_LONGEST_NAME]] += 1
        took = verdict.get("ms")
        if isinstance(took, int | float) and took >= 0:
            scanner.times.add(took)
        if finding == "virus":
            for virus in _list(verdict.get("names")):
                self.names_of_viruses.add(str(virus))
        if finding == "failed":
            self.failures.add(str(verdict.get("reason", "")))

    def summary(self) -> dict[str, Any]:
        """All of it as a JSON object; times in milliseconds, the span in seconds since the epoch."""
        return {
            "first": self.first if self.messages else None,
            "last": self.last if self.messages else None,
            "messages": self.messages,
            "bytes": self.bytes,
            "spam": self.spam,
            "viruses": self.viruses,
            "policy": self.policy,
            "outcomes": {name: self.outcomes[name] for name in OUTCOMES if self.outcomes[name]},
            "scanners": {
                name: {
                    "count": one.times.count,
                    "median": one.times.below(0.5),
                    "95th": one.times.below(0.95),
                    "findings": dict(one.findings),
                }
                for name, one in sorted(self.scanners.items())
            },
            "recipients": self.recipients.top(),
            "names": self.names_of_viruses.top(),
            "failures": self.failures.top(),
            "warnings": self.warnings,
            "unreadable": self.unreadable,
            "days": {name: {key: n for key, n in day.items() if n} for name, day in sorted(self.days.items())},
        }


def _outcome(record: dict[str, Any], spam: bool) -> str:
    said = [str(action) for action in _list(record["actions"])]
    verbs = {action.partition(" ")[0] for action in said}
    filed = [action.partition(" ")[2] for action in said if action.startswith("file ")]
    by_verb = {"defer": "deferred", "bounce": "bounced", "quarantine": "held"}
    for verb, outcome in by_verb.items():
        if verb in verbs:
            return outcome
    if filed:
        return "inbox" if "INBOX" in filed else "spam" if spam else "folder"
    return "forwarded" if "forward" in verbs else "program" if "pipe" in verbs else "discarded"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
