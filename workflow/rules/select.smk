# Candidates of a fine-tuned method -> part 0 of each, one classifier each, the best on the validation split.

for method in PLAN.personalised:
    for block in PLAN.candidate_blocks:

        rule:
            name:
                f"candidates_{method}_{block.name}"
            input:
                prompts=PLAN.path(f"prompts/{method}.parquet"),
                diffusion=PLAN.path("models/diffusion.json"),
                train=PLAN.splits["train"],
                classes=PLAN.path("classes.parquet"),
                embeddings=list(PLAN.embeddings(method).values()),
                unets=list(PLAN.unets(method).values()),
            output:
                [
                    of_candidate(PLAN.candidate_folder(method, name, folder))
                    for name in PLAN.embeddings(method)
                    for folder in block.folders
                ],
            log:
                PLAN.path(f"logs/candidates/{method}_{block.name}.log"),
            benchmark:
                PLAN.path(f"benchmarks/candidates/{method}_{block.name}.tsv")
            priority: 12
            conda:
                ENVIRONMENT
            threads: NEEDS.gpu_threads
            resources:
                **NEEDS.gpu,
                mem_mb=NEEDS.memory(3000, 16000),
                runtime=NEEDS.minutes(480),
            params:
                method=method,
                recipe=recipes.generate_recipe(STUDY, method),
            message:
                f"generate candidates of {method}"
            script:
                "../scripts/generate_candidates.py"

    rule:
        name:
            f"pool_candidates_{method}"
        input:
            made_by("candidates", method, blocks=PLAN.candidate_blocks),
            train=PLAN.splits["train"],
            classes=PLAN.path("classes.parquet"),
            excluded=PLAN.excluded,
        output:
            indexes=[PLAN.pool(method, name) for name in PLAN.embeddings(method)],
            manifests=[PLAN.resample(method, "0", name) for name in PLAN.embeddings(method)],
        log:
            PLAN.path(f"logs/pool_candidates/{method}.log"),
        benchmark:
            PLAN.path(f"benchmarks/pool_candidates/{method}.tsv")
        priority: 12
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(1000, 8000),
            runtime=NEEDS.minutes(60),
        params:
            method=method,
            recipe=recipes.resample_recipe(STUDY, method),
        message:
            f"training sets of the candidates of {method}"
        script:
            "../scripts/pool_candidates.py"

    rule:
        name:
            f"classify_candidates_{method}"
        input:
            made_by("candidates", method, blocks=PLAN.candidate_blocks),
            train=PLAN.splits["train"],
            val=PLAN.splits["val"],
            classes=PLAN.path("classes.parquet"),
            manifests=[PLAN.resample(method, "0", name) for name in PLAN.embeddings(method)],
            excluded=PLAN.excluded,
        output:
            [path for name in PLAN.embeddings(method) for path in PLAN.run_files(method, "0", name)],
        log:
            PLAN.path(f"logs/classify_candidates/{method}.log"),
        benchmark:
            PLAN.path(f"benchmarks/classify_candidates/{method}.tsv")
        priority: 12
        conda:
            ENVIRONMENT
        threads: NEEDS.classifier_threads
        resources:
            **NEEDS.classifier_gpus,
            mem_mb=NEEDS.memory(3000, 64000),
            runtime=NEEDS.minutes(1440),
        params:
            method=method,
            recipe=recipes.classifier_recipe(STUDY, method),
        message:
            f"train classifiers of the candidates of {method}"
        script:
            "../scripts/classify_candidates.py"

    rule:
        name:
            f"select_{method}"
        input:
            made_by("candidates", method, blocks=PLAN.candidate_blocks),
            results=[PLAN.run_files(method, "0", name)[0] for name in PLAN.embeddings(method)],
            classes=PLAN.path("classes.parquet"),
        output:
            PLAN.selected(method),
        log:
            PLAN.path(f"logs/select/{method}.log"),
        benchmark:
            PLAN.path(f"benchmarks/select/{method}.tsv")
        priority: 12
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(1000, 2000),
            runtime=NEEDS.minutes(30),
        params:
            method=method,
            recipe=recipes.select_recipe(),
        message:
            f"select a candidate of {method}"
        script:
            "../scripts/select_candidate.py"
