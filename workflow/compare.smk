# Finished studies side by side: tables and a figure, made again when the results of a study change.
#
#   snakemake --cores 1 --snakefile workflow/compare.smk --configfile compare.yaml
#
# with compare.yaml:
#
#   compare:
#     studies: [demo, fast]          # names, folders of results, or configs; each is compared with the first
#     out: results/compare/mine      # by default results/compare/demo-fast
#
# The studies' results are inputs here; each study has a run of its own.

import sys
from pathlib import Path

PROJECT = Path(workflow.basedir).parent
sys.path.insert(0, str(PROJECT / "src"))

from augbench.commands.compare.compare import inputs_of, made_in, wanted_of
from augbench.errors import ending_in_one_line

with ending_in_one_line():
    STUDIES, OUT = wanted_of(config)
    INPUTS = [str(path) for path in inputs_of(STUDIES)]


rule compare:
    default_target: True
    input:
        INPUTS,
    output:
        **{kind: str(path) for kind, path in made_in(OUT).items()},
    log:
        str(OUT / "compare.log"),
    localrule: True
    params:
        studies=STUDIES,
        out=str(OUT),
        python=sys.executable,
        source=str(PROJECT / "src"),
    message:
        "studies side by side"
    shell:
        "PYTHONPATH={params.source:q} {params.python:q} -m augbench.cli compare {params.studies:q}"
        " --out {params.out:q} > {log:q} 2>&1"
