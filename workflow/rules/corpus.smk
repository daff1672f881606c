# Pre-training corpus -> images with captions; a corpus that the study embeds itself -> embeddings, index.
# Files of published embeddings are fetched, if the config names their addresses.

if STUDY.miniature is not None:

    # The study's longest chain of jobs begins here, hence the high priority.
    rule corpus:
        input:
            PLAN.fashion_mnist_files,
        output:
            PLAN.corpus_parts,
        log:
            PLAN.log("corpus"),
        benchmark:
            PLAN.benchmark("corpus")
        priority: 20
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.job(2000, 2000, minutes=60),
        params:
            recipe=recipes.corpus_recipe(STUDY),
        message:
            "miniature web corpus"
        script:
            "../scripts/corpus.py"


if PLAN.searched:

    if PLAN.embed_blocks:

        rule embed_corpus_block:
            input:
                parts=PLAN.corpus_parts,
                clip=PLAN.clip,
            output:
                temp(PLAN.embedded_block()),
            log:
                PLAN.log("embed_corpus_block", block="{block}"),
            benchmark:
                PLAN.benchmark("embed_corpus_block", block="{block}")
            wildcard_constraints:
                block=any_of(PLAN.embed_blocks),
            priority: 20
            conda:
                ENVIRONMENT
            threads: NEEDS.gpu_threads
            resources:
                **NEEDS.embed_job(),
            params:
                recipe=recipes.embed_recipe(STUDY),
            message:
                "CLIP embeddings of the corpus, block {wildcards.block}"
            script:
                "../scripts/embed_corpus_block.py"

    rule embed_corpus:
        input:
            parts=PLAN.corpus_parts,
            clip=PLAN.clip,
            blocks=[PLAN.embedded_block(block) for block in PLAN.embed_blocks],
        output:
            directory(PLAN.embeddings_folder),
        log:
            PLAN.log("embed_corpus"),
        benchmark:
            PLAN.benchmark("embed_corpus")
        priority: 20
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.embed_job(merges=bool(PLAN.embed_blocks)),
        params:
            recipe=recipes.embed_recipe(STUDY),
        message:
            "CLIP embeddings of the corpus"
        script:
            "../scripts/embed_corpus.py"

    rule index_corpus:
        input:
            PLAN.embeddings_folder,
        output:
            directory(PLAN.corpus_index),
        log:
            PLAN.log("index_corpus"),
        benchmark:
            PLAN.benchmark("index_corpus")
        priority: 20
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.job(4000, 16000, minutes=240),
        message:
            "index of the corpus"
        script:
            "../scripts/index_corpus.py"


for number, (path, address) in enumerate(PLAN.fetched_corpus.items()):

    rule:
        name:
            f"fetch_corpus_{number}"
        output:
            update(path),
        log:
            PLAN.log(f"fetch_corpus_{number}"),
        benchmark:
            PLAN.benchmark(f"fetch_corpus_{number}")
        retries: 2
        localrule: True
        conda:
            ENVIRONMENT
        resources:
            **NEEDS.fetch,
        params:
            address=address,
        message:
            f"fetch {path}"
        script:
            "../scripts/fetch_corpus.py"
