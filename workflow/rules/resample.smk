# Shards -> index of the pool -> one manifest of added images per training set. Where near-duplicates of validation and test images are left
# out, the index comes first, for the guard needs it.

if STUDY.leakage.action == "drop":

    rule index_pool:
        input:
            get_shards,
        output:
            PLAN.pool(),
        log:
            PLAN.path("logs/index_pool/{method}.log"),
        benchmark:
            PLAN.path("benchmarks/index_pool/{method}.tsv")
        wildcard_constraints:
            method=any_of(PLAN.augmented),
        conda:
            ENVIRONMENT
        message:
            "index the pool of {wildcards.method}"
        script:
            "../scripts/index_pool.py"

    rule resample:
        input:
            index=PLAN.pool(),
            leaks=get_leaks_to_drop,
            train=PLAN.splits["train"],
            excluded=PLAN.excluded,
        output:
            manifests=expand(PLAN.resample(), run=PLAN.runs, allow_missing=True),
        log:
            PLAN.path("logs/resample/{method}.log"),
        benchmark:
            PLAN.path("benchmarks/resample/{method}.tsv")
        wildcard_constraints:
            method=any_of(PLAN.augmented),
        conda:
            ENVIRONMENT
        params:
            recipe=get_resample_recipe,
        message:
            "resample {wildcards.method}"
        script:
            "../scripts/resample.py"

else:

    rule resample:
        input:
            shards=get_shards,
            train=PLAN.splits["train"],
            excluded=PLAN.excluded,
        output:
            index=PLAN.pool(),
            manifests=expand(PLAN.resample(), run=PLAN.runs, allow_missing=True),
        log:
            PLAN.path("logs/resample/{method}.log"),
        benchmark:
            PLAN.path("benchmarks/resample/{method}.tsv")
        wildcard_constraints:
            method=any_of(PLAN.augmented),
        conda:
            ENVIRONMENT
        params:
            recipe=get_resample_recipe,
        message:
            "resample {wildcards.method}"
        script:
            "../scripts/resample.py"
