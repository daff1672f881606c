# Shards -> index of the pool -> one manifest of added images per training set.
# If near-duplicates of validation and test images are left out, the index is a job of its own, because the
# leakage guard needs it first.

for method in UNFOLDED.guarded_first:

    rule:
        name:
            f"index_pool_{method}"
        input:
            shards_of(method),
            scores=UNFOLDED.scores_of(method),
            excluded=UNFOLDED.excluded_from_filter(method),
        output:
            UNFOLDED.pool(method),
        log:
            UNFOLDED.log("index_pool", method),
        benchmark:
            UNFOLDED.benchmark("index_pool", method)
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            **filtered(method),
        message:
            f"index the pool of {method}"
        script:
            "../scripts/index_pool.py"

    rule:
        name:
            f"resample_{method}"
        input:
            index=UNFOLDED.pool(method),
            leaks=UNFOLDED.leaks_to_drop(method),
            train=UNFOLDED.train_of(method),
            excluded=UNFOLDED.excluded,
        output:
            manifests=[UNFOLDED.resample(method, run) for run in UNFOLDED.runs],
        log:
            UNFOLDED.log("resample", method),
        benchmark:
            UNFOLDED.benchmark("resample", method)
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            method=method,
            recipe=recipes.resample_recipe(UNFOLDED.study, method),
        message:
            f"resample {method}"
        script:
            "../scripts/resample.py"


for method in UNFOLDED.indexed_with_sets:

    rule:
        name:
            f"resample_{method}"
        input:
            shards_of(method),
            scores=UNFOLDED.scores_of(method),
            train=UNFOLDED.train_of(method),
            excluded=UNFOLDED.excluded,
        output:
            index=UNFOLDED.pool(method),
            manifests=[UNFOLDED.resample(method, run) for run in UNFOLDED.runs],
        log:
            UNFOLDED.log("resample", method),
        benchmark:
            UNFOLDED.benchmark("resample", method)
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            method=method,
            recipe=recipes.resample_recipe(UNFOLDED.study, method),
        message:
            f"resample {method}"
        script:
            "../scripts/resample.py"
