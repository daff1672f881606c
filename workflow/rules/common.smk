# Config to plan. The only rules file with Python; everything it calls is in the package, typed and tested.

import sys
from pathlib import Path

PROJECT = Path(workflow.basedir)
sys.path.insert(0, str(PROJECT / "src"))

from augbench.plan import recipes
from augbench.plan.needs import load_needs
from augbench.runtime.launcher import guard_job, guard_plain_run
from augbench.plan.load import load_plan

guard_job()

# A --configfile counts alone; the demo is used when none is given, and is never merged under a user's study.
PLAN = load_plan(config, PROJECT)
STUDY = PLAN.study
ENVIRONMENT = str(PROJECT / "envs/conda.yaml")

# What jobs ask of a scheduler, whichever it is. What a cluster has is said in its profile (slurm/config.yaml).
NEEDS = load_needs(STUDY, workflow.resource_settings.default_resources)


wildcard_constraints:
    method="[a-z0-9_]+",
    class_id="[A-Za-z0-9][A-Za-z0-9._+-]*",
    part=r"\d+",
    run=r"\d+",


def any_of(names):
    """A wildcard constraint: one of ``names``, or nothing at all where there are none."""
    return "|".join(names) or "(?!)"


def made_by(stage, method, kind=None, blocks=None):
    """Outputs of all of a stage's jobs for a method, or those of one kind. Snakemake knows which rule they are of and need not search for each; it does so
    only where an input has no name."""
    made = [getattr(rules, f"{stage}_{method}_{block.name}").output for block in blocks or PLAN.class_blocks]
    return made if kind is None else [getattr(output, kind) for output in made]


def get_prompts_recipe(wildcards):
    return recipes.prompts_recipe(STUDY, wildcards.method)


def get_templates(wildcards):
    return PLAN.template_files(wildcards.method)


def get_search_recipe(wildcards):
    return recipes.search_recipe(STUDY, wildcards.method)


def get_replayed(wildcards):
    return PLAN.replayed(wildcards.method)


def get_classifier_recipe(wildcards):
    return recipes.classifier_recipe(STUDY, wildcards.method)


def rate_name(factor):
    """A factor of the learning rates in a rule's name."""
    return f"lr{factor:g}".replace(".", "_").replace("+", "").replace("-", "m")


def get_selected(method):
    """What generating for a fine-tuned method needs besides: which candidate won is known only when the job runs."""
    if method not in STUDY.personalised:
        return {}
    return {
        "selected": PLAN.selected(method),
        "embeddings": list(PLAN.embeddings(method).values()),
        "unets": list(PLAN.unets(method).values()),
    }


def captioned(files, category, captions):
    """``files`` with some of them marked for ``snakemake --report``: by their kind, the name of a caption in workflow/report."""
    return files | {
        kind: report(
            files[kind],
            caption=f"../report/{caption}.rst",
            category=category,
            labels={"result": Path(files[kind]).stem.replace("_", " ")},
        )
        for kind, caption in captions.items()
    }


def of_candidate(folder):
    """Shards of candidates are deleted after the choice where the config says so."""
    return directory(folder) if STUDY.execution.keep_candidates else temp(directory(folder))


def shards_made(method):
    """Shards that a method makes, job by job, those included that only rows which draw from it need."""
    if method in STUDY.retrieved:
        return made_by("retrieve", method, "shards")
    return made_by("generate", method, blocks=PLAN.generate_blocks(method))


def get_promised_shards(wildcards):
    """One shard of every job that makes some: a missing one if there is any, for then the job has to run. All of them would be 60,000 targets."""
    made = [job for method in STUDY.pooled for job in shards_made(method)]
    return [next((path for path in job if not Path(path).exists()), job[0]) for job in made]


def shards_of(method):
    """The shards that a method's training sets are drawn from."""
    row, wanted = STUDY.pool_row(method), set(PLAN.shards(method))
    return [path for job in shards_made(row) for path in job if path in wanted]


def get_added(wildcards):
    """The manifests of added images of all runs; none for a baseline."""
    method = wildcards.method
    return {"added": [PLAN.resample(method, run) for run in PLAN.runs]} if method in STUDY.augmented else {}


def get_split(wildcards):
    return PLAN.split_of(wildcards.method)
