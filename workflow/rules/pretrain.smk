# Corpus -> the miniature's models.
# They are written to the study's folder. A separate command copies them to resources/mini. The copies are no
# outputs of a rule, so that no timestamp makes the demo train again.

if STUDY.miniature is not None:

    rule pretrain_clip:
        input:
            PLAN.corpus_parts,
        output:
            directory(PLAN.pretrained("clip")),
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
            directory(PLAN.pretrained("autoencoder")),
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
            clip=PLAN.pretrained("clip"),
            autoencoder=PLAN.pretrained("autoencoder"),
        output:
            directory(PLAN.pretrained("unet")),
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
            directory(PLAN.pretrained("reference")),
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
            clip=PLAN.pretrained("clip"),
            autoencoder=PLAN.pretrained("autoencoder"),
            unet=PLAN.pretrained("unet"),
        output:
            directory(PLAN.pretrained("models")),
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
            models=PLAN.pretrained("models"),
            references=PLAN.pretrained("reference"),
        output:
            quality=PLAN.pretrained("quality.json"),
            picture=PLAN.pretrained("generated.png"),
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
