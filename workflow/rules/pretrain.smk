# The miniature's models from the corpus. Results go to the study's folder; the shipped copies in resources/mini were made by
# these rules and copied by hand, so that no timestamp makes a demo train.

if STUDY.miniature is not None:

    rule pretrain_clip:
        input:
            PLAN.corpus_parts,
        output:
            directory(PLAN.path("pretrain/clip")),
        log:
            PLAN.log("pretrain_clip"),
        benchmark:
            PLAN.benchmark("pretrain_clip")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(4000, 4000, minutes=240),
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
            PLAN.log("pretrain_autoencoder"),
        benchmark:
            PLAN.benchmark("pretrain_autoencoder")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(4000, 4000, minutes=240),
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
            PLAN.log("pretrain_unet"),
        benchmark:
            PLAN.benchmark("pretrain_unet")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(6000, 6000, minutes=480),
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
            PLAN.log("pretrain_reference"),
        benchmark:
            PLAN.benchmark("pretrain_reference")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(6000, 6000, minutes=240),
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
            PLAN.log("assemble_models"),
        benchmark:
            PLAN.benchmark("assemble_models")
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.job(4000, 4000, minutes=60),
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
            PLAN.log("measure_models"),
        benchmark:
            PLAN.benchmark("measure_models")
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(4000, 4000, minutes=120),
        params:
            recipe=recipes.measure_recipe(STUDY),
        message:
            "measure the pre-trained models"
        script:
            "../scripts/measure_models.py"
