# Prompts + selected candidate -> image shards per class.
# There is one rule per method and block of classes. Its job loads the model once and makes the block's whole
# pool. Where a class has several shards, targets are lists of shards; a shard of these is a target only if it
# is gone or asked for. Files, inputs and params do not depend on the blocks. A stage with thousands of files
# has no wildcards: Snakemake looks up a file's rule by the path before the first wildcard, which would be
# shards/ for all of them.

for method, block in UNFOLDED.generate_jobs:

    rule:
        name:
            f"generate_{method}_{block.name}"
        input:
            **get_selected(method),
            **classes_of_lists(block),
            prompts=UNFOLDED.prompts(method),
            diffusion=UNFOLDED.sampled_model(method),
            train=UNFOLDED.train_of(method),
            started=UNFOLDED.started(method),
        output:
            [*block.targets, *single_shards(block)],
        log:
            UNFOLDED.log("generate", method, block.name),
        benchmark:
            UNFOLDED.benchmark("generate", method, block.name)
        # the longest work goes first; training fills the gaps
        priority: 10
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.generate_job(method),
        params:
            method=method,
            recipe=recipes.generate_recipe(UNFOLDED.study, method),
        message:
            f"generate images of {method}"
        script:
            "../scripts/generate.py"


# `snakemake kernels` compiles the networks once, before many jobs on many GPUs wait for the first one to
# compile. The rule has no output, and no rule has it as an input: otherwise, switching compilation on would
# make every image again.
rule kernels:
    input:
        diffusion=[UNFOLDED.diffusion, *map(UNFOLDED.generator, STUDY.used_generators)],
    log:
        UNFOLDED.log("kernels"),
    benchmark:
        UNFOLDED.benchmark("kernels")
    conda:
        ENVIRONMENT
    threads: NEEDS.gpu_threads
    resources:
        **NEEDS.gpu_job(3000, 16000, minutes=60),
    params:
        methods=list(STUDY.generated),
    message:
        "compile the networks that make images"
    script:
        "../scripts/compile_kernels.py"
