# Training split + manifest -> checkpoint, history, predictions per image.
# Only these rules score on the test split; besides them, only the leakage guard (leakage.smk) reads it. A job
# gets the manifests of all runs, so that its inputs do not depend on the blocks of runs.

for block in UNFOLDED.run_blocks:

    rule:
        name:
            f"classify_{block.name}"
        input:
            unpack(get_added),
            train=get_split,
            val=UNFOLDED.splits["val"],
            test=UNFOLDED.splits["test"],
            classes=UNFOLDED.classes,
            excluded=UNFOLDED.excluded,
            first_weights=UNFOLDED.first_weights,
        output:
            UNFOLDED.block_run_files(block),
        log:
            UNFOLDED.log("classify", "{method}", block.name),
        benchmark:
            UNFOLDED.benchmark("classify", "{method}", block.name)
        wildcard_constraints:
            method=any_of(name for name in UNFOLDED.methods if name not in UNFOLDED.study.choosing),
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
