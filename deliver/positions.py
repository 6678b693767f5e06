"""Which line of a TOML file a key stands on. Only `deliver check` needs to know, so only it loads tree-sitter."""

from collections import Counter
from typing import Any

Path = tuple[str | int, ...]


class Positions:
    """The lines (from 1) of everything in a TOML document, also of one with errors."""

    def __init__(self, text: bytes) -> None:
        import tree_sitter
        import tree_sitter_toml

        self._lines: dict[Path, int] = {(): 1}
        self._arrays: Counter[Path] = Counter()
        parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language()))
        self._document(parser.parse(text).root_node)

    def line(self, path: Path) -> int:
        """The line of ``path``, or of the nearest thing around it."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def _document(self, root: Any) -> None:
        for node in root.children:
            if node.type == "pair":
                self._pair((), node)
            elif node.type in ("table", "table_array_element"):
                self._table(node)

    def _table(self, node: Any) -> None:
        keys = [child for child in node.named_children if child.type in _KEYS]
        if not keys:
            return
        path = self._resolve(_key(keys[0]))
        if node.type == "table_array_element":
            self._lines.setdefault(path, node.start_point[0] + 1)
            index = self._arrays[path]
            self._arrays[path] += 1
            path = (*path, index)
        self._set(path, node)
        for child in node.children:
            if child.type == "pair":
                self._pair(path, child)

    def _resolve(self, keys: Path) -> Path:
        """[rule.when] means the `when` of the last [[rule]] (TOML 1.0, Array of Tables)."""
        path: Path = ()
        for key in keys[:-1]:
            path = (*path, key)
            if path in self._arrays:
                path = (*path, self._arrays[path] - 1)
        return (*path, keys[-1])

    def _pair(self, base: Path, node: Any) -> None:
        key, value = node.named_children[0], node.named_children[-1]
        path = (*base, *_key(key))
        for depth in range(len(base) + 1, len(path)):
            self._lines.setdefault(path[:depth], node.start_point[0] + 1)
        self._set(path, node)
        self._value(path, value)

    def _value(self, path: Path, node: Any) -> None:
        if node.type == "inline_table":
            for child in node.named_children:
                if child.type == "pair":
                    self._pair(path, child)
        elif node.type == "array":
            for index, child in enumerate(child for child in node.named_children if child.type != "comment"):
                self._set((*path, index), child)
                self._value((*path, index), child)

    def _set(self, path: Path, node: Any) -> None:
        self._lines[path] = node.start_point[0] + 1


_KEYS = ("bare_key", "quoted_key", "dotted_key")


def _key(node: Any) -> Path:
    if node.type == "dotted_key":
        return tuple(part for child in node.named_children for part in _key(child))
    text = node.text.decode("utf-8", "replace")
    return (text.strip("\"'") if node.type == "quoted_key" else text,)
