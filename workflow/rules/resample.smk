# Shards -> index of the pool -> one manifest of added images per training set.
# If near-duplicates of validation and test images are left out, the index is a job of its own, because the
# leakage guard needs it first.

for method in PLAN.guarded_first:

    rule:
        name:
            f"index_pool_{method}"
        input:
            shards_of(method),
        output:
            PLAN.pool(method),
        log:
            PLAN.log("index_pool", method),
        benchmark:
            PLAN.benchmark("index_pool", method)
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        message:
            f"index the pool of {method}"
        script:
            "../scripts/index_pool.py"

    rule:
        name:
            f"resample_{method}"
        input:
            index=PLAN.pool(method),
            leaks=PLAN.leaks_to_drop(method),
            train=PLAN.splits["train"],
            excluded=PLAN.excluded,
        output:
            manifests=[PLAN.resample(method, run) for run in PLAN.runs],
        log:
            PLAN.log("resample", method),
        benchmark:
            PLAN.benchmark("resample", method)
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            method=method,
            recipe=recipes.resample_recipe(STUDY, method),
        message:
            f"resample {method}"
        script:
            "../scripts/resample.py"


for method in PLAN.indexed_with_sets:

    rule:
        name:
            f"resample_{method}"
        input:
            shards_of(method),
            train=PLAN.splits["train"],
            excluded=PLAN.excluded,
        output:
            index=PLAN.pool(method),
            manifests=[PLAN.resample(method, run) for run in PLAN.runs],
        log:
            PLAN.log("resample", method),
        benchmark:
            PLAN.benchmark("resample", method)
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            method=method,
            recipe=recipes.resample_recipe(STUDY, method),
        message:
            f"resample {method}"
        script:
            "../scripts/resample.py"
