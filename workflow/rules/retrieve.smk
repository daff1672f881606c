# Query prompts -> neighbours in the corpus -> filtered per-class image shards and a ledger.

for block in PLAN.class_blocks:

    rule:
        name:
            f"retrieve_{block.name}"
        input:
            prompts=PLAN.path("prompts/{method}.parquet"),
            train=PLAN.splits["train"],
            index=PLAN.path("corpus/index"),
            images=PLAN.corpus_parts,
            clip=PLAN.path("models/clip.json"),
            diffusion=PLAN.path("models/diffusion.json"),
        output:
            shards=expand(PLAN.shard(part="0"), class_id=block.members, allow_missing=True),
            ledger=PLAN.ledger("{method}", block.name),
        log:
            PLAN.path(f"logs/retrieve/{{method}}_{block.name}.log"),
        benchmark:
            PLAN.path(f"benchmarks/retrieve/{{method}}_{block.name}.tsv")
        wildcard_constraints:
            method=any_of(PLAN.retrieved),
        conda:
            ENVIRONMENT
        resources:
            mem_mb=4000,
            runtime=120,
        params:
            recipe=get_retrieve_recipe,
        message:
            "retrieve images: {wildcards.method}"
        script:
            "../scripts/retrieve.py"
