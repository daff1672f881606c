# Pools -> near-duplicates of validation and test images, and of training images -> their table.
# Repeats of training images are counted, never dropped.
# The table includes the accuracy on test images without near-duplicates. Besides final scoring
# (classify.smk), only these rules read the test split (guarded test split). Candidates are selected without
# their results.

if PLAN.guarded:

    rule leakage:
        input:
            pools=[UNFOLDED.pool(method) for method in UNFOLDED.guarded],
            val=PLAN.splits["val"],
            test=PLAN.splits["test"],
            clip=PLAN.clip,
            excluded=PLAN.excluded,
        output:
            **PLAN.embedded_splits,
            leaks=[UNFOLDED.leaks(method) for method in UNFOLDED.guarded],
            counts=[UNFOLDED.leak_counts(method) for method in UNFOLDED.guarded],
        log:
            PLAN.log("leakage"),
        benchmark:
            PLAN.benchmark("leakage")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(4000, 32000, minutes=480),
        params:
            recipe=recipes.leakage_recipe(STUDY),
        message:
            "near-duplicates of validation and test images"
        script:
            "../scripts/leakage.py"

    rule repeats:
        input:
            pools=[PLAN.pool(method) for method in PLAN.guarded],
            train=PLAN.splits["train"],
            clip=PLAN.clip,
            excluded=PLAN.excluded,
        output:
            train=PLAN.embedded_split("train"),
            leaks=[PLAN.repeats(method) for method in PLAN.guarded],
        log:
            PLAN.log("repeats"),
        benchmark:
            PLAN.benchmark("repeats")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(4000, 32000, minutes=480),
        params:
            recipe=recipes.leakage_recipe(STUDY),
        message:
            "added images that repeat training images"
        script:
            "../scripts/leakage.py"

    rule near_duplicates:
        input:
            leaks=[PLAN.leaks(method) for method in PLAN.guarded],
            repeats=[PLAN.repeats(method) for method in PLAN.guarded],
            counts=[PLAN.leak_counts(method) for method in PLAN.guarded],
            choices=PLAN.choices,
            pools=[PLAN.pool(method) for method in PLAN.guarded],
            val=PLAN.splits["val"],
            test=PLAN.splits["test"],
            predictions=[path for method in PLAN.methods for path in PLAN.predictions(method)],
        output:
            **captioned(
                captioned(PLAN.leakage_table, "Tables", {"csv": "leakage"}),
                "Near-duplicates",
                {f"pairs_{method}": "leakage_pairs" for method in PLAN.guarded},
            ),
        log:
            PLAN.log("near_duplicates"),
        benchmark:
            PLAN.benchmark("near_duplicates")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            recipe=recipes.leakage_table_recipe(STUDY),
        message:
            "table of near-duplicates"
        script:
            "../scripts/near_duplicates.py"
