"""The study as typed data: YAML files, checked before anything runs.

Flows in: YAML files (later ones are merged over earlier ones) or the dictionary that Snakemake has merged. Flows out: a
frozen :class:`Study`. Each key carries its description, unit and source in the schema and nowhere else;
``docs/configuration.md`` is generated from it. This package imports nothing heavy: every job of a cluster parses it twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from augbench.config.base import SLUG, Section, key
from augbench.config.corpus import Corpus, EmbeddingCorpus, MiniatureCorpus, OwnCorpus, PublishedCorpus
from augbench.config.data import Dataset, FashionMnist
from augbench.config.methods import DrawMethod, Method, PersonaliseMethod, RealMethod, RetrieveMethod
from augbench.config.models import Clip, Diffusion
from augbench.config.pretrain import Pretrain
from augbench.config.problems import ConfigError, describe
from augbench.config.stages import Augmentation, Classifier, Execution, Finetune, Leakage, Report, Retrieval
from augbench.errors import UserError

DEMO = "config/demo.yaml"  # the study that runs where none is given, relative to the project


class Study(Section):
    """A study: one data set, one diffusion model, one corpus, and the methods to compare."""

    study: str = key(..., "Name of the study; results go to results/{study}.", pattern=SLUG)
    seed: int = key(0, "Every random choice derives from it.", ge=0)
    dataset: Dataset = key(..., "The target data set.")
    diffusion: Diffusion = key(..., "The diffusion model.")
    clip: Clip = key(..., "The CLIP model.")
    corpus: Corpus | None = key(None, "The pre-training corpus that retrieval searches; needed by `retrieve`, and by pre-training (miniature).")
    methods: dict[str, Method] = key(..., "Rows of the comparison by name; `null` in an overlay removes one.", source="paper, section 3.1", min_length=1)
    augmentation: Augmentation = key(..., "How much is added.")
    classifier: Classifier = key(Classifier(), "The classifier.")
    finetune: Finetune = key(Finetune(), "How the `personalise` methods are fine-tuned.")
    retrieval: Retrieval = key(Retrieval(), "What all `retrieve` methods share.")
    leakage: Leakage = key(Leakage(), "The guard against near-duplicates of validation and test images.")
    report: Report = key(Report(), "What stands beside our numbers.")
    execution: Execution = key(Execution(), "How the work is cut into jobs; changes no result.")
    pretrain: Pretrain = key(Pretrain(), "How the miniature's models are made (`snakemake pretrain`).")

    @model_validator(mode="after")
    def _methods_have_what_they_need(self) -> Study:
        import re

        folders = [section.downloads for section in (self.dataset, self.corpus) if isinstance(section, FashionMnist | MiniatureCorpus)]
        if len(set(folders)) > 1:
            raise ValueError(f"corpus.downloads: {folders[1]!r} differs from dataset.downloads; give the same folder")
        for name, method in self.methods.items():
            if not re.fullmatch(SLUG, name):
                raise ValueError(f"methods.{name}: a name may hold a-z, 0-9 and _ only")
            if isinstance(method, RetrieveMethod):
                self._check_retrieval(name, method)
            if isinstance(method, DrawMethod):
                self._check_draw(name, method)
            if isinstance(method, PersonaliseMethod):
                epochs = [value for value in method.candidates if isinstance(value, int)]
                if max(epochs, default=0) > self.finetune.max_epochs:
                    raise ValueError(f"methods.{name}.candidates: epoch {max(epochs)} is after finetune.max_epochs, {self.finetune.max_epochs}")
            if isinstance(method, RealMethod) and method.split == "train2x" and 3 * self.dataset.train_fraction > 1:
                raise ValueError(f"methods.{name}.split: train2x needs three disjoint train_fractions; {self.dataset.train_fraction:g} leaves no room")
        return self

    def _check_retrieval(self, name: str, method: RetrieveMethod) -> None:
        if self.corpus is None:
            raise ValueError(f"methods.{name}: retrieval needs a corpus section")
        if isinstance(self.corpus, PublishedCorpus) and self.corpus.clip != self.clip.model:
            raise ValueError(
                f"corpus.clip: {self.corpus.clip!r} differs from clip.model, {self.clip.model!r}: queries and images must go through the same model"
            )
        exact = self.corpus.search == "exact" if isinstance(self.corpus, OwnCorpus) else isinstance(self.corpus, EmbeddingCorpus)
        if method.corpus_share < 1 and not exact:
            raise ValueError(f"methods.{name}.corpus_share: a server or an index searches all of its corpus; allowed: 1")

    def _check_draw(self, name: str, method: DrawMethod) -> None:
        pool = self.methods.get(method.pool)
        if pool is None or isinstance(pool, RealMethod | DrawMethod):
            rows = [other for other, row in self.methods.items() if not isinstance(row, RealMethod | DrawMethod)]
            raise ValueError(f"methods.{name}.pool: allowed: a row that makes or retrieves images: {', '.join(rows) or 'there is none'}")
        if isinstance(pool, RetrieveMethod):
            if method.images_per_class is not None:
                raise ValueError(f"methods.{name}.images_per_class: methods.{method.pool}.images_per_class says how many are retrieved")
            return
        for key_name in ("ranked", "may_fall_short"):
            if getattr(method, key_name):
                raise ValueError(f"methods.{name}.{key_name}: goes with a row that retrieves; {method.pool} generates its images")
        if method.images_per_class is not None and self.augmentation.images_per_class is None:
            raise ValueError(f"methods.{name}.images_per_class: goes with augmentation.images_per_class only")

    def parts_drawn(self, name: str) -> int:
        """Shard files per class that the training sets of row ``name`` are drawn from."""
        method = self.methods[name]
        if isinstance(method, RetrieveMethod) or (isinstance(method, DrawMethod) and isinstance(self.methods[method.pool], RetrieveMethod)):
            return 1
        return (
            self.augmentation.parts_for(method.images_per_class, method.added_per_training_image) if isinstance(method, DrawMethod) else self.augmentation.parts
        )

    def parts_made(self, name: str) -> int:
        """Shard files per class that row ``name`` makes: for itself, and for rows that draw from it."""
        drawing = [other for other, row in self.methods.items() if isinstance(row, DrawMethod) and row.pool == name]
        return max(map(self.parts_drawn, (name, *drawing)))

    @property
    def miniature(self) -> MiniatureCorpus | None:
        """The miniature corpus, where it is this study's."""
        return self.corpus if isinstance(self.corpus, MiniatureCorpus) else None


