# Shards -> index of the pool -> one manifest of added images per training set. Where near-duplicates of validation and test images are left
# out, the index comes first, for the guard needs it.

for method in PLAN.guarded_first:

    rule:
        name:
            f"index_pool_{method}"
        input:
            shards_of(method),
        output:
            PLAN.pool(method),
        log:
            PLAN.path(f"logs/index_pool/{method}.log"),
        benchmark:
            PLAN.path(f"benchmarks/index_pool/{method}.tsv")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(1000, 8000),
            runtime=NEEDS.minutes(60),
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
            PLAN.path(f"logs/resample/{method}.log"),
        benchmark:
            PLAN.path(f"benchmarks/resample/{method}.tsv")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(1000, 8000),
            runtime=NEEDS.minutes(60),
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
            PLAN.path(f"logs/resample/{method}.log"),
        benchmark:
            PLAN.path(f"benchmarks/resample/{method}.tsv")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(1000, 8000),
            runtime=NEEDS.minutes(60),
        params:
            method=method,
            recipe=recipes.resample_recipe(STUDY, method),
        message:
            f"resample {method}"
        script:
            "../scripts/resample.py"
