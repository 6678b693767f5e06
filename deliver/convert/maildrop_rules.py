"""What a walk through a maildrop filter finds, gathered into rules, settings and reports."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from deliver.convert.formulas import (
    FALSE,
    TRUE,
    All,
    AnyOf,
    Formula,
    Guard,
    Not,
    all_of,
    any_of,
    leaves,
    literals,
    negated,
    shortened,
    table,
)
from deliver.convert.maildrop_logic import SPAM, joined, parts_of, says, surely, unknowns, value_of
from deliver.convert.model import Conversion, Converted, Reported
from deliver.rules.load import load

LOGS = "ours writes one line for each message by itself ([log] says where); this and other log lines are left out"
SPAM_IS_TOLD = (
    'who is spam and with how many points must be told by [spamd], or by [spam] trust-header = "X-Spam-Status" where a '
    "scanner in front of ours writes that line; both stand in the site's configuration"
)
NEVER = 1000.0
"""Points above which nothing is: for a filter that deletes no spam."""


@dataclass
class _Draft:
    """A rule in the making. ``asked`` are the paths as the walk knows them, ``paths`` what the rule must still say."""

    line: int
    stop: int
    asked: tuple[Guard, ...]
    paths: list[Guard]
    stage: str
    copies: list[tuple[str, str]] = field(default_factory=list)
    place: tuple[str, Any] | None = None
    flags: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    removes: list[str] = field(default_factory=list)
    tag: str = ""
    implied: bool = False


class Drafts:
    """``spans`` are the lines of each `if`, by the line where it begins; ``stage`` is that of rules to come.

    ``missed`` counts what no rule stands for.
    """

    def __init__(self, lines: list[str], comments: Iterable[tuple[int, str]]) -> None:
        self.spans: dict[int, tuple[int, int]] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.stage = ""
        self._lines = lines
        self._comments = list(comments)
        self._drafts: list[_Draft] = []
        self.missed = 0
        self._placed: dict[str, list[Guard]] = {}
        self._reported: dict[tuple[int, str], Reported] = {}
        self._notes: set[str] = set()

    # --- what the walk says --------------------------------------------------------------------------------------

    def report(self, line: int, end: int, why: str, *, warning: bool = False) -> None:
        """A line that no rule stands for, or (a warning) not quite the same one; once for each reason."""
        text = "\n".join(self._lines[line - 1 : end]).strip("\n")
        self._reported.setdefault((line, why), Reported(line, text or "(the end of the file)", why, warning))

    def note(self, line: int, end: int, why: str) -> None:
        """A warning that is the same wherever it is said: only the first place is shown."""
        if why not in self._notes:
            self._notes.add(why)
            self.report(line, end, why, warning=True)

    def note_log(self, line: int, end: int) -> None:
        """A line for the log."""
        self.note(line, end, LOGS)

    def reader_notes(self, notes: Iterable[tuple[int, str]]) -> None:
        """What was said of patterns."""
        for line, why in notes:
            self.report(line, self.spans.get(line, (line, line))[0], why, warning=True)

    def unsaid(self, paths: Iterable[Guard], line: int, end: int, why: str) -> None:
        """Something that is done on these paths and that no rule can do."""
        if any(surely(all_of(path), TRUE) != FALSE for path in paths):
            self.missed += 1
            self.report(line, end, why)

    def add(
        self,
        paths: tuple[Guard, ...],
        ifs: list[int],
        line: int,
        *,
        place: tuple[str, Any] | None = None,
        copy: bool = False,
        flags: Iterable[str] = (),
        headers: Iterable[tuple[str, str]] = (),
        removes: Iterable[str] = (),
        tag: str = "",
        implied: bool = False,
    ) -> None:
        """Something that is done on these paths, in the ifs that begin on those lines."""
        if not implied:
            self._report_unknown(paths, copy=copy or place is None)
        draft = self._draft(paths, ifs, line)
        if draft is None:
            return
        draft.flags += [flag for flag in flags if flag not in draft.flags]
        for name, text in headers:
            draft.headers[name] = text
        draft.removes += removes
        draft.tag = tag or draft.tag
        draft.implied = implied
        if place and copy:
            draft.copies.append(place)
        elif place:
            draft.place = place
            self._take(draft.paths)

    def end(self, paths: tuple[Guard, ...], line: int) -> bool:
        """Whether copies were made just before, which are then where the message ends."""
        last = self._drafts[-1] if self._drafts else None
        if last is None or last.asked != paths or not last.copies or last.place:
            return False
        forwards = [target for key, target in last.copies if key == "forward"]
        if forwards:
            last.place = ("forward", forwards if forwards[1:] else forwards[0])
            last.copies = [one for one in last.copies if one[0] == "file"]
        else:
            last.place = last.copies.pop()
        last.stop = line
        self._take(last.paths)
        return True

    def mark_last(self, flag: str) -> None:
        """What was delivered last is marked."""
        if self._drafts and flag not in self._drafts[-1].flags:
            self._drafts[-1].flags.append(flag)

    def spamd(self, paths: tuple[Guard, ...], user: str) -> None:
        """The filter asks spamd, for messages of these paths."""
        said = self.settings.setdefault("spamd", {})
        if user:
            said["user"] = user
        for one in leaves(any_of(all_of(path) for path in paths)):
            if one.key == "size" and one.value.startswith("<"):
                said["max-size"] = int(one.value.split()[1])

    def _take(self, paths: Iterable[Guard]) -> None:
        """Note what a rule places, by each thing that it asks."""
        for path in paths:
            for key in {repr(part) for part in (*literals(path), all_of(path))}:
                self._placed.setdefault(key, []).append(path)

    def _shortened(self, path: Guard) -> Guard:
        """The path without what rules above have placed. Only those that ask for what it excludes are looked at."""
        keys = {repr(part.part) for part in literals(path) if isinstance(part, Not)}
        return shortened(path, [one for key in sorted(keys) for one in self._placed.get(key, ())])

    def _report_unknown(self, paths: tuple[Guard, ...], *, copy: bool) -> None:
        for one in unknowns(any_of(all_of(path) for path in paths)):
            start, end = self.spans.get(one.line, (one.line, one.line))
            self.missed += 1
            goes = "this is not done" if copy else "such mail goes on to the rules below"
            self.report(start, end, f"{one.reason}; {goes}")

    def _draft(self, paths: tuple[Guard, ...], ifs: list[int], line: int) -> _Draft | None:
        """The rule to put something into: the last one where it is of the same paths and goes on; None for never."""
        last = self._drafts[-1] if self._drafts else None
        if last and last.asked == paths and last.place is None and last.stage == self.stage:
            last.stop = line
            return last
        sure = [formula for path in paths if (formula := surely(all_of(path))) != FALSE]
        if not sure:
            return None
        left = joined(self._shortened(parts_of(formula)) for formula in sure)
        begins = next((one for one in ifs if last is None or one > last.stop), line)
        draft = _Draft(begins, line, paths, left, self.stage)
        self._drafts.append(draft)
        return draft

    # --- what becomes of it --------------------------------------------------------------------------------------

    def conversion(self, *, site: bool) -> Conversion:
        """The whole. ``site`` says that the filter is a host's, whose spam handling can be settings."""
        aware = [draft for draft in self._drafts if any(says(path, "spam", "score") for path in draft.asked)]
        if site and aware:
            self._settle()
        if not site:
            self.settings.clear()
        self._leave_inbox(aware=bool(aware))
        rules: list[Converted] = []
        stops = []
        gone = site and "folder" in self.settings.get("spam", {})
        for draft in self._drafts:
            if aware and not site and draft is aware[0]:
                self.report(draft.line, draft.stop, SPAM_IS_TOLD, warning=True)
            rule = _rule(draft, aware=bool(aware) and not gone)
            gone = gone or (draft.place is not None and any(_takes_spam(path) for path in draft.paths))
            _, problems = load([rule], "converted", user=False)
            if errors := [problem.text for problem in problems if not problem.warning]:
                self.report(draft.line, draft.stop, f"{errors[0]}; such mail goes on to the rules below")
                continue
            rules.append(Converted(draft.line, rule))
            stops.append(draft.stop)
        reported = sorted(self._reported.values(), key=lambda one: one.line)
        settings = {name: dict(said) for name, said in sorted(self.settings.items()) if said}
        return self._commented(rules, stops, reported, settings)

    def _commented(
        self, rules: list[Converted], stops: list[int], reported: list[Reported], settings: dict[str, dict[str, object]]
    ) -> Conversion:
        """With the comments: each before the rule or the report that comes of what stands behind it."""
        shown = {line for one in reported for line in range(one.line, one.line + one.text.count("\n") + 1)}
        left = [(at, text.lstrip("#").strip()) for at, text in self._comments if at not in shown]
        places = [(rule.line, 1, stop, index) for index, (rule, stop) in enumerate(zip(rules, stops, strict=True))]
        places += [(one.line, 0, one.line, index) for index, one in enumerate(reported) if not one.warning]
        for _, is_rule, stop, index in sorted(places):
            own = tuple(text for at, text in left if at <= stop)
            left = [(at, text) for at, text in left if at > stop]
            if is_rule:
                rules[index] = rules[index]._replace(comments=own)
            else:
                reported[index] = reported[index]._replace(comments=own)
        return Conversion(tuple(rules), tuple(reported), settings, tuple(text for _, text in left))

    def _settle(self) -> None:
        """Spam's folder and the score at which it is deleted, as settings in place of rules."""
        said = self.settings.setdefault("spam", {})
        if "spamd" not in self.settings:
            said["trust-header"] = "X-Spam-Status"
        for draft in list(self._drafts):
            path = draft.paths[0] if len(draft.paths) == 1 else ()
            if draft.copies or draft.headers or draft.removes or draft.tag or draft.place is None or SPAM not in path:
                continue
            score = re.fullmatch(r">= ([0-9.]+)", str(value_of(path, "score")))
            if path == (SPAM,) and draft.place[0] == "file":
                said["folder"] = draft.place[1]
                if draft.flags == ["seen"]:
                    said["mark-read"] = True
            elif draft.place[0] == "discard" and score and "folder" not in said:
                # "Strictly above", and points have one decimal (Mail::SpamAssassin::PerMsgStatus, get_score).
                said["delete-above"] = round(float(score[1]) - 0.01, 2)
            else:
                continue
            self._drafts.remove(draft)
        said.setdefault("delete-above", NEVER)

    def _leave_inbox(self, *, aware: bool) -> None:
        """Drop rules at the end that only say what happens anyway."""
        gone = "folder" in self.settings.get("spam", {})
        while self._drafts:
            last = self._drafts[-1]
            above = self._drafts[:-1]
            taken = gone or any(one.place and any(map(_takes_spam, one.paths)) for one in above)
            marked = last.copies or last.flags or last.headers or last.removes or last.tag
            bare = not marked and last.place == ("file", "INBOX")
            if not bare or (aware and not taken):
                return
            self._drafts.pop()


