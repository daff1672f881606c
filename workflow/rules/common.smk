# Config -> plan, and the helper functions of the rules files.
# All other Python in the rules files is loops and conditions over the plan. Logic is in the package, typed
# and tested.

import gc
import os
import sys
from pathlib import Path

PROJECT = Path(workflow.basedir)
sys.path.insert(0, str(PROJECT / "src"))

from augbench.config.draws import drawn_name
from augbench.data.classes import CLASS_ID_PATTERN
from augbench.plan import recipes
from augbench.plan.needs import load_needs
from augbench.runtime.launcher import begin_run, guard_job, lift_rate_limit, restore_times
from augbench.plan.load import load_plan
from augbench.runtime.job import COLLECT_AFTER

# the many objects of a plan all live to the end, so the garbage collector would walk them in vain
gc.set_threshold(COLLECT_AFTER)

# Without --configfile, the study is the demo. The demo is never merged with a user's study.
PLAN = load_plan(config, PROJECT, workflow.configfiles)
STUDY = PLAN.study
# the same with the rows of all draws of the training images; tables and figures fold them together
UNFOLDED = PLAN.unfolded
guard_job(STUDY.study)
if workflow.is_main_process:
    restore_times(STUDY)
ENVIRONMENT = str(PROJECT / "envs/conda.yaml")

# Resources that jobs request from any scheduler. A cluster is described in its profile (slurm/config.yaml).
NEEDS = load_needs(STUDY, workflow.resource_settings.default_resources)


wildcard_constraints:
    method="[a-z0-9_]+",
    class_id=CLASS_ID_PATTERN,
    part=r"\d+",
    run=r"\d+",


def any_of(names):
    """Return a wildcard constraint that matches one of ``names``, or nothing if there are none."""
    return "|".join(names) or "(?!)"


def made_by(stage, method, kind=None, blocks=None):
    """Return the outputs of all jobs of a stage for a method, or the outputs of one kind.

    Snakemake knows the rule of such outputs and need not search for it, if the input has no name.
    """
    made = [getattr(rules, f"{stage}_{method}_{block.name}").output for block in blocks or PLAN.class_blocks]
    return made if kind is None else [getattr(output, kind) for output in made]


def get_prompts_recipe(wildcards):
    return recipes.prompts_recipe(UNFOLDED.study, wildcards.method)


def get_templates(wildcards):
    return UNFOLDED.template_files(wildcards.method)


def get_started(wildcards):
    return UNFOLDED.started(wildcards.method)


def get_started_leaks(wildcards):
    return UNFOLDED.started_leaks(wildcards.method)


def get_excluded_starts(wildcards):
    return UNFOLDED.excluded if UNFOLDED.started(wildcards.method) else []


def get_search_recipe(wildcards):
    return recipes.search_recipe(UNFOLDED.study, wildcards.method)


def get_search_files(wildcards):
    return UNFOLDED.search_files(wildcards.method)


def get_compared_with(wildcards):
    return UNFOLDED.compared_with(wildcards.method)


def get_replayed(wildcards):
    return UNFOLDED.replayed(wildcards.method)


def get_classifier_recipe(wildcards):
    return recipes.classifier_recipe(UNFOLDED.study, wildcards.method)


def rate_name(factor):
    """Format a factor of the learning rate for a rule's name."""
    return f"lr{factor:g}".replace(".", "_").replace("+", "").replace("-", "m")


def get_selected(method):
    """Return further inputs of generation for a fine-tuned method.

    All candidates are inputs, because the selected one is known only when the job runs.
    """
    if method not in UNFOLDED.study.personalised:
        return {}
    return {
        "selected": UNFOLDED.selected(method),
        "embeddings": list(UNFOLDED.embeddings(method).values()),
        "unets": list(UNFOLDED.unets(method).values()),
        "adapters": list(UNFOLDED.adapters(method).values()),
    }


