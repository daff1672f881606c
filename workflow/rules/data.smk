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


# A rule per draw of the training images, so that a further draw makes no split again.
for draw in range(STUDY.dataset.draws):

    rule:
        name:
            drawn_name("splits", draw)
        input:
            dataset=PLAN.dataset_files,
            classes=PLAN.classes,
        output:
            **PLAN.splits_of(draw),
        log:
            PLAN.log(drawn_name("splits", draw)),
        benchmark:
            PLAN.benchmark(drawn_name("splits", draw))
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            recipe=recipes.splits_recipe(STUDY),
        message:
            "splits: training images of a further draw" if draw else "splits: train, validation, test"
        script:
            "../scripts/splits.py"
