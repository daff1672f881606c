# Prompts, and the candidate that was selected -> per-class image shards. One rule per method and block of classes: a job loads the model once and makes the
# block's whole pool; its files, inputs and params do not depend on how the classes are cut into blocks. No file of a stage with thousands of them has a
# wildcard: Snakemake finds a file's rule by what stands before the first one, and shards/ would stand before them all.

for method, block in PLAN.generate_jobs:

    rule:
        name:
            f"generate_{method}_{block.name}"
        input:
            **get_selected(method),
            prompts=PLAN.prompts(method),
            diffusion=PLAN.diffusion,
            train=PLAN.splits["train"],
        output:
            [PLAN.shard(method, class_id, part) for class_id in block.members for part in block.parts],
        log:
            PLAN.log("generate", method, block.name),
        benchmark:
            PLAN.benchmark("generate", method, block.name)
        # the longest work first: training fills in around it
        priority: 10
        conda:
            ENVIRONMENT
        threads: NEEDS.gpu_threads
        resources:
            **NEEDS.gpu_job(3000, 16000, minutes=240),
        params:
            method=method,
            recipe=recipes.generate_recipe(STUDY, method),
        message:
            f"generate images of {method}"
        script:
            "../scripts/generate.py"


# Compile once, before many jobs on as many GPUs wait for the first of them: `snakemake kernels`. It has no output, and nothing has it as an input: switching
# compilation on would then make every image again.
rule kernels:
    input:
        diffusion=PLAN.diffusion,
    log:
        PLAN.log("kernels"),
    benchmark:
        PLAN.benchmark("kernels")
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
