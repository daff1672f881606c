# Candidates -> part 0 of each -> one classifier each -> the best candidate on the validation split.

for method in STUDY.personalised:
    for block in PLAN.candidate_blocks:

        rule:
            name:
                f"candidates_{method}_{block.name}"
            input:
                prompts=PLAN.prompts(method),
                diffusion=PLAN.diffusion,
                train=PLAN.splits["train"],
                classes=PLAN.classes,
                embeddings=list(PLAN.embeddings(method).values()),
                unets=list(PLAN.unets(method).values()),
            output:
                [
                    of_candidate(PLAN.candidate_folder(method, name, folder))
                    for name in PLAN.embeddings(method)
                    for folder in block.folders
                ],
            log:
                PLAN.log("candidates", method, block.name),
            benchmark:
                PLAN.benchmark("candidates", method, block.name)
            priority: 12
            conda:
                ENVIRONMENT
            threads: NEEDS.gpu_threads
            resources:
                **NEEDS.gpu_job(3000, 16000, minutes=480),
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
            classes=PLAN.classes,
            excluded=PLAN.excluded,
        output:
            indexes=[PLAN.pool(method, name) for name in PLAN.embeddings(method)],
            manifests=[PLAN.resample(method, "0", name) for name in PLAN.embeddings(method)],
        log:
            PLAN.log("pool_candidates", method),
        benchmark:
            PLAN.benchmark("pool_candidates", method)
        priority: 12
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
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
            classes=PLAN.classes,
            manifests=[PLAN.resample(method, "0", name) for name in PLAN.embeddings(method)],
            excluded=PLAN.excluded,
        output:
            [path for name in PLAN.embeddings(method) for path in PLAN.run_files(method, "0", name)],
        log:
            PLAN.log("classify_candidates", method),
        benchmark:
            PLAN.benchmark("classify_candidates", method)
        priority: 12
        conda:
            ENVIRONMENT
        threads: NEEDS.classifier_threads
        resources:
            **NEEDS.classifier_job(3000, 64000, minutes=1440),
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
            classes=PLAN.classes,
        output:
            PLAN.selected(method),
        log:
            PLAN.log("select", method),
        benchmark:
            PLAN.benchmark("select", method)
        priority: 12
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            method=method,
            recipe=recipes.select_recipe(),
        message:
            f"select a candidate of {method}"
        script:
            "../scripts/select_candidate.py"
