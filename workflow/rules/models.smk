# Models: ids on the Hub -> folders, fetched once and checked file by file; folders -> fingerprints, which are what recipes and provenance
# call the models. The only rules here that use the network are the fetch rules.

for model, source in PLAN.hub_models.items():

    rule:
        name:
            f"fetch_{model}"
        output:
            source.marker,
        log:
            PLAN.path(f"logs/fetch_{model}.log"),
        benchmark:
            PLAN.path(f"benchmarks/fetch_{model}.tsv")
        retries: 2
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(1000, 2000),
            runtime=NEEDS.minutes(240),
        params:
            model=model,
            recipe=recipes.fetch_recipe(source),
        message:
            f"fetch {source.repository}"
        script:
            "../scripts/fetch_model.py"


if PLAN.cluster_files and PLAN.feature_files:

    rule fetch_inception:
        output:
            PLAN.feature_files,
        log:
            PLAN.path("logs/fetch_inception.log"),
        benchmark:
            PLAN.path("benchmarks/fetch_inception.tsv")
        retries: 2
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(1000, 2000),
            runtime=NEEDS.minutes(240),
        message:
            "fetch Inception-v3"
        script:
            "../scripts/fetch_inception.py"


if PLAN.aesthetics_files:

    rule fetch_aesthetics:
        output:
            PLAN.aesthetics_files,
        log:
            PLAN.path("logs/fetch_aesthetics.log"),
        benchmark:
            PLAN.path("benchmarks/fetch_aesthetics.tsv")
        retries: 2
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(1000, 2000),
            runtime=NEEDS.minutes(240),
        message:
            "fetch the aesthetics predictor"
        script:
            "../scripts/fetch_aesthetics.py"


rule fingerprint_diffusion:
    input:
        PLAN.diffusion_files,
    output:
        PLAN.path("models/diffusion.json"),
    log:
        PLAN.path("logs/fingerprint_diffusion.log"),
    benchmark:
        PLAN.path("benchmarks/fingerprint_diffusion.tsv")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=NEEDS.memory(1000, 2000),
        runtime=NEEDS.minutes(60),
    params:
        recipe=recipes.model_recipe(STUDY.diffusion),
    message:
        "hash the diffusion model"
    script:
        "../scripts/fingerprint.py"


rule fingerprint_clip:
    input:
        PLAN.clip_files,
    output:
        PLAN.path("models/clip.json"),
    log:
        PLAN.path("logs/fingerprint_clip.log"),
    benchmark:
        PLAN.path("benchmarks/fingerprint_clip.tsv")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=NEEDS.memory(1000, 2000),
        runtime=NEEDS.minutes(60),
    params:
        recipe=recipes.model_recipe(STUDY.clip),
    message:
        "hash CLIP"
    script:
        "../scripts/fingerprint.py"
