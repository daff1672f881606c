# Query prompts -> neighbours in the corpus -> filtered image shards and a ledger per class.
# Rows that ask with training images, or compare with them, also need their CLIP embeddings. A summary lists
# what retrieval gave, and the excluded classes. If the corpus is on the web, the retrieve jobs download the
# images.


for draw in UNFOLDED.embedded_draws:

    rule:
        name:
            drawn_name("embed_train", draw)
        input:
            train=UNFOLDED.splits[drawn_name("train", draw)],
            clip=UNFOLDED.clip,
        output:
            UNFOLDED.embedded_train(draw),
        log:
            UNFOLDED.log(drawn_name("embed_train", draw)),
        benchmark:
            UNFOLDED.benchmark(drawn_name("embed_train", draw))
        priority: 20
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.clip_job(3000, 16000, minutes=240),
        params:
            recipe=recipes.data_set_recipe(UNFOLDED.study),
        message:
            "CLIP embeddings of the training images"
        script:
            "../scripts/embed_train.py"


if UNFOLDED.searched_in_blocks:

    # the queries once, so that all jobs compare with the same bits
    rule search_queries:
        input:
            prompts=UNFOLDED.prompts(),
            train=get_train,
            embedded=get_compared_with,
            clip=PLAN.clip,
        output:
            temp(UNFOLDED.queries()),
        log:
            UNFOLDED.log("search_queries", "{method}"),
        benchmark:
            UNFOLDED.benchmark("search_queries", "{method}")
        wildcard_constraints:
            method=any_of(UNFOLDED.searched_in_blocks),
        priority: 20
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.clip_job(3000, 16000, minutes=60),
        params:
            recipe=get_search_recipe,
        message:
            "queries: {wildcards.method}"
        script:
            "../scripts/search_queries.py"

    rule search_block:
        input:
            queries=UNFOLDED.queries(),
            clip=PLAN.clip,
            corpus=PLAN.searched,
            fetched=list(PLAN.fetched_corpus),
        output:
            temp(UNFOLDED.searched_block()),
        log:
            UNFOLDED.log("search_block", "{method}", "{block}"),
        benchmark:
            UNFOLDED.benchmark("search_block", "{method}", "{block}")
        wildcard_constraints:
            method=any_of(UNFOLDED.searched_in_blocks),
            block=any_of(UNFOLDED.search_blocks),
        priority: 20
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.search_job(),
        params:
            recipe=get_search_recipe,
        message:
            "search block {wildcards.block} of the corpus: {wildcards.method}"
        script:
            "../scripts/search_block.py"


rule search:
    input:
        unpack(get_search_files),
        prompts=UNFOLDED.prompts(),
        train=get_train,
        embedded=get_compared_with,
        clip=PLAN.clip,
        corpus=PLAN.searched,
        fetched=list(PLAN.fetched_corpus),
        manifest=get_replayed,
    output:
        UNFOLDED.neighbours(),
    log:
        UNFOLDED.log("search", "{method}"),
    benchmark:
        UNFOLDED.benchmark("search", "{method}")
    wildcard_constraints:
        method=any_of(UNFOLDED.study.retrieved),
    priority: 20
    localrule: NEEDS.search_is_local
    conda:
        ENVIRONMENT
    threads: NEEDS.gpu_threads
    resources:
        **NEEDS.search_job(merges=bool(UNFOLDED.searched_in_blocks)),
    params:
        recipe=get_search_recipe,
    message:
        "search the corpus: {wildcards.method}"
    script:
        "../scripts/search.py"


for method, block in UNFOLDED.retrieve_jobs:

    rule:
        name:
            f"retrieve_{method}_{block.name}"
        input:
            prompts=UNFOLDED.prompts(method),
            train=UNFOLDED.train_of(method),
            embedded=UNFOLDED.compared_with(method),
            neighbours=UNFOLDED.neighbours(method),
            images=PLAN.corpus_parts,
            clip=PLAN.clip,
            diffusion=PLAN.diffusion,
            aesthetics=PLAN.aesthetics_files,
            lists=PLAN.image_lists,
        output:
            shards=[UNFOLDED.shard(method, class_id, "0") for class_id in block.members],
            ledgers=[UNFOLDED.ledger(method, class_id) for class_id in block.members],
        log:
            UNFOLDED.log("retrieve", method, block.name),
        benchmark:
            UNFOLDED.benchmark("retrieve", method, block.name)
        priority: 20
        localrule: NEEDS.download_is_local
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.clip_job(4000, 16000, minutes=480),
        params:
            method=method,
            recipe=recipes.retrieve_recipe(UNFOLDED.study, method),
        message:
            f"retrieve images: {method}"
        script:
            "../scripts/retrieve.py"


if PLAN.retrieval_summary:

    rule retrieval_summary:
        input:
            **{f"neighbours_{method}": UNFOLDED.neighbours(method) for method in UNFOLDED.study.retrieved},
            **{f"ledgers_{method}": UNFOLDED.ledgers(method) for method in UNFOLDED.study.retrieved},
            train=PLAN.splits["train"],
            classes=PLAN.classes,
            lists=PLAN.image_lists,
        output:
            **captioned(UNFOLDED.retrieval_summary, "Tables", {"fates": "retrieval_yield"}),
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
            recipe=recipes.shortfall_recipe(UNFOLDED.study),
        message:
            "what retrieval gave"
        script:
            "../scripts/retrieval_summary.py"
