# Image data set -> class table, split manifests.


if PLAN.fashion_mnist_files:

    rule fetch_fashion_mnist:
        output:
            update(PLAN.fashion_mnist_files),
        log:
            PLAN.log("fetch_fashion_mnist"),
        benchmark:
            PLAN.benchmark("fetch_fashion_mnist")
        retries: 2
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.fetch,
        message:
            "fetch Fashion-MNIST"
        script:
            "../scripts/fetch_fashion_mnist.py"


rule classes:
    input:
        PLAN.dataset_files,
    output:
        PLAN.classes,
    log:
        PLAN.log("classes"),
    benchmark:
        PLAN.benchmark("classes")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    params:
        recipe=recipes.classes_recipe(STUDY),
    message:
        "class table"
    script:
        "../scripts/classes.py"


rule splits:
    input:
        dataset=PLAN.dataset_files,
        classes=PLAN.classes,
    output:
        **PLAN.splits,
    log:
        PLAN.log("splits"),
    benchmark:
        PLAN.benchmark("splits")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.table,
    params:
        recipe=recipes.splits_recipe(STUDY),
    message:
        "splits: train, validation, test"
    script:
        "../scripts/splits.py"
