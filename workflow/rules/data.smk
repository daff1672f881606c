# Image data set -> class table, split manifests.


if PLAN.fashion_mnist_files:

    rule fetch_fashion_mnist:
        output:
            PLAN.fashion_mnist_files,
        log:
            PLAN.path("logs/fetch_fashion_mnist.log"),
        benchmark:
            PLAN.path("benchmarks/fetch_fashion_mnist.tsv")
        retries: 2
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(1000, 1000),
            runtime=NEEDS.minutes(60),
        message:
            "fetch Fashion-MNIST"
        script:
            "../scripts/fetch_fashion_mnist.py"


rule classes:
    input:
        PLAN.dataset_files,
    output:
        PLAN.path("classes.parquet"),
    log:
        PLAN.path("logs/classes.log"),
    benchmark:
        PLAN.path("benchmarks/classes.tsv")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=NEEDS.memory(1000, 4000),
        runtime=NEEDS.minutes(30),
    params:
        recipe=recipes.classes_recipe(STUDY),
    message:
        "class table"
    script:
        "../scripts/classes.py"


rule splits:
    input:
        dataset=PLAN.dataset_files,
        classes=PLAN.path("classes.parquet"),
    output:
        **PLAN.splits,
    log:
        PLAN.path("logs/splits.log"),
    benchmark:
        PLAN.path("benchmarks/splits.tsv")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=NEEDS.memory(1000, 8000),
        runtime=NEEDS.minutes(60),
    params:
        recipe=recipes.splits_recipe(STUDY),
    message:
        "splits: train, validation, test"
    script:
        "../scripts/splits.py"
