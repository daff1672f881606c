# Results -> tables and figures.
# Nearly all jobs are local and short: a figure is redrawn from its table in seconds.


rule table1_files:
    input:
        results=PLAN.results(),
        pools=PLAN.sets(),
        draws=PLAN.drawn_splits,
        excluded=PLAN.excluded,
        lrs=UNFOLDED.searched_lrs,
        choices=UNFOLDED.choices,
    output:
        **captioned(PLAN.table1_data, "Tables", {"csv": "table1"}),
    log:
        PLAN.log("table1"),
    benchmark:
        PLAN.benchmark("table1")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    params:
        recipe=recipes.table_recipe(STUDY),
    message:
        "Table 1"
    script:
        "../scripts/table1.py"


rule statistics:
    input:
        predictions=[path for method in PLAN.methods for path in PLAN.predictions(method)],
        table=PLAN.table1["csv"],
        runs=PLAN.table1["runs"],
    output:
        **captioned(PLAN.statistics, "Tables", {"csv": "statistics"}),
        **captioned(
            {f"contrasts_{k}": path for k, path in PLAN.contrasts.items()},
            "Tables",
            {"contrasts_csv": "contrasts"},
        ),
        **captioned(
            {f"components_{k}": path for k, path in PLAN.components.items()},
            "Tables",
            {"components_csv": "components"},
        ),
    log:
        PLAN.log("statistics"),
    benchmark:
        PLAN.benchmark("statistics")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    params:
        recipe=recipes.statistics_recipe(STUDY),
    message:
        "statistics of Table 1"
    script:
        "../scripts/paired_statistics.py"


# Table 1 as text begins with the study's answer, which is made from the contrasts.
rule table1_text:
    input:
        table=PLAN.table1["csv"],
        contrasts=PLAN.contrasts["csv"],
    output:
        **PLAN.table1_text,
    log:
        PLAN.log("table1_text"),
    benchmark:
        PLAN.benchmark("table1_text")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    params:
        recipe=recipes.table1_text_recipe(),
    message:
        "Table 1 with the answer"
    script:
        "../scripts/table1_text.py"


rule per_class:
    input:
        predictions=[path for method in PLAN.methods for path in PLAN.predictions(method)],
        classes=PLAN.classes,
    output:
        PLAN.per_class,
    log:
        PLAN.log("per_class"),
    benchmark:
        PLAN.benchmark("per_class")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    params:
        recipe=recipes.per_class_recipe(),
    message:
        "accuracy per class"
    script:
        "../scripts/per_class.py"


if PLAN.class_groups:

    rule class_groups:
        input:
            predictions=[path for method in PLAN.methods for path in PLAN.predictions(method)],
            table=PLAN.table1["csv"],
            runs=PLAN.table1["runs"],
            splits=PLAN.splits.values(),
            sets=PLAN.sets(),
            choices=UNFOLDED.choices,
            classes=PLAN.classes,
            excluded=PLAN.excluded,
        output:
            **captioned(
                {f"sizes_{kind}": path for kind, path in PLAN.class_sizes.items()},
                "Tables",
                {"sizes_csv": "class_sizes"},
            ),
            **captioned(PLAN.class_groups, "Tables", {"csv": "class_groups"}),
        log:
            PLAN.log("class_groups"),
        benchmark:
            PLAN.benchmark("class_groups")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            recipe=recipes.class_groups_recipe(STUDY),
        message:
            "accuracy by class size"
        script:
            "../scripts/class_groups.py"


if PLAN.paper_tables:

    rule paper_tables:
        input:
            table=PLAN.table1["csv"],
        output:
            **captioned(PLAN.paper_table_files, "Tables", {f"{t}_csv": t for t in PLAN.paper_tables}),
        log:
            PLAN.log("paper_tables"),
        benchmark:
            PLAN.benchmark("paper_tables")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            recipe=recipes.paper_tables_recipe(STUDY, PLAN.paper_tables),
        message:
            "the paper's smaller tables"
        script:
            "../scripts/paper_tables.py"


