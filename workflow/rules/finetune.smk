# Training split -> learned vectors per class and learning rate -> those of the best learning rate.
# There is one file of vectors per class, and one choice per candidate. With a frozen U-Net, classes are
# independent and are cut into blocks. A job that trains the U-Net gets all classes.

if PLAN.cluster_files:

    rule cluster:
        input:
            train=PLAN.splits["train"],
            val=PLAN.splits["val"],
            classes=PLAN.classes,
            clip=PLAN.clip,
            features=PLAN.feature_files,
        output:
            list(PLAN.cluster_files.values()),
        log:
            PLAN.log("cluster"),
        benchmark:
            PLAN.benchmark("cluster")
        priority: 15
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(4000, 16000, minutes=240),
        params:
            recipe=recipes.cluster_recipe(STUDY),
        message:
            "clusters of the training images"
        script:
            "../scripts/cluster.py"


for method, row in STUDY.personalised.items():
    for factor, block in PLAN.finetune_jobs(method):

        rule:
            name:
                f"finetune_{method}_{rate_name(factor)}_{block.name}"
            input:
                **({"clusters": PLAN.cluster_files[row.clusters]} if row.clusters > 1 else {}),
                train=PLAN.splits["train"],
                val=PLAN.splits["val"],
                classes=PLAN.classes,
                diffusion=PLAN.diffusion,
                templates=PLAN.template_files(method),
            output:
                **unet_folders(PLAN.trained_unets(method, factor)),
                vectors=[directory(PLAN.vectors_folder(method, factor, folder)) for folder in block.folders],
            log:
                PLAN.log("finetune", method, block.name, factor),
            benchmark:
                PLAN.benchmark("finetune", method, block.name, factor)
            # a long chain of jobs depends on it
            priority: 15
            conda:
                ENVIRONMENT
            threads: NEEDS.gpu_threads
            resources:
                **NEEDS.gpu_job(3000, 32000, minutes=720),
            params:
                method=method,
                factor=factor,
                recipe=recipes.finetune_recipe(STUDY, method, factor),
            message:
                f"fine-tune {method}"
            script:
                "../scripts/finetune.py"

    rule:
        name:
            f"choose_lr_{method}"
        input:
            [
                made_by("finetune", f"{method}_{rate_name(f)}", "vectors", PLAN.finetune_blocks(method))
                for f in row.lr_grid
            ],
            unets=[path for f in row.lr_grid for path in PLAN.trained_unets(method, f).values()],
            classes=PLAN.classes,
        output:
            **unet_folders(PLAN.unets(method)),
            lr=PLAN.lr(method),
            history=PLAN.finetune_history(method),
            embeddings=list(PLAN.embeddings(method).values()),
        log:
            PLAN.log("choose_lr", method),
        benchmark:
            PLAN.benchmark("choose_lr", method)
        priority: 15
        conda:
            ENVIRONMENT
        # it copies the learned vectors of all classes: gigabytes for many classes
        resources:
            **NEEDS.job(1000, 16000, minutes=120),
        params:
            method=method,
        message:
            f"learning rate of {method}"
        script:
            "../scripts/choose_lr.py"
