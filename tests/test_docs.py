"""The documents say what the code does: every key, condition, action, command and option, and every example."""

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import servers

from deliver import arguments, config
from deliver.commands import cli
from deliver.errors import Deferred
from deliver.rules import conditions, matching
from deliver.rules import load as rule_files
from deliver.settings import TABLES, Config, Table
from quarantine.commands import cli as quarantine

CHECKOUT = Path(__file__).resolve().parent.parent
DOCS = CHECKOUT / "docs"
PAGES = [CHECKOUT / "README.md", *sorted(DOCS.glob("*.md"))]
MANUALS = [DOCS / "deliver.1", DOCS / "mailfilter.toml.5", DOCS / "quarantine.1"]

TABLES: dict[str, type[Table]] = {"": Config, **TABLES}
TOP_LEVEL = ("maildir", "user-rules", "domain-rules", "deadline")


class Example(NamedTuple):
    """A fenced block of TOML. ``kind`` is "", "user" (an owner's own file) or "wrong" (meant to be refused)."""

    page: str
    line: int
    kind: str
    text: str


def examples() -> Iterator[Example]:
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(r"^```toml *(.*)\n((?s:.*?))^```$", text, re.MULTILINE):
            yield Example(page.name, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def keys(table: str) -> list[str]:
    """The keys that a table takes, as people write them."""
    names = [field.encode_name for field in msgspec.structs.fields(TABLES[table])]
    return [name for name in names if table or name in TOP_LEVEL]


def documented(table: str) -> dict[str, str]:
    """The keys in a table's section of configuration.md, with the defaults that stand there."""
    heading = f"`[{table}]`" if table else "Top level"
    section = (DOCS / "configuration.md").read_text().partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    return dict(re.findall(r"^\| `([a-z-]+)` \|[^|]*\| `(.*?)` \|", section, re.MULTILINE))


def flat(path: Path) -> str:
    """A manual page's source without what is only for roff."""
    return path.read_text().replace("Fl Fl ", "--")


def test_the_top_level_keys_are_known() -> None:
    """What is neither a table nor the rules stands before the first table."""
    names = {field.encode_name for field in msgspec.structs.fields(Config)}
    assert names - TABLES.keys() - {"rules", "scanners", "programs", "lists"} == set(TOP_LEVEL)


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_documented_and_no_other(table: str) -> None:
    assert sorted(documented(table)) == sorted(keys(table))


@pytest.mark.parametrize("table", TABLES)
def test_documented_defaults_are_the_defaults(table: str) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(TABLES[table])}
    for key, default in documented(table).items():
        head = f"[{table}]\n" if table else ""
        settings, problems = config.parse(f"{head}{key} = {default}\n".encode(), "a page")
        assert problems == [], f"{table} {key} = {default}"
        holder: Any = getattr(settings, table) if table else settings
        assert getattr(holder, fields[key].name) == getattr(TABLES[table](), fields[key].name), f"{table} {key}"


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_in_the_manual_page(table: str) -> None:
    section = flat(MANUALS[1]).partition(f".Ss [{table}]\n" if table else ".Ss Top level\n")[2].partition("\n.Ss ")[0]
    assert re.findall(r"^\.It Ic ([a-z-]+) ", section, re.MULTILINE) == list(documented(table))


def first_cells(heading: str) -> set[str]:
    """All names in the first column of the table below a heading of configuration.md."""
    section = (DOCS / "configuration.md").read_text().partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return set(re.findall(r"`([a-z-]+)`", " ".join(cells)))


def test_every_condition_is_documented_and_no_other() -> None:
    assert first_cells("Conditions") == conditions.NAMES


def test_every_key_and_action_of_a_rule_is_documented_and_no_other() -> None:
    placing, adding = first_cells("Actions that place a message"), first_cells("Actions that only add")
    assert placing == set(rule_files._PLACEMENTS)
    assert placing | adding == rule_files._ACTIONS
    assert first_cells("Keys of a rule") == rule_files._KEYS.keys() - rule_files._ACTIONS


def test_every_way_to_match_is_documented() -> None:
    assert first_cells("Matching text") == set(matching.MATCHES)


def test_rules_are_in_the_manual_page() -> None:
    rules = flat(MANUALS[1]).partition(".Sh RULES\n")[2]
    items = " , ".join(re.findall(r"^\.It Ic (.*) No ", rules, re.MULTILINE)).split(" , ")
    assert sorted(items) == sorted({*rule_files._KEYS, *conditions.NAMES})


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: f"{example.page}:{example.line}")
def test_examples_are_accepted(example: Example) -> None:
    """And those that are meant to be wrong are not."""
    if example.kind == "user":
        problems = config.parse_personal(example.text.encode(), "mailfilter.toml", Config())[1]
    else:
        problems = config.parse(example.text.encode(), "mailfilter.toml")[1]
    assert example.kind in {"", "user", "wrong"}
    assert bool(problems) == (example.kind == "wrong"), problems


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_and_its_options_are_in_the_manual_page(name: str) -> None:
    text = flat(MANUALS[0]).partition(".Ss Commands for people\n")[2]
    section = re.split(r"^\.It Cm (?=[a-z])", text, flags=re.MULTILINE)
    mine = [part for part in section if re.match(rf"{name}\b", part)]
    assert len(mine) == 1
    options = {option for one in cli.commands[name].params for option in (*one.opts, *one.secondary_opts)}
    for option in sorted(option for option in options if option.startswith("--")):
        assert re.search(rf"^\.It .*{option}\b", mine[0], re.MULTILINE), option


@pytest.mark.parametrize("name", sorted(quarantine.commands))
def test_every_command_of_the_quarantine_is_in_its_manual_page(name: str) -> None:
    section = re.split(r"^\.It Cm (?=[a-z])", flat(MANUALS[2]), flags=re.MULTILINE)
    mine = [part for part in section if re.match(rf"{name}\b", part)]
    assert len(mine) == 1
    options = {option for one in quarantine.commands[name].params for option in (*one.opts, *one.secondary_opts)}
    for option in sorted(option for option in options if option.startswith("--")):
        assert re.search(rf"^\.It .*{option}\b", mine[0], re.MULTILINE), option


def is_option(option: str) -> bool:
    """Whether a delivery's command line may have it, with or without a value."""
    for words in ([option], [option, "value"]):
        with contextlib.suppress(Deferred):
            arguments.read(words)
            return True
    return False


def test_every_option_of_a_delivery_is_in_the_manual_page() -> None:
    names = [name.replace("_", "-") for name in arguments.Call._fields]
    options = {option for name in names for option in (f"--{name}", f"--no-{name}") if is_option(option)}
    text = flat(MANUALS[0]).partition(".Ss Commands for people\n")[0]
    assert {found.split()[0] for found in re.findall(r"^\.It (--.*)", text, re.MULTILINE)} == options


@pytest.mark.parametrize("manual", MANUALS, ids=lambda path: path.name)
def test_manual_pages_are_well_formed(manual: Path) -> None:
    command = [servers.needs("groff"), "-mdoc", "-Tutf8", "-ww", "-z", str(manual)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```$", "", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target