# The script reads the benchmark files of all jobs. They are no inputs, because the table would then depend
# on the blocks.
rule cost:
    input:
        PLAN.retrieval_summary.values(),
        table=PLAN.table1["csv"],
    output:
        **captioned(PLAN.cost, "Tables", {"csv": "cost"}),
    log:
        PLAN.log("cost"),
    benchmark:
        PLAN.benchmark("cost")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    params:
        recipe=recipes.cost_recipe(),
    message:
        "cost of each method"
    script:
        "../scripts/cost.py"


if STUDY.pooled:

    rule diagnostics:
        input:
            pools=[PLAN.diagnosed(method) for method in STUDY.examined],
            train=PLAN.splits["train"],
            val=PLAN.splits["val"],
            classes=PLAN.classes,
            clip=PLAN.clip,
            judge=PLAN.judge_files,
            histories=[PLAN.finetune_history(method) for method in STUDY.personalised],
            lrs=[PLAN.lr(method) for method in STUDY.personalised],
            selected=[PLAN.selected(method) for method in STUDY.personalised],
        output:
            **captioned(PLAN.diagnostics, "Tables", {"csv": "diagnostics"}),
        log:
            PLAN.log("diagnostics"),
        benchmark:
            PLAN.benchmark("diagnostics")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.clip_job(4000, 32000, minutes=240),
        params:
            recipe=recipes.diagnostics_recipe(STUDY),
        message:
            "diagnostics of the added images"
        script:
            "../scripts/diagnostics.py"


rule figure1_files:
    input:
        table=PLAN.table1["csv"],
    output:
        **captioned(PLAN.figure1, "Figures", {"png": "figure1"}),
    log:
        PLAN.log("figure1"),
    benchmark:
        PLAN.benchmark("figure1")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    params:
        recipe=recipes.figure_recipe(),
    message:
        "Figure 1"
    script:
        "../scripts/figure1.py"


if PLAN.forest:

    rule forest_files:
        input:
            table=PLAN.table1["csv"],
            statistics=PLAN.statistics["csv"],
        output:
            **captioned(PLAN.forest, "Figures", {"png": "forest"}),
        log:
            PLAN.log("forest"),
        benchmark:
            PLAN.benchmark("forest")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            recipe=recipes.figure_recipe(),
        message:
            "forest plot"
        script:
            "../scripts/forest.py"

    rule forest:
        input:
            PLAN.forest.values(),
        localrule: True


# Figures 3 to 5B and the learning curves are drawn from data files beside them, which name or hold all that
# is shown. A figure without methods in the study is not planned.

if "figure3" in PLAN.figures:

    rule figure3_data:
        input:
            sets=[PLAN.resample(method, "0") for method in PLAN.reconstructing],
            train=PLAN.splits["train"],
            classes=PLAN.classes,
        output:
            **PLAN.figure_data("figure3"),
        log:
            PLAN.log("figure3_data"),
        benchmark:
            PLAN.benchmark("figure3_data")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            recipe=recipes.figure_data_recipe(STUDY, PLAN.reconstructing),
        message:
            "images of Figure 3"
        script:
            "../scripts/figure3_data.py"


if "figure4" in PLAN.figures:

    rule figure4_data:
        input:
            sets=[PLAN.resample(method, "0") for method in PLAN.exemplified],
            train=PLAN.splits["train"],
            classes=PLAN.classes,
        output:
            **PLAN.figure_data("figure4"),
        log:
            PLAN.log("figure4_data"),
        benchmark:
            PLAN.benchmark("figure4_data")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            recipe=recipes.figure_data_recipe(STUDY, PLAN.exemplified),
        message:
            "images of Figure 4"
        script:
            "../scripts/figure4_data.py"


