# Candidates -> part 0 of each -> one classifier each -> the best candidate on the validation split.

for method, row in UNFOLDED.study.personalised.items():
    for block in UNFOLDED.candidate_blocks:

        rule:
            name:
                f"candidates_{method}_{block.name}"
            input:
                prompts=UNFOLDED.prompts(method),
                diffusion=UNFOLDED.sampled_model(method),
                train=UNFOLDED.train_of(method),
                classes=UNFOLDED.classes,
                embeddings=list(UNFOLDED.embeddings(method).values()),
                unets=list(UNFOLDED.unets(method).values()),
                adapters=list(UNFOLDED.adapters(method).values()),
            output:
                [
                    of_candidate(UNFOLDED.candidate_folder(method, name, folder))
                    for name in row.candidate_names
                    for folder in block.folders
                ],
            log:
                UNFOLDED.log("candidates", method, block.name),
            benchmark:
                UNFOLDED.benchmark("candidates", method, block.name)
            priority: 12
            conda:
                ENVIRONMENT
            threads: NEEDS.gpu_threads
            resources:
                **NEEDS.generate_job(method, minutes=480),
            params:
                method=method,
                recipe=recipes.generate_recipe(UNFOLDED.study, method),
            message:
                f"generate candidates of {method}"
            script:
                "../scripts/generate_candidates.py"

    rule:
        name:
            f"pool_candidates_{method}"
        input:
            made_by("candidates", method, blocks=UNFOLDED.candidate_blocks),
            train=UNFOLDED.train_of(method),
            classes=UNFOLDED.classes,
            excluded=UNFOLDED.excluded,
        output:
            indexes=[UNFOLDED.pool(method, name) for name in row.candidate_names],
            manifests=[UNFOLDED.resample(method, "0", name) for name in row.candidate_names],
        log:
            UNFOLDED.log("pool_candidates", method),
        benchmark:
            UNFOLDED.benchmark("pool_candidates", method)
        priority: 12
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            method=method,
            recipe=recipes.resample_recipe(UNFOLDED.study, method),
        message:
            f"training sets of the candidates of {method}"
        script:
            "../scripts/pool_candidates.py"

    rule:
        name:
            f"classify_candidates_{method}"
        input:
            made_by("candidates", method, blocks=UNFOLDED.candidate_blocks),
            train=UNFOLDED.train_of(method),
            val=UNFOLDED.splits["val"],
            classes=UNFOLDED.classes,
            manifests=[UNFOLDED.resample(method, "0", name) for name in row.candidate_names],
            excluded=UNFOLDED.excluded,
            first_weights=UNFOLDED.first_weights,
        output:
            [path for name in row.candidate_names for path in UNFOLDED.run_files(method, "0", name)],
        log:
            UNFOLDED.log("classify_candidates", method),
        benchmark:
            UNFOLDED.benchmark("classify_candidates", method)
        priority: 12
        conda:
            ENVIRONMENT
        threads: NEEDS.classifier_threads
        resources:
            **NEEDS.classifier_job(3000, 64000, minutes=1440),
        params:
            method=method,
            recipe=recipes.classifier_recipe(UNFOLDED.study, method),
        message:
            f"train classifiers of the candidates of {method}"
        script:
            "../scripts/classify_candidates.py"

    rule:
        name:
            f"select_{method}"
        input:
            made_by("candidates", method, blocks=UNFOLDED.candidate_blocks),
            results=[UNFOLDED.run_files(method, "0", name)[0] for name in row.candidate_names],
            classes=UNFOLDED.classes,
        output:
            UNFOLDED.selected(method),
        log:
            UNFOLDED.log("select", method),
        benchmark:
            UNFOLDED.benchmark("select", method)
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
