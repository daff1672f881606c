"""Print ``resources/open_clip.yaml``: the weights that the installed open_clip publishes on the Hub.

``python -m augbench.models.open_clip_table > resources/open_clip.yaml`` after an update of open_clip.
"""

from __future__ import annotations

from typing import Any

import yaml

HEADER = """\
# The weights that open_clip publishes on the Hub, by architecture and tag, so that a config is read without importing open_clip. Made by
# `python -m augbench.models.open_clip_table`; a test compares it with the installed open_clip.
# weights: name of the file, if not open_clip's usual one. quick_gelu: trained with that activation. The rest: preprocessing, where it is not OpenAI's.
"""


def published_by_open_clip() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the table of :func:`augbench.config.clips.published`, from the installed open_clip."""
    from open_clip import get_pretrained_cfg, list_pretrained
    from open_clip.transform import PreprocessCfg

    usual = PreprocessCfg()
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for architecture, tag in list_pretrained():
        config = get_pretrained_cfg(architecture, tag)
        if not config.get("hf_hub"):
            continue
        repository, _, file = config["hf_hub"].rpartition("/")
        entry: dict[str, Any] = {"repository": repository}
        if file:
            entry["weights"] = file
        if config.get("quick_gelu"):
            entry["quick_gelu"] = True
        for name in ("mean", "std", "interpolation", "resize_mode"):
            if config[name] != getattr(usual, name):
                value = config[name]
                entry[name] = list(value) if isinstance(value, tuple) else value
        table.setdefault(architecture, {})[tag] = entry
    return table


if __name__ == "__main__":
    rows = published_by_open_clip()
    lines = [HEADER]
    for name in sorted(rows):
        lines.append(f"{name}:\n")
        for label, fields in rows[name].items():
            text = yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, width=10**6).strip()
            lines.append(f"  {label}: {text}\n")
    print("".join(lines), end="")
