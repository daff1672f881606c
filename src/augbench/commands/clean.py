"""``augbench clean``: show what no study uses in the store, and free it on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from contextlib import nullcontext
from pathlib import Path

from augbench.artifacts.store import Store, open_store
from augbench.config.study import Study


def clean(study: Study, delete: bool = False) -> str:
    """Describe the store by kind of artifact, and delete what no study uses if ``delete``.

    An artifact is in use if a file that it was published at still exists, or if its study's results exist
    and need it without publishing it, or if its study is unfinished. A finished study needs no latents.
    Files that a killed process was writing are deleted with the unused ones.

    Raises
    ------
    UserError
        ``delete`` is true, and a run is using the store, or nobody can tell.
    """
    store = open_store(study)
    with store.alone() if delete else nullcontext():
        files, used = list(store.artifacts(unfinished=delete)), store.uses.needed()
        unused = [path for path in files if store.name(path) not in used]
        lines = _by_kind(store, files, set(unused))
        if delete:
            for path in unused:
                path.unlink(missing_ok=True)
            store.uses.compact()
            lines.append(f"{store.root}: {len(unused):,} unused files deleted")
        elif unused:
            lines.append(f"{store.root}: `augbench clean --delete` deletes the unused files")
    return "\n".join(lines)


def _by_kind(store: Store, files: Iterable[Path], unused: Container[Path]) -> list[str]:
    """Table of numbers and sizes of used and unused files, by kind of artifact."""
    sizes: dict[str, Counter[str]] = {}
    for path in files:
        try:
            size = path.stat().st_size
        except FileNotFoundError:  # a run freed it meanwhile
            continue
        what = "unused" if path in unused else "used"
        kind = sizes.setdefault(path.relative_to(store.root).parts[0], Counter())
        kind.update({f"{what} files": 1, f"{what} bytes": size})
    if not sizes:
        return [f"{store.root}: empty"]
    lines = [f"{'kind':<20}{'used':>8}{'MB':>10}{'unused':>8}{'MB':>10}"]
    for name, kind in [*sorted(sizes.items()), ("all", sum(sizes.values(), Counter()))]:
        cells = [
            f"{kind[f'{what} files']:>8,}{kind[f'{what} bytes'] / 1e6:>10,.1f}" for what in ("used", "unused")
        ]
        lines.append(f"{name:<20}{''.join(cells)}")
    return lines
