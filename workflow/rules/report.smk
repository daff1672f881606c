# Results -> tables and figures. Local and light: a figure is redrawn from its table in seconds.


rule table1_files:
    input:
        results=PLAN.results(),
        pools=[PLAN.resample(method, run) for method in PLAN.augmented for run in PLAN.runs],
        excluded=PLAN.excluded,
    output:
        **PLAN.table1,
    log:
        PLAN.path("logs/table1.log"),
    benchmark:
        PLAN.path("benchmarks/table1.tsv")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=NEEDS.memory(1000, 4000),
        runtime=NEEDS.minutes(30),
    params:
        recipe=recipes.table_recipe(STUDY),
    message:
        "Table 1"
    script:
        "../scripts/table1.py"


if PLAN.pooled:

    rule diagnostics:
        input:
            pools=[PLAN.pool(method) for method in PLAN.pooled],
            train=PLAN.splits["train"],
            val=PLAN.splits["val"],
            classes=PLAN.path("classes.parquet"),
            clip=PLAN.path("models/clip.json"),
            judge=PLAN.judge_files,
            histories=[PLAN.finetune_history(method) for method in PLAN.personalised],
            lrs=[PLAN.lr(method) for method in PLAN.personalised],
            selected=[PLAN.selected(method) for method in PLAN.personalised],
        output:
            **PLAN.diagnostics,
        log:
            PLAN.path("logs/diagnostics.log"),
        benchmark:
            PLAN.path("benchmarks/diagnostics.tsv")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu,
            mem_mb=NEEDS.memory(4000, 32000),
            runtime=NEEDS.minutes(240),
        params:
            recipe=recipes.diagnostics_recipe(STUDY),
        message:
            "diagnostics of the added images"
        script:
            "../scripts/diagnostics.py"


rule figure1_files:
    input:
        table=PLAN.table1["csv"],
    output:
        **PLAN.figure1,
    log:
        PLAN.path("logs/figure1.log"),
    benchmark:
        PLAN.path("benchmarks/figure1.tsv")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=NEEDS.memory(1000, 4000),
        runtime=NEEDS.minutes(30),
    params:
        recipe=recipes.figure_recipe(),
    message:
        "Figure 1"
    script:
        "../scripts/figure1.py"


rule resolved_config:
    output:
        PLAN.path("config.yaml"),
    log:
        PLAN.path("logs/resolved_config.log"),
    benchmark:
        PLAN.path("benchmarks/resolved_config.tsv")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=NEEDS.memory(1000, 1000),
        runtime=NEEDS.minutes(30),
    params:
        config=recipes.table_recipe(STUDY)["study"],
    message:
        "resolved config"
    script:
        "../scripts/resolved_config.py"


# Made anew with the tables, and with nothing else: the code's revision is in no params.
rule provenance:
    input:
        PLAN.table1.values(),
        config=PLAN.path("config.yaml"),
        models=[PLAN.path(f"models/{model}.json") for model in ("diffusion", "clip") if PLAN.pooled],
    output:
        PLAN.path("provenance.json"),
    log:
        PLAN.path("logs/provenance.log"),
    benchmark:
        PLAN.path("benchmarks/provenance.tsv")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=NEEDS.memory(1000, 4000),
        runtime=NEEDS.minutes(30),
    message:
        "what made the results"
    script:
        "../scripts/provenance.py"