if "figure5a" in PLAN.figures:

    rule figure5a_data:
        input:
            per_class=PLAN.per_class,
            table=PLAN.table1["csv"],
            sets=[PLAN.resample(method, "0") for method in PLAN.class_changes],
            train=PLAN.splits["train"],
            classes=PLAN.classes,
        output:
            **PLAN.figure_data("figure5a"),
        log:
            PLAN.log("figure5a_data"),
        benchmark:
            PLAN.benchmark("figure5a_data")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            recipe=recipes.figure_data_recipe(STUDY, PLAN.class_changes),
        message:
            "changes and images of Figure 5A"
        script:
            "../scripts/figure5a_data.py"


if "figure5b" in PLAN.figures:

    rule figure5b_data:
        input:
            per_class=PLAN.per_class,
            table=PLAN.table1["csv"],
            sets=[PLAN.resample(method, "0") for method in PLAN.scaling],
            train=PLAN.splits["train"],
        output:
            **PLAN.figure_data("figure5b"),
        log:
            PLAN.log("figure5b_data"),
        benchmark:
            PLAN.benchmark("figure5b_data")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            recipe=recipes.figure_data_recipe(STUDY, PLAN.scaling),
        message:
            "accuracies of Figure 5B"
        script:
            "../scripts/figure5b_data.py"


if "learning_curves" in PLAN.figures:

    rule learning_curves_data:
        input:
            results=PLAN.results(),
        output:
            **PLAN.figure_data("learning_curves"),
        log:
            PLAN.log("learning_curves_data"),
        benchmark:
            PLAN.benchmark("learning_curves_data")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            recipe=recipes.learning_curves_recipe(STUDY),
        message:
            "data of the learning curves"
        script:
            "../scripts/learning_curves_data.py"


for name, drawn in PLAN.figures.items():

    rule:
        name:
            f"{name}_files"
        input:
            **PLAN.figure_data(name),
        output:
            **captioned(drawn, "Figures", {"png": name}),
        log:
            PLAN.log(name),
        benchmark:
            PLAN.benchmark(name)
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            figure=name,
            recipe=recipes.figure_recipe(),
        message:
            name.replace("figure", "Figure ").replace("_", " ")
        script:
            "../scripts/draw_figure.py"

    rule:
        name:
            name
        input:
            drawn.values(),
        localrule: True


rule resolved_config:
    output:
        PLAN.config,
    log:
        PLAN.log("resolved_config"),
    benchmark:
        PLAN.benchmark("resolved_config")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    params:
        config=recipes.config_recipe(STUDY),
    message:
        "resolved config"
    script:
        "../scripts/resolved_config.py"


# Written again with the tables, and only then: the code's revision is not in params (provenance).
rule provenance:
    input:
        PLAN.table1.values(),
        config=PLAN.config,
        models=PLAN.fingerprints,
    output:
        PLAN.provenance,
    log:
        PLAN.log("provenance"),
    benchmark:
        PLAN.benchmark("provenance")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    message:
        "what made the results"
    script:
        "../scripts/provenance.py"


# The report. Thumbnails are a file of their own, so that the page is made again in seconds. A figure that
# is redrawn from the same data does not make the page again: the figures' data are inputs of the page.
rule report_images:
    input:
        per_class=PLAN.per_class,
        table=PLAN.table1["csv"],
        sets=[PLAN.resample(method, "0") for method in STUDY.examined],
        train=PLAN.splits["train"],
        classes=PLAN.classes,
    output:
        PLAN.report_images,
    log:
        PLAN.log("report_images"),
    benchmark:
        PLAN.benchmark("report_images")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.table,
    params:
        recipe=recipes.report_images_recipe(STUDY, STUDY.examined),
    message:
        "images of the report"
    script:
        "../scripts/report_images.py"


rule report_html:
    input:
        PLAN.report_sources,
        figures=ancient(list(PLAN.report_figures.values())),
    output:
        PLAN.report,
    log:
        PLAN.log("report_html"),
    benchmark:
        PLAN.benchmark("report_html")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    params:
        recipe=recipes.report_recipe(),
    message:
        "the report"
    script:
        "../scripts/report_html.py"
