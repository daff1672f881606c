"""YAML files as users write them: a key given twice is an error, and texts can stay texts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from augbench.errors import UserError
from augbench.files import read_text

_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
# exceptions of PyYAML for values that do not fit their tag
_MISFIT = (ValueError, AttributeError, KeyError, TypeError)


class UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, except that what it would change silently is an error.

    These are a key given twice, of which it keeps the last, and numbers that it reads to another base: 010
    (octal) and 12:30 (sexagesimal).
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read a mapping; a repeated key raises :class:`UserError`, which names it and both lines."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in lines:
                raise UserError(
                    f"{self.name}, line {line}",
                    f"{key.value!r} is given twice, first in line {lines[key.tag, key.value]}",
                    "each key may be given once",
                )
            lines[key.tag, key.value] = line
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Return the value of a node; one that does not fit its tag raises an error with its line."""
        try:
            return super().construct_object(node, deep)
        except _MISFIT:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            found = f"{tag!r} does not fit {node.value!r} in line {node.start_mark.line + 1}"
            raise yaml.YAMLError(found) from None


def _number(loader: UniqueKeyLoader, node: yaml.ScalarNode) -> int | float:
    construct = yaml.SafeLoader.yaml_constructors[node.tag]
    number: int | float = construct(loader, node)
    if re.search(r"^[-+]?0[0-9_]|:", node.value):
        raise UserError(
            f"{loader.name}, line {node.start_mark.line + 1}",
            f"{node.value}, which YAML reads as {number}",
            f"allowed: {number}, or quotes around a text",
        )
    return number


UniqueKeyLoader.add_constructor("tag:yaml.org,2002:int", _number)
UniqueKeyLoader.add_constructor("tag:yaml.org,2002:float", _number)


class TextLoader(UniqueKeyLoader):
    """Loader that leaves plain values as the text in the file: 010, no, 12:30. Empty and null are None."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag in (_NULL, _MERGE)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load_yaml(path: str | Path, loader: type[yaml.SafeLoader], kind: type, needed: str) -> Any:
    """Read a YAML file.

    Parameters
    ----------
    kind : type
        Type of the whole: ``dict`` or ``list``.
    needed : str
        What the file should hold, for errors.

    Raises
    ------
    UserError
        There is no such file, it is not YAML in UTF-8, a key is given twice, or the whole is not of ``kind``.
    """
    if not os.path.lexists(path):
        raise UserError(str(path), "no such file", f"{needed} is needed")
    try:
        opened = loader(read_text(path))
        opened.name = str(path)
        opened.deep_construct = True  # so that a value that contains itself is an error
        data = opened.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise UserError(str(path), f"not readable as YAML: {problem}", "fix the file") from None
    if not isinstance(data, kind):
        raise UserError(str(path), f"holds a {type(data).__name__}", f"{needed} is needed")
    return data