def _takes_spam(path: Guard) -> bool:
    """Whether everything that is spam is on this path."""
    return not path or (len(path) == 1 and (path[0] == SPAM or (isinstance(path[0], AnyOf) and SPAM in path[0].parts)))


def _rule(draft: _Draft, *, aware: bool) -> dict[str, Any]:
    """The [[rule]]. Where a filter looks at spam itself (``aware``), what it does not ask for spam is for all mail."""
    formula: Formula = any_of(map(all_of, draft.paths)) if draft.paths else All(())
    parts = list(formula.parts) if isinstance(formula, All) else [formula]
    rule: dict[str, Any] = {}
    if SPAM in parts:
        rule["sees"] = "spam"
    elif negated(SPAM) in parts and says(tuple(parts), "score"):
        rule["sees"] = "all"  # who asks for points should see all that may have them, as `deliver check` says
    elif negated(SPAM) not in parts and aware:
        rule["sees"] = "spam" if draft.implied else "all"
    parts = [one for one in parts if one != SPAM and (one != negated(SPAM) or rule.get("sees") == "all")]
    if draft.stage:
        rule["stage"] = draft.stage
    if draft.flags:
        rule["flag"] = _one_or_all(draft.flags)
    if draft.removes:
        rule["remove-header"] = _one_or_all(draft.removes)
    if draft.headers:
        rule["add-header"] = dict(draft.headers)
    if draft.tag:
        rule["tag-subject"] = draft.tag
    if draft.copies:
        rule["copy"] = _one_or_all([target for _, target in draft.copies])
    if draft.place:
        rule[draft.place[0]] = draft.place[1]
    if when := table(all_of(parts)):
        rule["when"] = when
    return rule


def _one_or_all(found: list[str]) -> Any:
    unique = list(dict.fromkeys(found))
    return unique[0] if len(unique) == 1 else unique
