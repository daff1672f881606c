"""``augbench clean``: show what no study uses in the store, and free it on request."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from augbench.artifacts.store import Store, open_store
from augbench.config.study import Study
from augbench.runtime.launcher import LOCKS, acquire_run_lock

FINISHED = "tables/table1.csv"  # a study without it may still ask for what it once used


def clean(study: Study, delete: bool = False) -> str:
    """Describe the store by kind of artifact, and delete what no study uses if ``delete``.

    An artifact is in use if a file that it was published at still exists, or if its study's results exist and
    need it without publishing it, or if its study is unfinished.

    Raises
    ------
    UserError
        A run is under way in this folder, and ``delete`` is true.
    """
    store = open_store(study)
    if delete:
        for folder in sorted(LOCKS.glob("*/")):
            acquire_run_lock(folder.name)
    unused = set(unused_artifacts(store))
    sizes: dict[str, Counter[str]] = {}
    for path in store.artifacts():
        kind = sizes.setdefault(path.relative_to(store.root).parts[0], Counter())
        what = "unused" if path in unused else "used"
        kind.update({f"{what} files": 1, f"{what} bytes": path.stat().st_size})
    lines = [f"{'kind':<20}{'used':>8}{'MB':>10}{'unused':>8}{'MB':>10}"]
    for name, kind in [*sorted(sizes.items()), ("all", sum(sizes.values(), Counter()))]:
        cells = [
            f"{kind[f'{what} files']:>8,}{kind[f'{what} bytes'] / 1e6:>10,.1f}" for what in ("used", "unused")
        ]
        lines.append(f"{name:<20}{''.join(cells)}")
    if not sizes:
        lines = [f"{store.root}: empty"]
    elif delete:
        for path in unused:
            path.unlink(missing_ok=True)
        store.compact()
        lines.append(f"{store.root}: {len(unused):,} unused files deleted")
    elif unused:
        lines.append(f"{store.root}: `augbench clean --delete` deletes the unused files")
    return "\n".join(lines)


def unused_artifacts(store: Store) -> list[Path]:
    """Artifacts that no study uses, nor may use once it goes on."""
    used = store.uses(live=lambda use: use.is_live or _is_unfinished(Path(use.study)))
    return [path for path in store.artifacts() if path.relative_to(store.root).as_posix() not in used]


def _is_unfinished(study: Path) -> bool:
    return study.is_dir() and not (study / FINISHED).exists()
