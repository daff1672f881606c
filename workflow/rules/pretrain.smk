# The miniature's models from the corpus. Results go to the study's folder; the shipped copies in resources/mini were made by
# these rules and copied by hand, so that no timestamp makes a demo train.

if STUDY.miniature is not None:

    rule pretrain_clip:
        input:
            PLAN.corpus_parts,
        output:
            directory(PLAN.path("pretrain/clip")),
        log:
            PLAN.path("logs/pretrain_clip.log"),
        benchmark:
            PLAN.path("benchmarks/pretrain_clip.tsv")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu,
            mem_mb=NEEDS.memory(4000, 4000),
            runtime=NEEDS.minutes(240),
        params:
            recipe=recipes.pretrain_recipe(STUDY, "clip"),
        message:
            "pre-train CLIP"
        script:
            "../scripts/pretrain_clip.py"

    rule pretrain_autoencoder:
        input:
            PLAN.corpus_parts,
        output:
            directory(PLAN.path("pretrain/autoencoder")),
        log:
            PLAN.path("logs/pretrain_autoencoder.log"),
        benchmark:
            PLAN.path("benchmarks/pretrain_autoencoder.tsv")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu,
            mem_mb=NEEDS.memory(4000, 4000),
            runtime=NEEDS.minutes(240),
        params:
            recipe=recipes.pretrain_recipe(STUDY, "autoencoder"),
        message:
            "pre-train the VAE"
        script:
            "../scripts/pretrain_autoencoder.py"

    rule pretrain_unet:
        input:
            parts=PLAN.corpus_parts,
            clip=PLAN.path("pretrain/clip"),
            autoencoder=PLAN.path("pretrain/autoencoder"),
        output:
            directory(PLAN.path("pretrain/unet")),
        log:
            PLAN.path("logs/pretrain_unet.log"),
        benchmark:
            PLAN.path("benchmarks/pretrain_unet.tsv")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu,
            mem_mb=NEEDS.memory(6000, 6000),
            runtime=NEEDS.minutes(480),
        params:
            recipe=recipes.pretrain_recipe(STUDY, "unet"),
        message:
            "pre-train the U-Net"
        script:
            "../scripts/pretrain_unet.py"

    rule pretrain_reference:
        input:
            PLAN.fashion_mnist_files,
        output:
            directory(PLAN.path("pretrain/reference")),
        log:
            PLAN.path("logs/pretrain_reference.log"),
        benchmark:
            PLAN.path("benchmarks/pretrain_reference.tsv")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu,
            mem_mb=NEEDS.memory(6000, 6000),
            runtime=NEEDS.minutes(240),
        params:
            recipe=recipes.pretrain_recipe(STUDY, "reference"),
            corpus=recipes.corpus_recipe(STUDY),
        message:
            "train the reference classifiers"
        script:
            "../scripts/pretrain_reference.py"

    rule assemble_models:
        input:
            parts=PLAN.corpus_parts,
            clip=PLAN.path("pretrain/clip"),
            autoencoder=PLAN.path("pretrain/autoencoder"),
            unet=PLAN.path("pretrain/unet"),
        output:
            directory(PLAN.path("pretrain/models")),
        log:
            PLAN.path("logs/assemble_models.log"),
        benchmark:
            PLAN.path("benchmarks/assemble_models.tsv")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            mem_mb=NEEDS.memory(4000, 4000),
            runtime=NEEDS.minutes(60),
        message:
            "assemble Stable Diffusion and CLIP"
        script:
            "../scripts/assemble_models.py"

    rule measure_models:
        input:
            parts=PLAN.corpus_parts,
            downloads=PLAN.fashion_mnist_files,
            models=PLAN.path("pretrain/models"),
            references=PLAN.path("pretrain/reference"),
        output:
            quality=PLAN.path("pretrain/quality.json"),
            picture=PLAN.path("pretrain/generated.png"),
        log:
            PLAN.path("logs/measure_models.log"),
        benchmark:
            PLAN.path("benchmarks/measure_models.tsv")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu,
            mem_mb=NEEDS.memory(4000, 4000),
            runtime=NEEDS.minutes(120),
        params:
            recipe=recipes.measure_recipe(STUDY),
        message:
            "measure the pre-trained models"
        script:
            "../scripts/measure_models.py"
