"""The plan: all files of a study, as a pure function of its config and class ids (static DAG).

Input: a :class:`~augbench.config.study.Study` and the class ids. Output: paths and blocks, which the rules
use and the tests check. Nothing here reads the data, so ``snakemake -n`` can show the whole study without
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from augbench.config.draws import drawn_name
from augbench.config.methods import GENERATED
from augbench.plan.further import FurtherPaths
from augbench.plan.pools import SELECTED

CLUSTER_ABLATION = "cluster_ablation"
# rows of the paper on full ImageNet and on Caltech256
BEST_ROWS = ("none", "clip_prompts", "pseudoword_dm", "retrieval")
# rows of the paper's Figure 4, B to I (A: real images), and of its Figure 5A
PAPER_FIGURE_4 = (
    "simple_prompt",
    "simple_prompt_no_ws",
    "clip_prompts",
    "ft_conditioning",
    "textual_inversion",
    "imagic",
    "pseudoword_dm",
    "retrieval",
)
PAPER_FIGURE_5A = ("pseudoword_dm", "retrieval")


@dataclass(frozen=True)
class Plan(FurtherPaths):
    """All paths of a study, relative to the working directory: tables, figures, report, and their inputs."""

    @property
    def unfolded(self) -> Plan:
        """The plan with the rows of all draws of the training images (:mod:`augbench.config.draws`)."""
        return Plan(self.study.unfolded, self.class_ids)

    @property
    def folded(self) -> Plan:
        """The plan with the rows of the config alone; the opposite of :attr:`unfolded`."""
        return Plan(self.study.folded, self.class_ids)

    def in_all_draws(self, method: str) -> list[str]:
        """Names of a row in all draws of the training images."""
        return [drawn_name(method, draw) for draw in range(self.study.dataset.draws)]

    def predictions(self, method: str) -> list[str]:
        """Prediction files of all classifiers of a method, in all draws."""
        return [path for name in self.in_all_draws(method) for path in self.drawn_predictions(name)]

    def drawn_predictions(self, method: str) -> list[str]:
        """Prediction files of all classifiers of a row of one draw."""
        return [self.path("classifiers", method, SELECTED, run, "predictions.parquet") for run in self.runs]

    def results(self) -> list[str]:
        """Result file of every classifier, in the order of Table 1."""
        return [
            self.run_files(name, run)[0]
            for method in self.methods
            for name in self.in_all_draws(method)
            for run in self.runs
        ]

    def sets_of(self, method: str) -> list[str]:
        """Manifests of the added images of a method's classifiers, in all draws."""
        return [self.resample(name, run) for name in self.in_all_draws(method) for run in self.runs]

    def sets(self) -> list[str]:
        """Manifests of the added images of every classifier."""
        rows = (*self.study.augmented, *self.study.choosing)
        return [path for method in rows for path in self.sets_of(method)]

    @cached_property
    def table1(self) -> dict[str, str]:
        """Table 1 in its formats."""
        names = {
            "csv": "table1.csv",
            "runs": "table1_runs.csv",
            "md": "table1.md",
            "tex": "table1.tex",
            "txt": "table1.txt",
        }
        return {kind: self.path("tables", name) for kind, name in names.items()}

    @cached_property
    def diagnostics(self) -> dict[str, str]:
        """The diagnostics of the added images in their formats; empty if no row adds images."""
        return (
            {kind: self.path("tables", f"diagnostics.{kind}") for kind in ("csv", "md", "txt")}
            if self.study.pooled
            else {}
        )

    @cached_property
    def table1_text(self) -> dict[str, str]:
        """Table 1 in the formats that begin with the study's answer."""
        return {kind: path for kind, path in self.table1.items() if kind not in ("csv", "runs")}

    @cached_property
    def table1_data(self) -> dict[str, str]:
        """Table 1 in the formats that other tables and figures are made from."""
        return {kind: path for kind, path in self.table1.items() if kind not in self.table1_text}

    @cached_property
    def statistics(self) -> dict[str, str]:
        """The statistics of Table 1 in their formats."""
        return self._table("statistics")

    @cached_property
    def contrasts(self) -> dict[str, str]:
        """The tests of the study's contrasts in their formats."""
        return self._table("contrasts")

    @cached_property
    def components(self) -> dict[str, str]:
        """The components of the spread in their formats."""
        return {kind: self.path("tables", f"components.{kind}") for kind in ("csv", "md")}

    @cached_property
    def class_sizes(self) -> dict[str, str]:
        """The sizes of the classes in their formats; empty if the config says that they are equal."""
        kinds = ("csv", "md") if self.study.dataset.may_be_unbalanced else ()
        return {kind: self.path("tables", f"class_sizes.{kind}") for kind in kinds}

    @cached_property
    def class_groups(self) -> dict[str, str]:
        """Macro, head, middle and tail accuracy in their formats; empty as :attr:`class_sizes`."""
        return self._table("class_groups") if self.study.dataset.may_be_unbalanced else {}

    @property
    def per_class(self) -> str:
        """Path of the accuracies of every classifier per class."""
        return self.path("tables/per_class.parquet")

    def _table(self, name: str) -> dict[str, str]:
        return {kind: self.path("tables", f"{name}.{kind}") for kind in ("csv", "md", "tex")}

    def _figure(self, name: str) -> dict[str, str]:
        return {kind: self.path("figures", f"{name}.{kind}") for kind in ("pdf", "png")}

    @cached_property
    def figure1(self) -> dict[str, str]:
        """Figure 1 in its formats."""
        return self._figure("figure1")

    @cached_property
    def forest(self) -> dict[str, str]:
        """The figure of every row's difference from the baseline; empty without a baseline or other rows."""
        return self._figure("forest") if self._has_baseline and len(self.methods) > 1 else {}

    @cached_property
    def further_table(self) -> dict[str, str]:
        """The table of further tests in its formats; empty without any."""
        kinds = ("csv", "md", "txt") if self.further_tests else ()
        return {kind: self.path("tables", f"further_tests.{kind}") for kind in kinds}

    @cached_property
    def further_figures(self) -> dict[str, dict[str, str]]:
        """A forest plot per further test set, in its formats; none where the study has no forest plot."""
        return {test: self._figure(f"further_{test}") for test in self.further_tests if self.forest}

    @cached_property
    def further_figure_files(self) -> dict[str, str]:
        """Files of :attr:`further_figures`, by set and format."""
        return {
            f"further_{test}_{kind}": path
            for test, files in self.further_figures.items()
            for kind, path in files.items()
        }

    @property
    def _has_baseline(self) -> bool:
        return any(row.group == "real" and row.split == "train" for row in self.study.real.values())

    @cached_property
    def clusters(self) -> dict[str, int]:
        """Vectors learned per class by the rows that learn conditioning of a frozen U-Net, fewest first."""
        learning = {
            name: row.clusters
            for name, row in self.study.personalised.items()
            if row.learn == "conditioning" and not row.train_unet
        }
        return dict(sorted(learning.items(), key=lambda item: item[1]))

    @cached_property
    def paper_tables(self) -> dict[str, list[str]]:
        """The paper's smaller tables for which the study has rows, with these rows.

        A study that ``report.paper_study`` does not set beside the paper has none. A miniature counts as
        each of the paper's data sets.
        """
        known = [name for name in BEST_ROWS if name in self.study.methods]
        rows = {
            ("imagenet10", CLUSTER_ABLATION): [*self.clusters] if len({*self.clusters.values()}) > 1 else [],
            ("imagenet_full", "imagenet_full"): known if len(known) > 1 else [],
            ("caltech256", "caltech256"): known if len(known) > 1 else [],
        }
        own = self.study.report.paper_study
        if own is None:
            return {}
        return {
            name: methods
            for (paper_study, name), methods in rows.items()
            if methods and (paper_study == own or self.study.miniature is not None)
        }

    @cached_property
    def paper_table_files(self) -> dict[str, str]:
        """Files of :attr:`paper_tables` in their formats."""
        return {
            f"{name}_{kind}": path for name in self.paper_tables for kind, path in self._table(name).items()
        }

    @cached_property
    def cost(self) -> dict[str, str]:
        """The table of each method's cost in its formats."""
        return {kind: self.path("tables", f"cost.{kind}") for kind in ("csv", "md")}

    @cached_property
    def figures(self) -> dict[str, dict[str, str]]:
        """Figures 3 to 5B and the learning curves in their formats, if the study has rows for them."""
        wanted = {
            "figure3": self.reconstructing,
            "figure4": self.exemplified,
            "figure5a": self.class_changes if self._has_baseline else [],
            "figure5b": self.scaling,
            "learning_curves": self.methods,
        }
        return {name: self._figure(name) for name, rows in wanted.items() if rows}

    def figure_data(self, name: str) -> dict[str, str]:
        """Files that a figure is drawn from: its table, and its images if it shows any."""
        shown = {"images": self.path("figures", f"{name}_images.parquet")}
        plain = name in ("figure5b", "learning_curves")
        return {"table": self.path("figures", f"{name}.csv"), **({} if plain else shown)}

    @property
    def report_images(self) -> str:
        """Path of the thumbnails in the report's image browser."""
        return self.path("report_images.parquet")

    @property
    def provenance(self) -> str:
        """Path of the provenance of the results: code, packages, machines, models."""
        return self.path("provenance.json")

    @property
    def report(self) -> str:
        """Path of the report, a single page."""
        return self.path("report.html")

    @cached_property
    def report_tables(self) -> dict[str, str]:
        """Tables in the report by name, as Markdown."""
        tables = {
            "table1": self.table1,
            "contrasts": self.contrasts,
            "statistics": self.statistics,
            "components": self.components,
            "further_tests": self.further_table,
            "class_groups": self.class_groups,
            **{name: self._table(name) for name in self.paper_tables},
            "diagnostics": self.diagnostics,
            "leakage": self.leakage_table,
            "cost": self.cost,
        }
        return {name: files["md"] for name, files in tables.items() if files}

    @cached_property
    def report_figures(self) -> dict[str, str]:
        """Figures in the report, by name."""
        further = {f"further_{test}": files for test, files in self.further_figures.items()}
        figures = {"figure1": self.figure1, "forest": self.forest, **self.figures, **further}
        return {name: files["png"] for name, files in figures.items() if files}

    @cached_property
    def report_sources(self) -> list[str]:
        """Input files of the report, except :attr:`report_figures`, which are drawn from these."""
        return [
            self.report_images,
            self.table1["csv"],
            self.table1["runs"],
            self.statistics["csv"],
            self.contrasts["csv"],
            self.per_class,
            *self.report_tables.values(),
            *(self.figure_data(name)["table"] for name in self.figures),
            *(path for kind, path in self.retrieval_summary.items() if kind in ("fates", "excluded")),
            *(path for kind, path in self.further_table.items() if kind == "csv"),
            self.classes,
            self.config,
            self.provenance,
        ]

    @cached_property
    def report_jobs(self) -> list[list[str]]:
        """Files of every job that makes tables or figures, except the leakage guard's."""
        decisions = (self.statistics, self.contrasts, self.components)  # of one job
        tables = (
            self.table1_data,
            self.table1_text,
            {path: path for files in decisions for path in files.values()},
            {path: path for files in (self.class_sizes, self.class_groups) for path in files.values()},
            self.paper_table_files,
            self.further_table,
            self.cost,
            self.diagnostics,
            self.retrieval_summary,
        )
        figures = (
            self.figure1,
            self.forest,
            self.further_figure_files,
            *(files for name, drawn in self.figures.items() for files in (self.figure_data(name), drawn)),
        )
        return [
            [self.per_class],
            [self.report_images],
            [self.report],
            *(list(files.values()) for files in (*tables, *figures) if files),
        ]

    @cached_property
    def reconstructing(self) -> list[str]:
        """Rows whose images start from training images."""
        return [name for name, method in self.study.methods.items() if method.from_training_images]

    @cached_property
    def exemplified(self) -> list[str]:
        """Rows whose images Figure 4 shows: those of the paper's figure in its order, then the others."""
        shown = [
            name
            for name, row in self.study.examined.items()
            if row.group in ("prompting", "personalised", "retrieval", "hybrid")
        ]
        ours = [name for name in shown if name not in PAPER_FIGURE_4]
        return [*(name for name in PAPER_FIGURE_4 if name in shown), *ours]

    @cached_property
    def class_changes(self) -> list[str]:
        """Rows of Figure 5A: those that the config names, or the paper's two.

        If the study lacks one of these, the first row that generates, or retrieves, stands for it. None is
        chosen by its accuracy.
        """
        if self.study.report.class_changes is not None:
            return [*self.study.report.class_changes]
        generated = [name for name, row in self.study.augmented.items() if row.group in GENERATED]
        retrieved = [name for name, row in self.study.augmented.items() if row.group == "retrieval"]
        return [
            paper if paper in names else names[0]
            for paper, names in zip(PAPER_FIGURE_5A, (generated, retrieved), strict=True)
            if names
        ]

    @cached_property
    def scaling(self) -> dict[str, str]:
        """Rows of Figure 5B, each with the row whose pool it draws from.

        These are the rows of mechanism ``draw`` that change the number of images, and the rows that own the
        pools; no placebos, mixtures or filtered pools, and none that use their images in a way of their own.
        Rows with ``fill_to`` add no multiple of the real images, so they have no place on the figure's axis.
        """
        filled = {name for name, row in self.study.augmented.items() if row.fill_to is not None}
        drawn = {
            name: row.pool
            for name, row in self.study.drawn.items()
            if not (row.shuffles_labels or row.is_composed or name in filled)
            and row.use == self.study.methods[row.pool_rows[0]].use
        }
        return {
            name: self.study.pool_row(name)
            for name in self.methods
            if (name in drawn or name in drawn.values()) and name not in filled
        }