def captioned(files, category, captions):
    """Mark some of ``files`` for ``snakemake --report``.

    ``captions`` maps the kind of a file to the name of a caption in workflow/report.
    """
    return files | {
        kind: report(
            files[kind],
            caption=f"../report/{caption}.rst",
            category=category,
            labels={"result": Path(files[kind]).stem.replace("_", " ")},
        )
        for kind, caption in captions.items()
    }


def folders_by_candidate(kind, folders):
    """Name the outputs of a job that writes one folder per candidate, such as its U-Net."""
    return {f"{kind}_{name}": directory(path) for name, path in folders.items()}


def of_candidate(folder):
    """Mark a candidate's folder of shards: it is deleted after the selection, unless the config keeps it."""
    return directory(folder) if STUDY.execution.keep_candidates else temp(directory(folder))


def classes_of_lists(block):
    """Return the class table as a further input of a job that makes lists of shards."""
    return {"classes": UNFOLDED.classes} if block.lists else {}


def single_shards(block):
    """Return the shards of a block that are targets beside the lists with them.

    They are gone although their list is there, or asked for on the command line. Only the process that plans
    looks for them: on a network disk each look takes half a millisecond.
    """
    if not workflow.is_main_process:
        return []
    there = {path for path in block.lists if os.path.exists(path)}
    return [
        shard
        for path, shards in block.lists.items()
        for shard in shards
        if shard in sys.argv or (path in there and not os.path.exists(shard))
    ]


def shards_made(method):
    """Return the targets of a method's shards by job, also of those that only other methods draw from."""
    if method in UNFOLDED.study.retrieved:
        return made_by("retrieve", method, "shards")
    return made_by("generate", method, blocks=UNFOLDED.generate_blocks(method))


def get_promised_shards(wildcards):
    """Return one target of every job that makes shards: a missing one if there is any, so that the job runs.

    All of them would be thousands of inputs of one job.
    """
    made = [job for method in UNFOLDED.study.pooled for job in shards_made(method)]
    return [next((path for path in job if not os.path.exists(path)), job[0]) for job in made]


def asked_for_files():
    """Return whether this run asks for files of the study, and not for all results or a rule's."""
    return any(argument.startswith(f"{PLAN.root}/") for argument in sys.argv)


def made_among(pool, parts):
    """Return the targets of the first ``parts`` parts of a pool, as outputs of the jobs that make them.

    If the run asks for files, listed shards that are gone are among them, so that they are made again. Other
    runs ask for these by :func:`get_promised_shards`: Snakemake remembers a job's inputs, so the run after
    next would draw the training sets again.
    """
    wanted = set(UNFOLDED.pool_targets(pool, parts))
    listed = set()
    if asked_for_files():
        lists = [block.lists for block in UNFOLDED.generate_blocks(pool)]
        listed = {shard for made in lists for path in wanted & {*made} for shard in made[path]}
    return [
        path
        for job in shards_made(pool)
        for path in job
        if path in wanted or (path in listed and not os.path.exists(path))
    ]


def shards_of(method):
    """Return the shards from which a method's training sets are drawn, or lists of them."""
    study = UNFOLDED.study
    return [
        path for pool in study.pools_of(method) for path in made_among(pool, study.parts_drawn(method, pool))
    ]


def shards_to_score(pool, scorer):
    """Return the shards of a pool that filters with this scorer read, or lists of them."""
    return made_among(pool, UNFOLDED.parts_scored(pool, scorer))


def filtered(method):
    """Return the params of a row's filter; none without one, so that other rows' params stay as they are."""
    recipe = recipes.filter_recipe(UNFOLDED.study, method)
    return {} if recipe is None else {"filter": recipe}


def get_added(wildcards):
    """Return the manifests of added images of all runs; none for a baseline."""
    method = wildcards.method
    if method not in UNFOLDED.study.augmented:
        return {}
    return {"added": [UNFOLDED.resample(method, run) for run in UNFOLDED.runs]}


def get_split(wildcards):
    return UNFOLDED.split_of(wildcards.method)


def get_train(wildcards):
    return UNFOLDED.train_of(wildcards.method)
