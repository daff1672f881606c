"""The study as typed data, read from YAML files and checked before anything runs.

Input: YAML files, of which later ones are merged over earlier ones, or the dictionary that Snakemake has
merged. Output: a frozen :class:`Study`. The description, unit and source of each key are in the schema only;
``docs/configuration.md`` is generated from it. This package imports nothing heavy, because every job of a
cluster parses the study twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError, model_validator

from augbench.config.base import LONGEST_NAME, SLUG, Section, key
from augbench.config.classifier import Classifier
from augbench.config.clips import same_clip
from augbench.config.corpus import Corpus, EmbeddingCorpus, MiniatureCorpus, OwnCorpus, PublishedCorpus
from augbench.config.data import Dataset, FashionMnist
from augbench.config.draws import depends_on_training_images, drawn_name, fold, unfold_rows
from augbench.config.generators import check_generators
from augbench.config.hub import HubModel, hub_model
from augbench.config.methods import (
    AddingMethod,
    ChooseMethod,
    DrawMethod,
    Keep,
    Method,
    PersonaliseMethod,
    RealMethod,
    RetrieveMethod,
    SampleMethod,
)
from augbench.config.models import Clip, Diffusion, with_own_defaults
from augbench.config.pretrain import Pretrain
from augbench.config.problems import ConfigError, describe, shown
from augbench.config.stages import Augmentation, Execution, Finetune, Leakage, Report, Retrieval
from augbench.config.use import Use
from augbench.errors import UserError
from augbench.seeds import derive_seed
from augbench.texts import has_control_characters
from augbench.yaml_files import UniqueKeyLoader, load_yaml

# the study that runs if none is given, relative to the project
DEMO = "config/demo.yaml"
LARGEST = 2**63 - 1
Row = TypeVar("Row")


class Study(Section):
    """A study: one data set, one diffusion model, one corpus, and the methods to compare."""

    study: str = key(
        ..., "Name of the study; its results go to results/{study}.", pattern=SLUG, max_length=LONGEST_NAME
    )
    seed: int = key(0, "Seed of the study, from which every random choice derives.", ge=0)
    dataset: Dataset = key(..., "The target data set.")
    diffusion: Diffusion = key(..., "The diffusion model and its sampling.")
    generators: dict[str, Diffusion] = key(
        {},
        "Further diffusion models by name (a-z, 0-9 and _), for rows of mechanism `sample` or "
        "`personalise` that name one as their `generator`.",
        new=True,
    )
    clip: Clip = key(..., "The CLIP model.")
    corpus: Corpus | None = key(
        None,
        "The pre-training corpus that retrieval searches; required by `retrieve` methods, and by "
        "pre-training (miniature).",
    )
    rows: list[str] | None = key(
        None,
        "Names of the rows that an overlay keeps of `methods`, its own among them; the others go, and the"
        " contrasts that name them. null: all.",
        min_length=1,
        new=True,
    )
    methods: dict[str, Method] = key(
        ...,
        "Rows of the comparison by name (a-z, 0-9 and _); `null` in an overlay removes a row, and the"
        " contrasts that name it.",
        source="paper, section 3.1",
        min_length=1,
    )
    augmentation: Augmentation = key(..., "Number of added images.")
    classifier: Classifier = key(Classifier(), "The classifier.")
    finetune: Finetune = key(Finetune(), "Fine-tuning of the `personalise` methods.")
    retrieval: Retrieval = key(Retrieval(), "Settings of all `retrieve` methods.")
    leakage: Leakage = key(
        Leakage(), "The search for near-duplicates of training, validation and test images."
    )
    report: Report = key(Report(), "Contents of the tables and the report.")
    execution: Execution = key(
        Execution(), "Sizes of jobs and batches, and the hardware; never changes results."
    )
    pretrain: Pretrain = key(Pretrain(), "Training of the miniature's models (`snakemake pretrain`).")

    @model_validator(mode="after")
    def _methods_have_what_they_need(self) -> Study:
        folders = [
            section.downloads
            for section in (self.dataset, self.corpus)
            if isinstance(section, FashionMnist | MiniatureCorpus)
        ]
        if len(set(folders)) > 1:
            raise ValueError(
                f"corpus.downloads: {folders[1]!r} differs from dataset.downloads; give the same folder"
            )
        for name in self.rows or ():
            if name not in self.methods:
                raise ValueError(f"rows: {name!r} is no row; allowed: names of `methods`")
        for name, method in self.methods.items():
            if not re.fullmatch(SLUG, name):
                raise ValueError(f"methods.{name}: a name may contain a-z, 0-9 and _ only")
            if len(name) > LONGEST_NAME:
                raise ValueError(f"methods.{name}: allowed: a name of at most {LONGEST_NAME} characters")
            if self.row_and_draw(name)[1]:
                raise ValueError(
                    f"methods.{name}: with dataset.draws, a name may not end in _draw and a number"
                )
            share = self.dataset.train_fraction
            if method.real_split == "train2x" and share is not None and 3 * share > 1:
                raise ValueError(
                    f"methods.{name}.split: train2x needs three disjoint shares of size train_fraction; "
                    f"{share:g} leaves no room"
                )
        for name, added in self.augmented.items():
            made = self.augmentation.images_per_class
            if added.fill_to is not None and made is None and self.pool_row(name) not in self.retrieved:
                raise ValueError(
                    f"methods.{name}.fill_to: goes with augmentation.images_per_class only, because a pool of"
                    " images per training image has fewest where most are missing"
                )
        for name, retrieved in self.retrieved.items():
            self._check_retrieval(name, retrieved)
        for name, drawn in self.drawn.items():
            self._check_draw(name, drawn)
        self._check_edges()
        self._settle_families()
        check_generators(self)
        for name, learned in self.personalised.items():
            epochs = [value for value in learned.candidates if isinstance(value, int)]
            if max(epochs, default=0) > self.finetune.max_epochs:
                raise ValueError(
                    f"methods.{name}.candidates: epoch {max(epochs)} is after finetune.max_epochs, "
                    f"{self.finetune.max_epochs}"
                )
        for name, method in self.methods.items():
            self._check_use(name, method.use)
        self._check_contrasts()
        if self.classifier.arch == "clip" and self.clip.named.library == "open_clip":
            raise ValueError(
                f"classifier.arch: goes with a CLIP in transformers' layout; clip.model is {self.clip.model!r};"
                " allowed with it: the other networks, such as timm:NAME with `pretrained`"
            )
        groups, processes = self.classifier.batch_norm_groups, self.execution.processes
        if processes is not None and groups > 1 and groups % processes:
            allowed = ", ".join(str(count) for count in range(1, groups + 1) if groups % count == 0)
            raise ValueError(
                f"execution.processes: allowed with classifier.batch_norm_groups: {groups}: {allowed}"
            )
        for place, name in enumerate(self.report.class_changes or ()):
            if name not in self.augmented:
                raise ValueError(
                    f"report.class_changes.{place}: allowed: a row that adds images: "
                    f"{', '.join(self.augmented)}"
                )
        return self

    def _check_contrasts(self) -> None:
        rows = ", ".join(self.methods)
        for place, contrast in enumerate(self.report.contrasts):
            where = f"report.contrasts.{place}"
            for name in ("row", "against"):
                if getattr(contrast, name) not in self.methods:
                    raise ValueError(f"{where}.{name}: allowed: a row of methods: {rows}")
            if contrast.row == contrast.against:
                raise ValueError(f"{where}.against: a row is compared with another row; allowed: {rows}")
        names = [contrast.name for contrast in self.report.contrasts]
        for place, title in enumerate(names):
            if title is not None and title in names[:place]:
                raise ValueError(f"report.contrasts.{place}.name: allowed: a name that no other contrast has")
        pairs = [(contrast.row, contrast.against) for contrast in self.report.contrasts]
        for place, (row, against) in enumerate(pairs):
            if {(row, against), (against, row)} & {*pairs[:place]}:
                raise ValueError(
                    f"report.contrasts.{place}.row: these two rows are compared already; each pair is "
                    "allowed once"
                )

    def _check_retrieval(self, name: str, method: RetrieveMethod) -> None:
        if self.corpus is None:
            raise ValueError(f"methods.{name}: retrieval needs a corpus section")
        if isinstance(self.corpus, PublishedCorpus) and not same_clip(self.corpus.clip, self.clip.model):
            raise ValueError(
                f"corpus.clip: {self.corpus.clip!r} differs from clip.model, {self.clip.model!r}; "
                "queries and images must go through the same model"
            )
        if method.corpus_share < 1 and not self.searches_exactly:
            raise ValueError(
                f"methods.{name}.corpus_share: a server or an index searches all of its corpus; allowed: 1"
            )
        if self.execution.search_jobs > 1 and not self.searches_exactly:
            raise ValueError("execution.search_jobs: a server or an index is searched by one job; allowed: 1")

    @property
    def searches_exactly(self) -> bool:
        """Whether retrieval compares its queries with every vector of files of embeddings."""
        if isinstance(self.corpus, OwnCorpus):
            return self.corpus.search == "exact"
        return isinstance(self.corpus, EmbeddingCorpus)

    def _check_draw(self, name: str, method: DrawMethod) -> None:
        for pool in method.pool_rows:
            if pool not in self.pooled:
                where = f"{name}.pool" if method.pools is None else f"{name}.pools.{pool}"
                rows = ", ".join(self.pooled) or "there is none"
                raise ValueError(f"methods.{where}: allowed: a row that makes or retrieves images: {rows}")
        generating = [pool for pool in method.pool_rows if pool in self.generated]
        if not generating and method.images_per_class is not None:
            raise ValueError(
                f"methods.{name}.images_per_class: methods.{method.pool_rows[0]}.images_per_class says "
                "how many are retrieved"
            )
        if generating and method.ranked:
            raise ValueError(
                f"methods.{name}.ranked: goes with a row that retrieves; {generating[0]} generates its images"
            )
        if len(generating) == len(method.pool_rows) and method.may_fall_short:
            raise ValueError(
                f"methods.{name}.may_fall_short: goes with a row that retrieves; "
                f"{generating[0]} generates its images"
            )
        if method.images_per_class is not None and self.augmentation.images_per_class is None:
            raise ValueError(f"methods.{name}.images_per_class: goes with augmentation.images_per_class only")
        if method.keep is not None:
            self._check_filter(f"methods.{name}.keep", method.keep)

    def _check_use(self, name: str, use: Use) -> None:
        if self.classifier.train == "probe" and (use.mixes or use.head_only):
            wrong = next(part for part in ("mixup", "cutmix", "head_only") if getattr(use, part))
            raise ValueError(
                f"methods.{name}.use.{wrong}: goes with classifier.train: all or head; a probe sees features"
                " of unmixed images and has one layer"
            )
        if not use.real_at_end:
            return
        where = f"methods.{name}.use.real_at_end"
        if self.classifier.schedule == "plateau":
            raise ValueError(
                f"{where}: goes with classifier.schedule: steps; plateau does not know which steps are the "
                "last"
            )
        total = self.classifier.total_steps
        if not 0 < use.end_steps(total) < total:
            raise ValueError(
                f"{where}: allowed: a share of {total} steps that is neither none nor all of them"
            )

    def _check_filter(self, where: str, keep: Keep) -> None:
        if keep.by == "classifier" and (keep.row or self.first_real) not in self.real:
            if keep.row is None:
                raise ValueError(
                    f"{where}.by: classifier needs a row {{mechanism: real}} with split: train, or keep.row"
                )
            raise ValueError(f"{where}.row: allowed: a row of mechanism real: {', '.join(self.real)}")

    def _settle_families(self) -> None:
        """Give rows that mix, filter or choose the family of the rows that they are made of."""
        composed = {name: row.pool_rows for name, row in self.drawn.items() if row.is_composed}
        chosen = {name: row.among for name, row in self.choosing.items()}
        for name, upstream in (*composed.items(), *chosen.items()):
            row = self.methods[name]
            if row.family is None and not row.shuffles_labels:
                groups = {self.methods[other].group for other in upstream}
                family = groups.pop() if len(groups) == 1 else "hybrid"
                self.methods[name] = row.model_copy(update={"family": family})

    def _check_edges(self) -> None:
        """Check that rows are built on rows that have images, and none on itself."""
        usable = [name for name, row in self.augmented.items() if not row.shuffles_labels]
        for name, row in self.methods.items():
            for where, upstream in row.edges.items():
                if upstream not in usable:
                    rows = ", ".join(other for other in usable if other != name) or "there is none"
                    raise ValueError(
                        f"methods.{name}.{where}: allowed: a row with images of their own classes: {rows}"
                    )
        for name, row in self.methods.items():
            for where, upstream in row.edges.items():
                if path := self._way(upstream, name):
                    raise ValueError(
                        f"methods.{name}.{where}: {name} would be built on itself ({name} -> "
                        f"{' -> '.join(path)}); allowed: a row that is not built on {name}"
                    )

    def _way(self, start: str, end: str, seen: tuple[str, ...] = ()) -> list[str]:
        """Rows from ``start`` along the rows that each is built on to ``end``; empty if there is no way."""
        if start == end:
            return [end]
        for upstream in self.methods[start].built_on if start not in seen else ():
            if way := self._way(upstream, end, (*seen, start)):
                return [start, *way]
        return []

    def depends_on_training_images(self, name: str) -> bool:
        """Whether other training images give a row, or any row that it is built on, other images."""
        return depends_on_training_images(self.methods, name)

    def all_built_on(self, name: str) -> list[str]:
        """Rows that a row is built on, directly or through others, in the order of the config."""
        found: dict[str, None] = {}
        waiting = [*self.methods[name].built_on]
        while waiting:
            if (upstream := waiting.pop()) not in found:
                found[upstream] = None
                waiting += self.methods[upstream].built_on
        return [other for other in self.methods if other in found]

    def guard_level(self, name: str) -> int:
        """Place of a row in the leakage guard's order, from 0.

        Rows that make images from other rows' images are searched after these, where near-duplicates are
        dropped: an image with one is not started or learned from. A row that draws needs no search before it.
        """
        row = self.methods[name]
        before = max(map(self.guard_level, row.built_on), default=-1)
        return max(0, before + row.generates_images)

    @property
    def classifier_hub(self) -> HubModel | None:
        """The classifier's first weights on the Hub, or None if they are random, local, or CLIP's."""
        ours = self.classifier
        return hub_model(
            ours.pretrained or "", ours.pretrained_revision, self.clip.mirrors, self.clip.downloads
        )

    @property
    def classifier_weights(self) -> str | None:
        """File or folder of the classifier's own first weights, which is there once they are fetched."""
        return self.classifier_hub.folder if self.classifier_hub else self.classifier.pretrained

    @property
    def first_real(self) -> str | None:
        """First row of the training images alone, whose classifier filters by default; None without any."""
        return next((name for name, row in self.real.items() if row.split == "train"), None)

    def filtering_row(self, name: str) -> str | None:
        """The row whose classifier filters the pools of row ``name``; None if no classifier does."""
        keep, draw = self.filters.get(name), self.row_and_draw(name)[1]
        if keep is None or keep.by != "classifier":
            return None
        row = keep.row or self.first_real
        return None if row is None else drawn_name(row, draw)

    def pools_of(self, name: str) -> tuple[str, ...]:
        """Rows whose images row ``name`` adds or may add: itself, or the rows that it draws from."""
        if name in self.choosing:
            return tuple(
                dict.fromkeys(pool for row in self.choosing[name].among for pool in self.pools_of(row))
            )
        return self.methods[name].pool_rows or (name,)

    def pool_row(self, name: str) -> str:
        """Name of the row whose images ``name`` adds: ``name`` itself, or the first that it draws from."""
        return self.pools_of(name)[0]

    def parts_drawn(self, name: str, pool: str | None = None) -> int:
        """Number of shard files per class that the training sets of row ``name`` are drawn from.

        ``pool`` is one of :meth:`pools_of`; by default the first, the only one except in a mixture.
        """
        if self.methods[pool or self.pool_row(name)].retrieves_images:
            return 1
        if (drawn := self.drawn.get(name)) is None:
            # set 0 is drawn from part 0, and a further draw of the training images has images of its own
            alone = self.dataset.draws > 1 and self.augmentation.resamples == 1
            return 1 if alone and self.depends_on_training_images(name) else self.augmentation.parts
        kept = 1.0 if drawn.keep is None else drawn.keep.share
        return self.augmentation.parts_for(drawn.images_per_class, drawn.added_per_training_image / kept)

    def parts_made(self, name: str) -> int:
        """Number of shard files per class that row ``name`` makes, for itself and rows that draw from it."""
        drawing = [other for other, row in self.drawn.items() if name in row.pool_rows]
        return max(self.parts_drawn(other, name) for other in (name, *drawing))

    @property
    def unfolded(self) -> Study:
        """The study with the rows of all draws of the training images (:mod:`augbench.config.draws`)."""
        if self.dataset.draws == 1 or any(self.row_and_draw(name)[1] for name in self.methods):
            return self
        return self.model_copy(update={"methods": unfold_rows(self.methods, self.dataset.draws)})

    @property
    def folded(self) -> Study:
        """The study with the rows of the config alone; the opposite of :attr:`unfolded`."""
        if self.dataset.draws == 1:
            return self
        rows = {name: row for name, row in self.methods.items() if not self.row_and_draw(name)[1]}
        return self.model_copy(update={"methods": rows})

    def row_and_draw(self, name: str) -> tuple[str, int]:
        """Name in the config of an unfolded row, and the draw of the training images that it belongs to."""
        return fold(name) if self.dataset.draws > 1 else (name, 0)

    def seed_of_draw(self, draw: int) -> int:
        """Seed of all that a draw of the training images draws: the study's own for draw 0."""
        return derive_seed(self.seed, "draw", draw) if draw else self.seed

    def seed_of(self, name: str) -> int:
        """Seed of what an unfolded row draws: that of its draw of the training images."""
        return self.seed_of_draw(self.row_and_draw(name)[1])

    def label(self, name: str) -> str:
        """Name of a row in tables and figures, on one line."""
        return " ".join((self.methods[name].label or "").split()) or name

    def generator_of(self, name: str) -> Diffusion:
        """The diffusion model that makes a row's images, with the study's settings of its sampling."""
        generator = self.methods[name].generator_name
        return self.diffusion if generator is None else self.generators[generator]

    @property
    def used_generators(self) -> dict[str, Diffusion]:
        """Models in ``generators`` that a row names; others are neither fetched nor checked."""
        used = {row.generator_name for row in self.generated.values()}
        return {name: model for name, model in self.generators.items() if name in used}

    # Rows by mechanism, in the order of the config.

    def _rows(self, kind: type[Row]) -> dict[str, Row]:
        return {name: row for name, row in self.methods.items() if isinstance(row, kind)}

    @property
    def real(self) -> dict[str, RealMethod]:
        """Baselines: rows that add nothing."""
        return self._rows(RealMethod)

    @property
    def sampled(self) -> dict[str, SampleMethod]:
        """Rows whose images the unchanged diffusion model generates."""
        return self._rows(SampleMethod)

    @property
    def personalised(self) -> dict[str, PersonaliseMethod]:
        """Rows whose images the diffusion model generates after fine-tuning."""
        return self._rows(PersonaliseMethod)

    @property
    def retrieved(self) -> dict[str, RetrieveMethod]:
        """Rows whose images are retrieved."""
        return self._rows(RetrieveMethod)

    @property
    def drawn(self) -> dict[str, DrawMethod]:
        """Rows that draw from other rows' pools."""
        return self._rows(DrawMethod)

    @property
    def filters(self) -> dict[str, Keep]:
        """Filters of the pools that rows draw from."""
        return {name: row.keep for name, row in self.drawn.items() if row.keep is not None}

    @property
    def choosing(self) -> dict[str, ChooseMethod]:
        """Rows that add what the best of other rows adds."""
        return self._rows(ChooseMethod)

    @property
    def generated(self) -> dict[str, SampleMethod | PersonaliseMethod]:
        """Rows whose images the diffusion model generates, fine-tuned or not."""
        return self._rows(SampleMethod | PersonaliseMethod)  # type: ignore[arg-type]

    @property
    def augmented(self) -> dict[str, AddingMethod]:
        """Rows with training sets of their own, drawn from their own or other rows' pools."""
        return self._rows(AddingMethod)  # type: ignore[arg-type]

    @property
    def examined(self) -> dict[str, AddingMethod]:
        """Rows whose images tables and the report examine: those with a pool of their own, mixed or filtered.

        The images of any other row are those of one of these.
        """
        rows = self.augmented.items()
        return {name: row for name, row in rows if not row.pool_rows or row.is_composed}

    @property
    def pooled(self) -> dict[str, SampleMethod | PersonaliseMethod | RetrieveMethod]:
        """Rows with a pool of their own, because they generate or retrieve images.

        The other rows that add images draw from these pools.
        """
        return self._rows(SampleMethod | PersonaliseMethod | RetrieveMethod)  # type: ignore[arg-type]

    @property
    def miniature(self) -> MiniatureCorpus | None:
        """The miniature corpus, or None if the study has another corpus or none."""
        return self.corpus if isinstance(self.corpus, MiniatureCorpus) else None


