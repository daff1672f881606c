# Prompts, and the candidate that was selected -> per-class image shards. One rule per block of classes: a job loads the model once and makes the block's whole
# pool; its files, inputs and params do not depend on how the classes are cut into blocks.

for block in PLAN.class_blocks:

    rule:
        name:
            f"generate_{block.name}"
        input:
            unpack(get_selected),
            prompts=PLAN.path("prompts/{method}.parquet"),
            diffusion=PLAN.path("models/diffusion.json"),
            train=PLAN.splits["train"],
        output:
            expand(
                PLAN.shard(),
                class_id=block.members,
                part=PLAN.pool_parts,
                allow_missing=True,
            ),
        log:
            PLAN.path(f"logs/generate/{{method}}_{block.name}.log"),
        benchmark:
            PLAN.path(f"benchmarks/generate/{{method}}_{block.name}.tsv")
        wildcard_constraints:
            method=any_of(PLAN.generated),
        # the longest work first: training fills in around it
        priority: 10
        conda:
            ENVIRONMENT
        resources:
            mem_mb=3000,
            runtime=120,
        params:
            recipe=get_generate_recipe,
        message:
            "generate images of {wildcards.method}"
        script:
            "../scripts/generate.py"
