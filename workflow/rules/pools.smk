# Pools -> scores, by which filters keep the best images. Rows -> the best on the validation split, taken
# again. A choice sees the histories of classifiers alone, which know no test accuracy. The row that chooses
# gets the chosen row's sets and classifiers under its own name.

for pool, scorer in UNFOLDED.scorers:

    rule:
        name:
            f"{UNFOLDED.score_stage(scorer)}_{pool}"
        input:
            shards_to_score(pool, scorer),
            clip=[UNFOLDED.clip] if scorer is None else [],
            weights=UNFOLDED.run_files(scorer, "0")[-1:] if scorer is not None else [],
            first_weights=UNFOLDED.first_weights if scorer is not None else [],
            classes=UNFOLDED.classes,
            excluded=UNFOLDED.excluded,
        output:
            UNFOLDED.scores(pool, scorer),
        log:
            UNFOLDED.log(UNFOLDED.score_stage(scorer), pool),
        benchmark:
            UNFOLDED.benchmark(UNFOLDED.score_stage(scorer), pool)
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.clip_job(4000, 32000, minutes=240),
        params:
            scorer=scorer,
            recipe=recipes.score_recipe(),
        message:
            f"score the pool of {pool} by {'CLIP' if scorer is None else scorer}"
        script:
            "../scripts/score.py"


for method, row in UNFOLDED.study.choosing.items():

    rule:
        name:
            f"choose_{method}"
        input:
            [UNFOLDED.run_files(name, run)[1] for name in row.among for run in UNFOLDED.runs],
        output:
            UNFOLDED.selected(method),
        log:
            UNFOLDED.log("choose", method),
        benchmark:
            UNFOLDED.benchmark("choose", method)
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            method=method,
            recipe=recipes.choice_recipe(UNFOLDED.study, method),
        message:
            f"choose the row of {method}"
        script:
            "../scripts/choose.py"

    rule:
        name:
            f"adopt_{method}"
        input:
            # without the weights: the chosen row's are linked, so both names share a time stamp
            [
                path
                for name in row.among
                for path in UNFOLDED.set_files(name)
                if not path.endswith(".safetensors")
            ],
            choice=UNFOLDED.selected(method),
        output:
            UNFOLDED.set_files(method),
        log:
            UNFOLDED.log("adopt", method),
        benchmark:
            UNFOLDED.benchmark("adopt", method)
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            method=method,
        message:
            f"sets and classifiers of {method}"
        script:
            "../scripts/adopt.py"
