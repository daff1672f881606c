# Query prompts -> neighbours in the corpus -> filtered image shards and a ledger per class.
# A summary lists what retrieval gave, and the excluded classes. If the corpus is on the web, the retrieve
# jobs download the images.


rule search:
    input:
        prompts=PLAN.prompts(),
        train=PLAN.splits["train"],
        clip=PLAN.clip,
        corpus=PLAN.searched,
        fetched=list(PLAN.fetched_corpus),
        manifest=get_replayed,
    output:
        PLAN.neighbours(),
    log:
        PLAN.log("search", "{method}"),
    benchmark:
        PLAN.benchmark("search", "{method}")
    wildcard_constraints:
        method=any_of(STUDY.retrieved),
    priority: 20
    localrule: NEEDS.search_is_local
    conda:
        ENVIRONMENT
    threads: NEEDS.gpu_threads
    resources:
        **NEEDS.gpu_job(6000, 32000, minutes=480),
    params:
        recipe=get_search_recipe,
    message:
        "search the corpus: {wildcards.method}"
    script:
        "../scripts/search.py"


for method, block in PLAN.retrieve_jobs:

    rule:
        name:
            f"retrieve_{method}_{block.name}"
        input:
            prompts=PLAN.prompts(method),
            train=PLAN.splits["train"],
            neighbours=PLAN.neighbours(method),
            images=PLAN.corpus_parts,
            clip=PLAN.clip,
            diffusion=PLAN.diffusion,
            aesthetics=PLAN.aesthetics_files,
            lists=PLAN.image_lists,
        output:
            shards=[PLAN.shard(method, class_id, "0") for class_id in block.members],
            ledgers=[PLAN.ledger(method, class_id) for class_id in block.members],
        log:
            PLAN.log("retrieve", method, block.name),
        benchmark:
            PLAN.benchmark("retrieve", method, block.name)
        priority: 20
        localrule: NEEDS.download_is_local
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(4000, 16000, minutes=480),
        params:
            method=method,
            recipe=recipes.retrieve_recipe(STUDY, method),
        message:
            f"retrieve images: {method}"
        script:
            "../scripts/retrieve.py"


if PLAN.retrieval_summary:

    rule retrieval_summary:
        input:
            **{f"neighbours_{method}": PLAN.neighbours(method) for method in STUDY.retrieved},
            **{f"ledgers_{method}": PLAN.ledgers(method) for method in STUDY.retrieved},
            train=PLAN.splits["train"],
            classes=PLAN.classes,
            lists=PLAN.image_lists,
        output:
            **captioned(PLAN.retrieval_summary, "Tables", {"fates": "retrieval_yield"}),
        log:
            PLAN.log("retrieval_summary"),
        benchmark:
            PLAN.benchmark("retrieval_summary")
        priority: 20
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.light,
        params:
            recipe=recipes.shortfall_recipe(STUDY),
        message:
            "what retrieval gave"
        script:
            "../scripts/retrieval_summary.py"
