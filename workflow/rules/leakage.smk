# Pools -> near-duplicates of validation and test images among them -> their table, with accuracy on the test images that have none. Besides final scoring
# these are the only rules that read the test split; candidates are selected without them.

if PLAN.guarded:

    rule leakage:
        input:
            pools=[PLAN.pool(method) for method in PLAN.guarded],
            val=PLAN.splits["val"],
            test=PLAN.splits["test"],
            clip=PLAN.path("models/clip.json"),
            excluded=PLAN.excluded,
        output:
            **PLAN.embedded_splits,
            leaks=[PLAN.leaks(method) for method in PLAN.guarded],
            counts=[PLAN.leak_counts(method) for method in PLAN.guarded],
        log:
            PLAN.path("logs/leakage.log"),
        benchmark:
            PLAN.path("benchmarks/leakage.tsv")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu,
            mem_mb=NEEDS.memory(4000, 32000),
            runtime=NEEDS.minutes(480),
        params:
            recipe=recipes.leakage_recipe(STUDY),
        message:
            "near-duplicates of validation and test images"
        script:
            "../scripts/leakage.py"

    rule near_duplicates:
        input:
            leaks=[PLAN.leaks(method) for method in PLAN.guarded],
            counts=[PLAN.leak_counts(method) for method in PLAN.guarded],
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
            PLAN.path("logs/near_duplicates.log"),
        benchmark:
            PLAN.path("benchmarks/near_duplicates.tsv")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(1000, 8000),
            runtime=NEEDS.minutes(60),
        params:
            recipe=recipes.leakage_table_recipe(STUDY),
        message:
            "table of near-duplicates"
        script:
            "../scripts/near_duplicates.py"
