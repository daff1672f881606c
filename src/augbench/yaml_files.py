"""YAML files as users write them: a key given twice is an error, and texts can stay texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from augbench.errors import UserError

_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


class UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, except that a key given twice is an error. PyYAML keeps the last, silently."""

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
    try:
        opened = loader(Path(path).read_text(encoding="utf-8"))
        opened.name = str(path)
        data = opened.get_single_data()
    except FileNotFoundError:
        raise UserError(str(path), "no such file", f"{needed} is needed") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        problem = " ".join(str(error).split())
        raise UserError(str(path), f"not readable as YAML: {problem}", "fix the file") from None
    if not isinstance(data, kind):
        raise UserError(str(path), f"holds a {type(data).__name__}", f"{needed} is needed")
    return data
