# Classes x method -> prompts, one row per image to make.


rule prompts:
    input:
        classes=PLAN.path("classes.parquet"),
        train=PLAN.splits["train"],
        templates=get_templates,
    output:
        PLAN.path("prompts/{method}.parquet"),
    log:
        PLAN.path("logs/prompts/{method}.log"),
    benchmark:
        PLAN.path("benchmarks/prompts/{method}.tsv")
    # a second's work that minutes of work wait for
    priority: 20
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=NEEDS.memory(1000, 4000),
        runtime=NEEDS.minutes(30),
    params:
        recipe=get_prompts_recipe,
    message:
        "prompts of {wildcards.method}"
    script:
        "../scripts/prompts.py"
