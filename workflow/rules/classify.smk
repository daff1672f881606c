# Training split + manifest -> checkpoint, history, per-image predictions. The only rules that read the test split. A job gets
# the manifests of all runs, so that its inputs are the same however the runs are cut into blocks.

for block in PLAN.run_blocks:

    rule:
        name:
            f"classify_{block.name}"
        input:
            unpack(get_added),
            train=get_split,
            val=PLAN.splits["val"],
            test=PLAN.splits["test"],
            classes=PLAN.classes,
            excluded=PLAN.excluded,
        output:
            PLAN.block_run_files(block),
        log:
            PLAN.log("classify", "{method}", block.name),
        benchmark:
            PLAN.benchmark("classify", "{method}", block.name)
        wildcard_constraints:
            method=any_of(PLAN.methods),
        conda:
            ENVIRONMENT
        threads: NEEDS.classifier_threads
        resources:
            **NEEDS.classifier_job(3000, 64000, minutes=720),
        params:
            recipe=get_classifier_recipe,
        message:
            "train classifiers: {wildcards.method}"
        script:
            "../scripts/classify.py"
