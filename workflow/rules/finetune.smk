# Training split -> what each class learned, one file per class and learning rate -> the best learning rate's, per candidate.
# Classes are independent where the U-Net is frozen, so they are cut into blocks; one job sees them all where it trains.

if PLAN.cluster_files:

    rule cluster:
        input:
            train=PLAN.splits["train"],
            val=PLAN.splits["val"],
            classes=PLAN.path("classes.parquet"),
            clip=PLAN.path("models/clip.json"),
            features=PLAN.feature_files,
        output:
            list(PLAN.cluster_files.values()),
        log:
            PLAN.path("logs/cluster.log"),
        benchmark:
            PLAN.path("benchmarks/cluster.tsv")
        priority: 15
        conda:
            ENVIRONMENT
        resources:
            mem_mb=4000,
            runtime=60,
        params:
            recipe=recipes.cluster_recipe(STUDY),
        message:
            "clusters of the training images"
        script:
            "../scripts/cluster.py"


for method, row in PLAN.personalised.items():
    for block in PLAN.finetune_blocks(method):

        rule:
            name:
                f"finetune_{method}_{block.name}"
            input:
                **({"clusters": PLAN.cluster_files[row.clusters]} if row.clusters > 1 else {}),
                train=PLAN.splits["train"],
                val=PLAN.splits["val"],
                classes=PLAN.path("classes.parquet"),
                diffusion=PLAN.path("models/diffusion.json"),
                templates=PLAN.template_files(method),
            output:
                **{f"unet_{name}": directory(path) for name, path in PLAN.trained_unets(method, "{factor}").items()},
                vectors=[PLAN.vectors(method, "{factor}", class_id) for class_id in block.members],
            log:
                PLAN.path(f"logs/finetune/{method}_{block.name}_lr{{factor}}.log"),
            benchmark:
                PLAN.path(f"benchmarks/finetune/{method}_{block.name}_lr{{factor}}.tsv")
            # a long chain hangs on it
            priority: 15
            conda:
                ENVIRONMENT
            resources:
                mem_mb=3000,
                runtime=240,
            params:
                method=method,
                recipe=get_finetune_recipe(method),
            message:
                f"fine-tune {method}"
            script:
                "../scripts/finetune.py"

    rule:
        name:
            f"choose_lr_{method}"
        input:
            vectors=[PLAN.vectors(method, factor, class_id) for factor in row.lr_grid for class_id in PLAN.class_ids],
            unets=[path for factor in row.lr_grid for path in PLAN.trained_unets(method, factor).values()],
        output:
            **{f"unet_{name}": directory(path) for name, path in PLAN.unets(method).items()},
            lr=PLAN.lr(method),
            history=PLAN.finetune_history(method),
            embeddings=list(PLAN.embeddings(method).values()),
        log:
            PLAN.path(f"logs/choose_lr/{method}.log"),
        benchmark:
            PLAN.path(f"benchmarks/choose_lr/{method}.tsv")
        priority: 15
        conda:
            ENVIRONMENT
        params:
            method=method,
        message:
            f"learning rate of {method}"
        script:
            "../scripts/choose_lr.py"
