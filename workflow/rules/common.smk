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


def any_of(names):
    """A wildcard constraint: one of ``names``, or nothing at all where there are none."""
    return "|".join(names) or "(?!)"


def get_prompts_recipe(wildcards):
    return recipes.prompts_recipe(STUDY, wildcards.method)


def get_generate_recipe(wildcards):
    return recipes.generate_recipe(STUDY, wildcards.method)


def get_retrieve_recipe(wildcards):
    return recipes.retrieve_recipe(STUDY, wildcards.method)


def get_classifier_recipe(wildcards):
    return recipes.classifier_recipe(STUDY, wildcards.method)


def get_shards(wildcards):
    return PLAN.shards(wildcards.method)


def get_split(wildcards):
    return PLAN.split_of(wildcards.method)
