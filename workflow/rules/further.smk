# Checkpoints -> predictions on test sets of other distributions -> their table and figures.
# Nothing is trained: a further test set plans its own jobs, tables and figures. They are in rules of their
# own, so that no other job depends on them. Near-duplicates of their images are counted, never dropped.

for name in PLAN.further_tests:

    if PLAN.has_own_images(name):

        rule:
            name:
                f"further_split_{name}"
            input:
                classes=PLAN.classes,
            output:
                PLAN.further_split(name),
            log:
                PLAN.log("further_split", name),
            benchmark:
                PLAN.benchmark("further_split", name)
            localrule: True
            conda:
                ENVIRONMENT
            resources:
                **NEEDS.table,
            params:
                test=name,
                recipe=recipes.further_split_recipe(STUDY, name),
            message:
                f"images of {name}"
            script:
                "../scripts/further_split.py"

    rule:
        name:
            f"score_{name}"
        input:
            models=PLAN.models,
            split=PLAN.further_split(name),
            classes=PLAN.classes,
            excluded=PLAN.excluded,
            first_weights=PLAN.first_weights,
        output:
            PLAN.further_predictions(name),
        log:
            PLAN.log("score", name),
        benchmark:
            PLAN.benchmark("score", name)
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(3000, 64000, minutes=240),
        params:
            test=name,
            recipe=recipes.further_images_recipe(STUDY, name),
        message:
            f"score on {name}"
        script:
            "../scripts/score_further.py"

    if PLAN.further_leaks(name):

        rule:
            name:
                f"leakage_{name}"
            input:
                pools=[PLAN.pool(method) for method in PLAN.further_leaks(name)],
                split=PLAN.further_split(name),
                clip=PLAN.clip,
                excluded=PLAN.excluded,
            output:
                images=PLAN.further_embeddings(name),
                leaks=list(PLAN.further_leaks(name).values()),
            log:
                PLAN.log("further_leakage", name),
            benchmark:
                PLAN.benchmark("further_leakage", name)
            conda:
                ENVIRONMENT
            threads: NEEDS.gpu_threads
            resources:
                **NEEDS.clip_job(4000, 32000, minutes=480),
            params:
                test=name,
                recipe=recipes.further_leakage_recipe(STUDY, name),
            message:
                f"near-duplicates of {name}"
            script:
                "../scripts/further_leakage.py"


if PLAN.further_table:

    rule further_tests:
        input:
            table=PLAN.table1["csv"],
            runs=PLAN.table1["runs"],
            ordinary=[path for method in PLAN.methods for path in PLAN.predictions(method)],
            predictions=[PLAN.further_predictions(name) for name in PLAN.further_tests],
            leaks=PLAN.all_further_leaks,
            choices=PLAN.choices,
        output:
            **captioned(PLAN.further_table, "Tables", {"csv": "further_tests"}),
        log:
            PLAN.log("further_tests"),
        benchmark:
            PLAN.benchmark("further_tests")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            recipe=recipes.further_table_recipe(STUDY),
        message:
            "accuracy on further tests"
        script:
            "../scripts/further_table.py"


if PLAN.further_figures:

    rule further_figures:
        input:
            table=PLAN.further_table["csv"],
        output:
            **captioned(
                PLAN.further_figure_files,
                "Figures",
                {f"further_{name}_png": "forest" for name in PLAN.further_figures},
            ),
        log:
            PLAN.log("further_figures"),
        benchmark:
            PLAN.benchmark("further_figures")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            recipe=recipes.figure_recipe(),
        message:
            "forest plots of further tests"
        script:
            "../scripts/further_figures.py"
