"""Draw the workflow by stage, from the rules: a Mermaid chart in docs/architecture.md (`make docs`).

A node is a rules file, with the first line of its comment. An arrow says that some job of a stage needs files
of another one. Arrows that follow from others are left out. Usage: python docs/make_workflow.py [--check]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import networkx

from augbench.files import PROJECT
from augbench.runtime.dag import planned

PAGE = PROJECT / "docs/architecture.md"
BLOCK = re.compile(r"(?<=<!-- workflow -->\n).*?(?=\n<!-- end of workflow -->)", re.DOTALL)


def stages() -> networkx.DiGraph:
    """Stages of the demo and of its models' pre-training, and which needs which."""
    graph = networkx.DiGraph()
    with planned([PROJECT / "config/demo.yaml"], ["all", "pretrain"]) as dag:
        for job in dag.jobs:
            for needed in dag.dependencies[job]:
                ends = [Path(str(one.rule.snakefile)).stem for one in (needed, job)]
                if ends[0] != ends[1] and "Snakefile" not in ends:
                    graph.add_edge(*ends)
    return networkx.transitive_reduction(graph)


def chart() -> str:
    """The chart as a Markdown code block."""
    graph = stages()
    order = [
        name for name in re.findall(r"rules/(\w+)\.smk", (PROJECT / "Snakefile").read_text()) if name in graph
    ]
    lines = ["```mermaid", "flowchart TD"]
    for name in order:
        first = (PROJECT / f"workflow/rules/{name}.smk").read_text().partition("\n")[0].lstrip("# ")
        lines.append(f'    {name}["<b>{name}</b><br>{first.rstrip(".")}"]')
    for name in order:
        lines += [f"    {name} --> {other}" for other in order if graph.has_edge(name, other)]
    return "\n".join([*lines, "```"])


def main() -> None:
    """Write the chart into its page; with --check, fail if the page has another one."""
    text = PAGE.read_text(encoding="utf-8")
    wanted = BLOCK.sub(lambda _: chart(), text)
    if "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        sys.exit(f"{PAGE.relative_to(PROJECT)} shows another workflow than the rules: run `make docs`")


if __name__ == "__main__":
    main()
