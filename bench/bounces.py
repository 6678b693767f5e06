"""How many real bounces are recognised as such, and as for good or for now: `python bench/bounces.py`.

The expectations are sisimai's: for good ("hard") are unknown users and hosts, users that have moved, and servers that
take no mail at all; everything else is for now ("soft"), also a final 5.x.x such as a full mailbox or a refused text.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(CHECKOUT / "tests"), str(CHECKOUT)]

import corpora  # noqa: E402
from measure import table  # noqa: E402

from deliver.content.bounces import read  # noqa: E402

COLUMNS = ("messages", "recognised", "hard as permanent", "hard as temporary", "soft as temporary", "soft as permanent")


def main() -> None:
    """The table by sisimai's reasons, and what it comes to."""
    folder = corpora.ROOT / "bounce-sisimai"
    files = {path.name: path for path in folder.rglob("*.eml")}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for line in (folder / "_expected.tsv").read_text().splitlines()[1:]:
        name, _, _, reason, hard = line.split("\t")
        found = read([files[name].read_bytes()])
        seen = ["messages"]
        if any(found):
            said = "permanent" if found.permanent else "temporary"
            seen += ["recognised", f"{'hard' if hard == '1' else 'soft'} as {said}"]
        for column in seen:
            counts[reason][column] += 1
            counts["ALL"][column] += 1
    rows = [
        [reason, *(str(counts[reason][column] or "") for column in COLUMNS)] for reason in sorted(counts, key=str.lower)
    ]
    print(table(["reason", *COLUMNS], rows))


if __name__ == "__main__":
    main()
