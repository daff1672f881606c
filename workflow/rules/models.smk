# Ids on the Hub -> model folders -> fingerprints.
# Models are fetched once and checked file by file. Recipes and provenance name a model by its fingerprint.
# Only the fetch rules use the network here (offline jobs). Studies share the files: update() keeps Snakemake
# from deleting, before a job, what a run of another study may be reading.

for model, wanted in PLAN.hub_models.items():

    rule:
        name:
            f"fetch_{model}"
        output:
            update(wanted.hub.marker),
        log:
            PLAN.log(f"fetch_{model}"),
        benchmark:
            PLAN.benchmark(f"fetch_{model}")
        retries: 2
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.fetch,
        params:
            model=model,
            recipe=recipes.fetch_recipe(wanted.hub),
        message:
            f"fetch {wanted.hub.repository}"
        script:
            "../scripts/fetch_model.py"


if PLAN.feature_files:

    rule fetch_inception:
        output:
            update(PLAN.feature_files),
        log:
            PLAN.log("fetch_inception"),
        benchmark:
            PLAN.benchmark("fetch_inception")
        retries: 2
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.fetch,
        message:
            "fetch Inception-v3"
        script:
            "../scripts/fetch_inception.py"


if PLAN.aesthetics_files:

    rule fetch_aesthetics:
        output:
            update(PLAN.aesthetics_files),
        log:
            PLAN.log("fetch_aesthetics"),
        benchmark:
            PLAN.benchmark("fetch_aesthetics")
        retries: 2
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.fetch,
        message:
            "fetch the aesthetics predictor"
        script:
            "../scripts/fetch_aesthetics.py"


rule fingerprint_diffusion:
    input:
        PLAN.diffusion_files,
    output:
        PLAN.diffusion,
    log:
        PLAN.log("fingerprint_diffusion"),
    benchmark:
        PLAN.benchmark("fingerprint_diffusion")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.fetch,
    params:
        recipe=recipes.model_recipe(STUDY.diffusion),
    message:
        "hash the diffusion model"
    script:
        "../scripts/fingerprint.py"


for generator, model in STUDY.generators.items():

    rule:
        name:
            f"fingerprint_generator_{generator}"
        input:
            PLAN.files_of(model),
        output:
            PLAN.generator(generator),
        log:
            PLAN.log(f"fingerprint_generator_{generator}"),
        benchmark:
            PLAN.benchmark(f"fingerprint_generator_{generator}")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.fetch,
        params:
            recipe=recipes.model_recipe(model),
        message:
            f"hash the diffusion model {generator}"
        script:
            "../scripts/fingerprint.py"


rule fingerprint_clip:
    input:
        PLAN.clip_files,
    output:
        PLAN.clip,
    log:
        PLAN.log("fingerprint_clip"),
    benchmark:
        PLAN.benchmark("fingerprint_clip")
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **NEEDS.fetch,
    params:
        recipe=recipes.model_recipe(STUDY.clip),
    message:
        "hash CLIP"
    script:
        "../scripts/fingerprint.py"
