# Pools -> near-duplicates of validation and test images, and of training images -> their table.
# Repeats of training images are counted, never dropped.
# The table includes the accuracy on test images without near-duplicates. Besides final scoring
# (classify.smk), only these rules read the test split (guarded test split). Candidates are selected without
# their results.

for level, searched in enumerate(UNFOLDED.guard_levels):

    for number, block in enumerate(UNFOLDED.embed_blocks):

        rule:
            name:
                f"embed_pools_{level}_{block}"
            input:
                pools=[UNFOLDED.pool(method) for method in searched],
                clip=PLAN.clip,
                excluded=PLAN.excluded,
            output:
                temp(UNFOLDED.embedded_pools(level, block)),
            log:
                PLAN.log("embed_pools", block=f"{level}_{block}"),
            benchmark:
                PLAN.benchmark("embed_pools", block=f"{level}_{block}")
            conda:
                ENVIRONMENT
            threads: NEEDS.gpu_threads
            resources:
                **NEEDS.clip_job(4000, 16000, minutes=240),
            params:
                block=number,
            message:
                f"CLIP embeddings of added images, block {block}"
            script:
                "../scripts/embed_pools.py"

    rule:
        name:
            f"leakage_{level}" if level else "leakage"
        input:
            **({f"embedded_{name}": path for name, path in PLAN.embedded_splits.items()} if level else {}),
            pools=[UNFOLDED.pool(method) for method in searched],
            embedded=UNFOLDED.embedded_in_blocks([level]),
            val=PLAN.splits["val"],
            test=PLAN.splits["test"],
            clip=PLAN.clip,
            excluded=PLAN.excluded,
        output:
            **({} if level else PLAN.embedded_splits),
            leaks=[UNFOLDED.leaks(method) for method in searched],
            counts=[UNFOLDED.leak_counts(method) for method in searched],
        log:
            PLAN.log(f"leakage_{level}" if level else "leakage"),
        benchmark:
            PLAN.benchmark(f"leakage_{level}" if level else "leakage")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.clip_job(4000, 32000, minutes=480),
        params:
            recipe=recipes.leakage_recipe(STUDY),
        message:
            "near-duplicates of validation and test images"
        script:
            "../scripts/leakage.py"


if PLAN.guarded:

    rule repeats:
        input:
            pools=[PLAN.pool(method) for method in PLAN.guarded],
            embedded=UNFOLDED.embedded_in_blocks(range(len(UNFOLDED.guard_levels))),
            train=PLAN.splits["train"],
            clip=PLAN.clip,
            excluded=PLAN.excluded,
        output:
            train=PLAN.embedded_split("train"),
            leaks=[PLAN.repeats(method) for method in PLAN.guarded],
        log:
            PLAN.log("repeats"),
        benchmark:
            PLAN.benchmark("repeats")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.clip_job(4000, 32000, minutes=480),
        params:
            recipe=recipes.leakage_recipe(STUDY),
        message:
            "added images that repeat training images"
        script:
            "../scripts/leakage.py"

    if UNFOLDED.further_guarded:

        # of all further draws of the training images, each pool against the training images of its draw
        rule repeats_in_draws:
            input:
                pools=[UNFOLDED.pool(name) for names in UNFOLDED.further_guarded.values() for name in names],
                embedded=UNFOLDED.embedded_in_blocks(range(len(UNFOLDED.guard_levels))),
                train=[UNFOLDED.splits[drawn_name("train", draw)] for draw in UNFOLDED.further_guarded],
                clip=PLAN.clip,
                excluded=PLAN.excluded,
            output:
                train=[
                    UNFOLDED.embedded_split(drawn_name("train", draw)) for draw in UNFOLDED.further_guarded
                ],
                leaks=[
                    UNFOLDED.repeats(name) for names in UNFOLDED.further_guarded.values() for name in names
                ],
            log:
                PLAN.log("repeats_in_draws"),
            benchmark:
                PLAN.benchmark("repeats_in_draws")
            conda:
                ENVIRONMENT
            threads: NEEDS.gpu_threads
            resources:
                **NEEDS.clip_job(4000, 32000, minutes=480),
            params:
                recipe=recipes.leakage_recipe(STUDY),
            message:
                "added images that repeat training images, further draws"
            script:
                "../scripts/repeats_in_draws.py"

    if UNFOLDED.inheriting:

        rule inherited_near_duplicates:
            input:
                pools=[UNFOLDED.pool(method) for method in UNFOLDED.inheriting],
                leaks=[UNFOLDED.leaks(method) for method in UNFOLDED.guarded],
                learned=list(UNFOLDED.inherited_from.values()),
                excluded=PLAN.excluded,
            output:
                [UNFOLDED.inherited(method) for method in UNFOLDED.inheriting],
            log:
                PLAN.log("inherited_near_duplicates"),
            benchmark:
                PLAN.benchmark("inherited_near_duplicates")
            localrule: True
            conda:
                ENVIRONMENT
            resources:
                **NEEDS.table,
            message:
                "images made from near-duplicates"
            script:
                "../scripts/inherited_near_duplicates.py"

    rule near_duplicates:
        input:
            leaks=[UNFOLDED.leaks(method) for method in UNFOLDED.guarded_once],
            repeats=[UNFOLDED.repeats(method) for method in UNFOLDED.guarded_once],
            counts=[UNFOLDED.leak_counts(method) for method in UNFOLDED.guarded_once],
            inherited=[UNFOLDED.inherited(method) for method in UNFOLDED.inheriting],
            choices=UNFOLDED.choices,
            pools=[UNFOLDED.pool(method) for method in UNFOLDED.guarded_once],
            val=PLAN.splits["val"],
            test=PLAN.splits["test"],
            predictions=[path for method in PLAN.methods for path in PLAN.predictions(method)],
        output:
            **captioned(
                captioned(PLAN.leakage_table, "Tables", {"csv": "leakage"}),
                "Near-duplicates",
                {f"pairs_{method}": "leakage_pairs" for method in PLAN.guarded},
            ),
        log:
            PLAN.log("near_duplicates"),
        benchmark:
            PLAN.benchmark("near_duplicates")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.table,
        params:
            recipe=recipes.leakage_table_recipe(STUDY),
        message:
            "table of near-duplicates"
        script:
            "../scripts/near_duplicates.py"
