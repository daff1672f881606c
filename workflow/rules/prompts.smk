# Classes and method -> prompts, one row per image to make.
# A row that starts from another row's images waits for the index of these.


rule prompts:
    input:
        classes=UNFOLDED.classes,
        train=get_train,
        templates=get_templates,
        started=get_started,
        leaks=get_started_leaks,
        excluded=get_excluded_starts,
    output:
        UNFOLDED.prompts(),
    log:
        UNFOLDED.log("prompts", "{method}"),
    benchmark:
        UNFOLDED.benchmark("prompts", "{method}")
    # it takes a second, and minutes of work wait for it
    priority: 20
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.light,
    params:
        recipe=get_prompts_recipe,
    message:
        "prompts of {wildcards.method}"
    script:
        "../scripts/prompts.py"
