# Shards -> index of the pool -> one manifest of added images per training set.


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
        pool=PLAN.pool(),
        train=PLAN.splits["train"],
    output:
        expand(PLAN.resample(), run=PLAN.runs, allow_missing=True),
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
