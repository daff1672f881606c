"""Differences between the configs of studies, the factor that varies, and whether they ask one question."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from augbench.commands.compare.studies import Finished, each
from augbench.errors import some
from augbench.plan.recipes import COMPUTING, DOWNLOAD_LIMITS, EMBEDDED
from augbench.report.contrasts import baseline_of
from augbench.report.render import NONE

# sections and keys that say how a study is computed, stored or shown, not what it finds
NO_MATTER = (
    *("study", "report", "retrieval.download"),
    *(section for section, keys in COMPUTING.items() if keys is True),
    *(f"{section}.{name}" for section, keys in COMPUTING.items() if keys is not True for name in keys),
    *(f"corpus.{name}" for name in EMBEDDED),
)
MATTER = {f"retrieval.download.{name}" for name in DOWNLOAD_LIMITS}
NO_MATTER_ENDS = (".downloads", "mirrors", "_weights", ".label", ".family")
# keys of the data set that vary the training images, and that the test images tell better
OF_TRAINING = {"train_fraction", "shots", "imbalance", "validation_fraction", "validation_shots", "draws"}
OF_TEST = {"test_fraction", "test_images_per_class", "held_out_like"}
REPEATS = ("seed", "dataset.draws", "augmentation.resamples")  # no factor: they repeat the same study
ABSENT, ROW = NONE, "a row"


@dataclass(frozen=True)
class Key:
    """A key of the config that differs: its values as text, by study."""

    key: str
    values: dict[str, str]


@dataclass(frozen=True)
class Factor:
    """What the studies vary, if it is one number: the key, and its value in every study."""

    key: str
    values: dict[str, float]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by the path of their key, such as ``classifier.lr``; lists are values."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found


def matters(path: str) -> bool:
    """Whether a key may change what a study finds."""
    ours = any(path == name or path.startswith(f"{name}.") for name in NO_MATTER)
    return path in MATTER or (not ours and not path.endswith(NO_MATTER_ENDS))


def differing(studies: Sequence[Finished]) -> dict[str, dict[str, Any]]:
    """Values of every key that differs and matters, by key and study; :data:`ABSENT` without the key.

    A row that some studies lack is one key, ``methods.{row}``.
    """
    configs = {study.name: flat(study.config) for study in studies}
    shared = {row for row in studies[0].rows if all(row in study.rows for study in studies)}
    for study in studies:
        own = configs[study.name]
        lone = [path for path in own if path.startswith("methods.") and path.split(".")[1] not in shared]
        for path in lone:
            del own[path]
        configs[study.name] = own | {f"methods.{row}": ROW for row in study.rows if row not in shared}
    paths = dict.fromkeys(path for config in configs.values() for path in config if matters(path))
    found = {path: {name: config.get(path, ABSENT) for name, config in configs.items()} for path in paths}
    return {path: values for path, values in found.items() if len({*map(repr, values.values())}) > 1}


def shown(value: Any) -> str:
    """A value of the config as a user would write it."""
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def key_rows(differing: Mapping[str, Mapping[str, Any]]) -> list[Key]:
    """The keys that differ, with their values as text."""
    return [
        Key(path, {study: shown(value) for study, value in values.items()})
        for path, values in differing.items()
    ]


def factor_of(differing: Mapping[str, Mapping[str, Any]]) -> Factor | None:
    """The one number that the studies vary; None if they vary anything else, besides rows and repetitions."""
    keys = [
        path
        for path in differing
        if path not in REPEATS and not (path.startswith("methods.") and path.count(".") == 1)
    ]
    if len(keys) != 1:
        return None
    values = differing[keys[0]]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    if not numeric or len({*values.values()}) < len(values):
        return None
    return Factor(keys[0], {study: float(value) for study, value in values.items()})


def warnings_of(studies: Sequence[Finished], differing: Mapping[str, Any]) -> list[str]:
    """Sentences on differences that make studies answer different questions."""
    first = studies[0]
    named = {path.removeprefix("dataset."): path for path in differing if path.startswith("dataset.")}
    found = []
    if data := [path for name, path in named.items() if name not in OF_TRAINING | OF_TEST]:
        found.append(f"The data sets differ ({some(data)}).")
    for other in studies[1:]:
        found += _between(first, other)
    found += _settings(studies)
    found += _seen(studies)
    return found


def _seen(studies: Sequence[Finished]) -> Iterator[str]:
    """Yield a sentence on classifiers whose first weights have seen labels."""
    if any(study.study.classifier.begins_trained for study in studies):
        labels = each(studies, lambda study: study.study.classifier.labels_seen or "none")
        listed = "; ".join(f"{seen} in {name}" for name, seen in labels.items())
        yield (
            f"Classifiers begin with weights trained before. Labels that these have seen: {listed}. A study then"
            " says what added images do for such a network."
        )


def _between(first: Finished, other: Finished) -> Iterator[str]:
    if first.class_ids != other.class_ids:
        only = [len({*one.class_ids} - {*two.class_ids}) for one, two in ((other, first), (first, other))]
        yield (
            f"The classes differ: {other.name} has {only[0]} that {first.name} lacks, and lacks {only[1]} of "
            "it."
            if any(only)
            else f"The classes of {other.name} are in another order than those of {first.name}."
        )
    elif not first.tested_like(other):
        yield (
            f"The test images of {other.name} are others than those of {first.name}: their accuracies also"
            " differ by the images."
        )
    baselines = [baseline_of(study.table) for study in (first, other)]
    if baselines[0] != baselines[1]:
        rows = [NONE if row is None else row for row in baselines]
        yield (
            f"The baseline is row {rows[0]} in {first.name} and row {rows[1]} in {other.name}: differences"
            " to it are not comparable."
        )


def _settings(studies: Sequence[Finished]) -> Iterator[str]:
    """Yield sentences on settings of repetitions and tests that differ."""
    settings = {
        "dataset.draws": lambda study: study.study.dataset.draws,
        "augmentation.resamples": lambda study: study.study.augmentation.resamples,
        "seed": lambda study: study.study.seed,
        "report.error": lambda study: study.study.report.error,
        "report.margin": lambda study: study.study.report.margin,
    }
    for key, value in settings.items():
        values = each(studies, value)
        if len({*values.values()}) > 1:
            listed = some([f"{one} in {name}" for name, one in values.items()])
            used = f" That of {studies[0].name} is used here." if key.startswith("report") else ""
            yield f"{key} differs: {listed}.{used}"
