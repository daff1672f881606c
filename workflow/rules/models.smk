# Model folders -> fingerprints: what recipes and provenance call the models.


rule fingerprint_diffusion:
    input:
        PLAN.model_files(STUDY.diffusion.model),
    output:
        PLAN.path("models/diffusion.json"),
    log:
        PLAN.path("logs/fingerprint_diffusion.log"),
    benchmark:
        PLAN.path("benchmarks/fingerprint_diffusion.tsv")
    conda:
        ENVIRONMENT
    params:
        recipe=recipes.model_recipe(STUDY.diffusion.model),
    message:
        "hash the diffusion model"
    script:
        "../scripts/fingerprint.py"


rule fingerprint_clip:
    input:
        PLAN.model_files(STUDY.clip.model),
    output:
        PLAN.path("models/clip.json"),
    log:
        PLAN.path("logs/fingerprint_clip.log"),
    benchmark:
        PLAN.path("benchmarks/fingerprint_clip.tsv")
    conda:
        ENVIRONMENT
    params:
        recipe=recipes.model_recipe(STUDY.clip.model),
    message:
        "hash CLIP"
    script:
        "../scripts/fingerprint.py"
