# Training split -> learned vectors per class and learning rate -> those of the best learning rate.
# There is one file of vectors per class, and one choice per candidate. With a frozen U-Net, classes are
# independent and are cut into blocks. A job that trains the U-Net gets all classes.

for draw in range(STUDY.dataset.draws if PLAN.cluster_counts else 0):

    rule:
        name:
            drawn_name("cluster", draw)
        input:
            train=UNFOLDED.splits[drawn_name("train", draw)],
            val=UNFOLDED.splits["val"],
            classes=UNFOLDED.classes,
            clip=UNFOLDED.clip,
            features=UNFOLDED.feature_files,
        output:
            UNFOLDED.cluster_files(draw),
        log:
            UNFOLDED.log(drawn_name("cluster", draw)),
        benchmark:
            UNFOLDED.benchmark(drawn_name("cluster", draw))
        # a long chain of jobs depends on it
        priority: 15
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(4000, 16000, minutes=240),
        params:
            recipe=recipes.cluster_recipe(UNFOLDED.study),
        message:
            "clusters of the training images"
        script:
            "../scripts/cluster.py"


for method, row in UNFOLDED.study.personalised.items():
    for factor, block in UNFOLDED.finetune_jobs(method):

        rule:
            name:
                f"finetune_{method}_{rate_name(factor)}_{block.name}"
            input:
                clusters=UNFOLDED.clusters_of(method),
                train=UNFOLDED.train_of(method),
                val=UNFOLDED.splits["val"],
                classes=UNFOLDED.classes,
                diffusion=UNFOLDED.diffusion,
                templates=UNFOLDED.template_files(method),
                excluded=UNFOLDED.excluded_from_learning(method),
            output:
                **unet_folders(UNFOLDED.trained_unets(method, factor)),
                vectors=[
                    directory(UNFOLDED.vectors_folder(method, factor, folder)) for folder in block.folders
                ],
            log:
                UNFOLDED.log("finetune", method, block.name, factor),
            benchmark:
                UNFOLDED.benchmark("finetune", method, block.name, factor)
            # a long chain of jobs depends on it
            priority: 15
            conda:
                ENVIRONMENT
            threads: NEEDS.gpu_threads
            resources:
                **NEEDS.finetune_job(row, sum(len(folder.members) for folder in block.folders)),
            params:
                method=method,
                factor=factor,
                recipe=recipes.finetune_recipe(UNFOLDED.study, method, factor),
            message:
                f"fine-tune {method}"
            script:
                "../scripts/finetune.py"

    rule:
        name:
            f"choose_lr_{method}"
        input:
            [
                made_by("finetune", f"{method}_{rate_name(f)}", "vectors", UNFOLDED.finetune_blocks(method))
                for f in row.lr_grid
            ],
            unets=[path for f in row.lr_grid for path in UNFOLDED.trained_unets(method, f).values()],
            classes=UNFOLDED.classes,
        output:
            **unet_folders(UNFOLDED.unets(method)),
            lr=UNFOLDED.lr(method),
            history=UNFOLDED.finetune_history(method),
            embeddings=list(UNFOLDED.embeddings(method).values()),
        log:
            UNFOLDED.log("choose_lr", method),
        benchmark:
            UNFOLDED.benchmark("choose_lr", method)
        priority: 15
        conda:
            ENVIRONMENT
        # it copies the learned vectors of all classes: gigabytes for many classes
        resources:
            **NEEDS.job(1000, 16000, minutes=120),
        params:
            **recipes.choose_lr_recipe(UNFOLDED.study, method),
            method=method,
        message:
            f"learning rate of {method}"
        script:
            "../scripts/choose_lr.py"