def merge(base: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """``overlay`` over ``base``, mapping by mapping, as Snakemake merges several ``--configfile``."""
    merged = dict(base)
    for name, value in overlay.items():
        both = isinstance(merged.get(name), dict) and isinstance(value, Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, else :class:`UserError`."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(str(path), "no such file", "give a study's YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(str(path), "not readable as YAML: " + " ".join(str(error).split()), "fix the file") from None
    if not isinstance(data, dict):
        raise UserError(str(path), f"holds a {type(data).__name__}", "a mapping of config keys is needed")
    return data


def load_study(paths: Sequence[str | Path]) -> Study:
    """Merge the files, later over earlier, and check the result; raises :class:`UserError`."""
    merged: dict[str, Any] = {}
    for path in paths:
        merged = merge(merged, read_yaml(path))
    return parse_study(merged)


def parse_study(data: Mapping[str, Any]) -> Study:
    """Check a merged config; every problem is one line of the :class:`UserError`.

    Strict, as JSON: YAML's ``lr: "0.1"`` and ``seed: yes`` are mistakes, which pydantic would convert otherwise.
    """
    if isinstance(data.get("methods"), Mapping):  # null in an overlay removes a row
        data = {**data, "methods": {name: row for name, row in data["methods"].items() if row is not None}}
    try:
        return Study.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(list(describe(error, Study))) from None
