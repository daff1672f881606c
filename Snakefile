# What training data should I add? The workflow's stages, in the order of the data flow.
#
#   augbench run                                          the demo (config/demo.yaml)
#   snakemake --cores 2 --configfile config/demo.yaml     the same, without the launcher
#   snakemake -n                                          the plan
#   snakemake --cores 2 figure1                           one figure and everything that it needs
#   snakemake --report report.html                        Snakemake's own report of a finished study

from snakemake.utils import min_version

min_version("9.27")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/corpus.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/retrieve.smk"
include: "workflow/rules/pools.smk"
include: "workflow/rules/resample.smk"
include: "workflow/rules/leakage.smk"
include: "workflow/rules/classify.smk"
include: "workflow/rules/further.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    table1,
    figure1,
    report,
    pretrain,


# All results of a study. Shards are among them, so that a deleted shard is noticed, here and below.
rule all:
    default_target: True
    input:
        get_promised_shards,
        [UNFOLDED.selected(method) for method in UNFOLDED.study.personalised],
        PLAN.table1.values(),
        PLAN.statistics.values(),
        PLAN.contrasts.values(),
        PLAN.components.values(),
        PLAN.per_class,
        PLAN.paper_table_files.values(),
        PLAN.cost.values(),
        PLAN.figure1.values(),
        PLAN.forest.values(),
        [drawn.values() for drawn in PLAN.figures.values()],
        PLAN.diagnostics.values(),
        PLAN.retrieval_summary.values(),
        PLAN.leakage_table.values(),
        PLAN.further_table.values(),
        PLAN.further_figure_files.values(),
        PLAN.config,
        PLAN.provenance,
        PLAN.report,


rule table1:
    input:
        get_promised_shards,
        PLAN.table1.values(),


rule figure1:
    input:
        get_promised_shards,
        PLAN.figure1.values(),


rule report:
    input:
        get_promised_shards,
        PLAN.report,


# The miniature's models, trained on the corpus, and their measured quality. resources/mini holds a copy.
rule pretrain:
    input:
        PLAN.pretrained("quality.json"),


onstart:
    begin_run(STUDY, workflow.local_exec)
    lift_rate_limit(workflow.scheduler)