def merge(base: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``overlay`` over ``base``, mapping by mapping, as Snakemake merges several ``--configfile``."""
    merged = dict(base)
    for name, value in overlay.items():
        both = isinstance(merged.get(name), dict) and isinstance(value, Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; any other file raises :class:`UserError`."""
    data: dict[str, Any] = load_yaml(path, UniqueKeyLoader, dict, "a mapping of config keys")
    return data


def load_study(paths: Sequence[str | Path]) -> Study:
    """Merge the files, later over earlier, and check the result; raises :class:`UserError`."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged = merge(merged, read_yaml(path))
    return parse_study(merged)


def parse_study(data: Mapping[str, Any]) -> Study:
    """Check a merged config; each problem is one line of the :class:`UserError`.

    The check is strict, as for JSON: otherwise pydantic would convert mistakes such as ``lr: "0.1"`` or
    ``seed: yes``.
    """
    if unusable := list(_unusable(data, "config")):
        raise ConfigError(unusable)
    try:
        return Study.model_validate_json(
            json.dumps(_with_own_defaults(_without_removed(data)), default=str), strict=True
        )
    except ValidationError as error:
        raise ConfigError(list(describe(error, Study))) from None


def _unusable(value: Any, where: str) -> Iterator[UserError]:
    """Yield texts that no file can hold, and numbers beyond 64 bits."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        for name in value:
            yield from _unusable(name, f"a key of {where}")
            if not isinstance(name, str | int | float | None):
                yield UserError(f"a key of {where}", shown(name), "allowed: a text; put it in quotes")
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    elif isinstance(value, str) and has_control_characters(value):
        yield UserError(where, shown(value), "allowed: a text without control characters")
    elif isinstance(value, int | float) and LARGEST < abs(value) < math.inf:
        yield UserError(where, shown(value), f"allowed: at most {LARGEST}")
    for name, part in inner:
        yield from _unusable(part, f"{where}.{name}".removeprefix("config."))


def _with_own_defaults(data: dict[str, Any]) -> dict[str, Any]:
    """Give the sections of diffusion models the defaults of their models."""
    found, others = dict(data), data.get("generators")
    if "diffusion" in data:
        found["diffusion"] = with_own_defaults(data["diffusion"])
    if isinstance(others, Mapping):
        found["generators"] = {name: with_own_defaults(section) for name, section in others.items()}
    return found


def _without_removed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out rows that an overlay removes with null or ``rows``, and what report keys say of them."""
    rows, kept, report = data.get("methods"), data.get("rows"), data.get("report")
    if not isinstance(rows, Mapping):
        return dict(data)
    removed = {name for name, row in rows.items() if row is None}
    if isinstance(kept, list):
        removed |= {name for name in rows if name not in kept}
    left = {**data, "methods": {name: row for name, row in rows.items() if name not in removed}}
    if isinstance(report, Mapping) and isinstance(named := report.get("contrasts"), list):
        stays = [
            contrast
            for contrast in named
            if not isinstance(contrast, Mapping)
            or removed.isdisjoint(str(contrast.get(side)) for side in ("row", "against"))
        ]
        left["report"] = report = {**report, "contrasts": stays}
    if isinstance(report, Mapping) and isinstance(shown_rows := report.get("class_changes"), list):
        remaining = [name for name in shown_rows if not isinstance(name, str) or name not in removed]
        left["report"] = {**report, "class_changes": remaining if remaining or not shown_rows else None}
    return left
