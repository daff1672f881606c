# Prompts -> per-class image shards. One rule per block of classes: a job loads the model once and makes the whole block; its
# files, inputs and params do not depend on how the classes are cut into blocks.

for block in PLAN.class_blocks:

    rule:
        name:
            f"generate_{block.name}"
        input:
            prompts=PLAN.path("prompts/{method}.parquet"),
            diffusion=PLAN.path("models/diffusion.json"),
        output:
            expand(PLAN.shard(), class_id=block.members, allow_missing=True),
        log:
            PLAN.path(f"logs/generate/{{method}}_{{part}}_{block.name}.log"),
        benchmark:
            PLAN.path(f"benchmarks/generate/{{method}}_{{part}}_{block.name}.tsv")
        conda:
            ENVIRONMENT
        wildcard_constraints:
            method=any_of(PLAN.sampled),
        params:
            recipe=get_generate_recipe,
        resources:
            mem_mb=3000,
            runtime=120,
        message:
            "generate images of {wildcards.method}, part {wildcards.part}"
        script:
            "../scripts/generate.py"
