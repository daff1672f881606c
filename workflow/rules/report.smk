# Results -> tables and figures. Local and light: a figure is redrawn from its table in seconds.


rule table1_files:
    input:
        results=PLAN.results(),
        pools=[PLAN.resample(method, run) for method in PLAN.augmented for run in PLAN.runs],
    output:
        **PLAN.table1,
    log:
        PLAN.path("logs/table1.log"),
    benchmark:
        PLAN.path("benchmarks/table1.tsv")
    conda:
        ENVIRONMENT
    params:
        recipe=recipes.table_recipe(STUDY),
    message:
        "Table 1"
    script:
        "../scripts/table1.py"


rule figure1_files:
    input:
        table=PLAN.table1["csv"],
    output:
        **PLAN.figure1,
    log:
        PLAN.path("logs/figure1.log"),
    benchmark:
        PLAN.path("benchmarks/figure1.tsv")
    conda:
        ENVIRONMENT
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
    conda:
        ENVIRONMENT
    params:
        config=recipes.table_recipe(STUDY)["study"],
    message:
        "resolved config"
    script:
        "../scripts/resolved_config.py"
