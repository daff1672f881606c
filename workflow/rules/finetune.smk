# Training split -> learned vectors or adapters per learning rate -> those of the best learning rate.
# A row may learn from the first training sets of other rows, too, or from these alone.
# There is one file of vectors or adapters per class, and one choice per candidate. Classes are independent
# and are cut into blocks, unless they share what trains (the U-Net, or an adapter with scope: study): then
# one job gets all of them.

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
            **NEEDS.clip_job(4000, 16000, minutes=240),
        params:
            recipe=recipes.cluster_recipe(UNFOLDED.study),
        message:
            "clusters of the training images"
        script:
            "../scripts/cluster.py"


for method, row in UNFOLDED.study.personalised.items():

    if row.edges:

        rule:
            name:
                f"learned_images_{method}"
            input:
                sets=[UNFOLDED.resample(upstream, "0") for upstream in row.built_on],
                train=UNFOLDED.train_of(method),
                excluded=UNFOLDED.excluded,
            output:
                UNFOLDED.learned_images(method),
            log:
                UNFOLDED.log("learned_images", method),
            benchmark:
                UNFOLDED.benchmark("learned_images", method)
            priority: 15
            localrule: True
            conda:
                ENVIRONMENT
            resources:
                **NEEDS.table,
            params:
                method=method,
                recipe=recipes.learned_images_recipe(UNFOLDED.study, method),
            message:
                f"images that {method} learns from"
            script:
                "../scripts/learned_images.py"

    if method in UNFOLDED.clustering_apart:

        rule:
            name:
                f"cluster_{method}"
            input:
                train=UNFOLDED.learned_split(method),
                val=UNFOLDED.splits["val"],
                classes=UNFOLDED.classes,
                clip=UNFOLDED.clip,
                features=UNFOLDED.feature_files,
            output:
                UNFOLDED.clusters_of(method),
            log:
                UNFOLDED.log("cluster", method),
            benchmark:
                UNFOLDED.benchmark("cluster", method)
            priority: 15
            conda:
                ENVIRONMENT
            threads: NEEDS.gpu_threads
            resources:
                **NEEDS.clip_job(4000, 16000, minutes=240),
            params:
                counts=[row.clusters],
                recipe=recipes.cluster_recipe(UNFOLDED.study),
            message:
                f"clusters of the images that {method} learns from"
            script:
                "../scripts/cluster.py"

    for factor, block in UNFOLDED.finetune_jobs(method):

        rule:
            name:
                f"finetune_{method}_{rate_name(factor)}_{block.name}"
            input:
                clusters=UNFOLDED.clusters_of(method),
                train=UNFOLDED.learned_split(method),
                val=UNFOLDED.splits["val"],
                classes=UNFOLDED.classes,
                diffusion=UNFOLDED.sampled_model(method),
                templates=UNFOLDED.template_files(method),
                excluded=UNFOLDED.excluded_from_learning(method),
            output:
                **folders_by_candidate("unet", UNFOLDED.trained_unets(method, factor)),
                **folders_by_candidate("adapter", UNFOLDED.trained_adapters(method, factor)),
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
            adapters=[path for f in row.lr_grid for path in UNFOLDED.trained_adapters(method, f).values()],
            classes=UNFOLDED.classes,
        output:
            **folders_by_candidate("unet", UNFOLDED.unets(method)),
            **folders_by_candidate("adapters", UNFOLDED.adapters(method)),
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
