# Shards -> index of the pool -> one manifest of added images per training set.


rule resample:
    input:
        shards=get_shards,
        train=PLAN.splits["train"],
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
        recipe=recipes.resample_recipe(STUDY),
    message:
        "resample {wildcards.method}"
    script:
        "../scripts/resample.py"
