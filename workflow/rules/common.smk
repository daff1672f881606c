# Config to plan. The only rules file with Python; everything it calls is in the package, typed and tested.

import sys
from pathlib import Path

PROJECT = Path(workflow.basedir)
sys.path.insert(0, str(PROJECT / "src"))

from augbench import recipes
from augbench.launcher import guard_plain_run
from augbench.workflow import load_plan

# A --configfile counts alone; the demo is used when none is given, and is never merged under a user's study.
PLAN = load_plan(config, PROJECT)
STUDY = PLAN.study
ENVIRONMENT = str(PROJECT / "envs/conda.yaml")


wildcard_constraints:
    method="[a-z0-9_]+",
    class_id="[A-Za-z0-9][A-Za-z0-9._+-]*",
    part=r"\d+",
    run=r"\d+",
    factor=r"[0-9.e+-]+",


def any_of(names):
    """A wildcard constraint: one of ``names``, or nothing at all where there are none."""
    return "|".join(names) or "(?!)"


def get_prompts_recipe(wildcards):
    return recipes.prompts_recipe(STUDY, wildcards.method)


def get_templates(wildcards):
    return PLAN.template_files(wildcards.method)


def get_generate_recipe(wildcards):
    return recipes.generate_recipe(STUDY, wildcards.method)


def get_search_recipe(wildcards):
    return recipes.search_recipe(STUDY, wildcards.method)


def get_replayed(wildcards):
    return PLAN.replayed(wildcards.method)


def get_resample_recipe(wildcards):
    return recipes.resample_recipe(STUDY, wildcards.method)


def get_leaks_to_drop(wildcards):
    return PLAN.leaks_to_drop(wildcards.method)


def get_retrieve_recipe(wildcards):
    return recipes.retrieve_recipe(STUDY, wildcards.method)


def get_classifier_recipe(wildcards):
    return recipes.classifier_recipe(STUDY, wildcards.method)


def get_finetune_recipe(method):
    """A function of the wildcards, as rules that are made in a loop need it."""
    return lambda wildcards: recipes.finetune_recipe(STUDY, method, float(wildcards.factor))


def get_selected(wildcards):
    """What generating for a fine-tuned method needs besides: which candidate won is known only when the job runs."""
    method = wildcards.method
    if method not in PLAN.personalised:
        return {}
    return {
        "selected": PLAN.selected(method),
        "embeddings": list(PLAN.embeddings(method).values()),
        "unets": list(PLAN.unets(method).values()),
    }


def of_candidate(paths):
    """Shards of candidates are deleted after the choice where the config says so."""
    return paths if STUDY.execution.keep_candidates else temp(paths)


def get_shards(wildcards):
    return PLAN.shards(wildcards.method)


def get_added(wildcards):
    """The manifests of added images of all runs; none for a baseline."""
    method = wildcards.method
    return {"added": [PLAN.resample(method, run) for run in PLAN.runs]} if method in PLAN.augmented else {}


def get_split(wildcards):
    return PLAN.split_of(wildcards.method)
