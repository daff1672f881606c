"""The command ``augbench`` and its subcommands.

A problem that the user can fix is one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from augbench.config.study import DEMO, load_study
from augbench.errors import UserError, naming_files

EXAMPLES = {
    "init": """\
example:
  augbench init data/birds --corpus data/web_images
writes birds.yaml, a study of the images data/birds/CLASS/*.jpg (or data/birds/train/CLASS/*.jpg,
or Parquet files), with the images of data/web_images to retrieve from
""",
    "check": """\
examples:
  augbench check --configfile birds.yaml
  augbench check --configfile birds.yaml --images     # opens every image, too
  augbench check --configfile config/imagenet10.yaml config/overlays/laion_100m.yaml
""",
    "plan": """\
examples:
  augbench plan --configfile birds.yaml               # before a run: what it costs
  augbench plan --configfile birds.yaml               # during a run: what is left, runs now, or failed
  augbench plan --configfile birds.yaml --gpu h200 --gpus 8
  augbench plan --configfile birds.yaml --json | jq .unfinished_jobs
""",
    "run": """\
examples:
  augbench run --configfile birds.yaml                # also resumes what was interrupted
  augbench run --configfile birds.yaml --target report
  augbench run --configfile birds.yaml -- -n          # what would run; all of snakemake's arguments work
""",
    "browse": """\
example:
  augbench browse --configfile birds.yaml
shows the images made so far at http://127.0.0.1:8700/, also during a run; from another machine, first
  ssh -L 8700:127.0.0.1:8700 THIS_MACHINE
""",
    "export": """\
examples:
  augbench export --configfile birds.yaml --row best --to birds_more
  augbench export --configfile birds.yaml --row retrieval --to out --format webdataset --splits train,val
""",
    "compare": """\
examples:
  augbench compare demo fast
  augbench compare results/shots_5 results/shots_20 --out shots
  augbench compare miniature shift_none shift_strong --out shifts
""",
    "clean": """\
examples:
  augbench clean --configfile birds.yaml              # what no study uses, and its size
  augbench clean --configfile birds.yaml --delete
""",
    "debug": """\
examples:
  augbench debug --configfile birds.yaml --target results/birds/tables/table1.csv
  augbench debug --configfile birds.yaml --target statistics --run
""",
}


def _init(arguments: argparse.Namespace) -> int:
    from augbench.commands.init.command import init_study

    print(*init_study(arguments.folder, arguments.corpus, arguments.to), sep="\n")
    return 0


def _show_progress() -> None:
    """Show the lines of :mod:`augbench.progress` on stderr."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("augbench").setLevel(logging.INFO)


def _check(arguments: argparse.Namespace) -> int:
    from augbench.commands.check.study import check_study

    _show_progress()
    study = load_study(arguments.configfile or [DEMO])
    for line in check_study(study, verify_images=arguments.images, tokenise=True):
        print(line)
    print(f"{study.study}: config and data are in order")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from augbench.commands.plan.estimate import estimate_study
    from augbench.commands.plan.show import as_json, render

    estimate = estimate_study(
        load_study(arguments.configfile or [DEMO]), arguments.gpu, arguments.throughput, arguments.gpus
    )
    text = json.dumps(as_json(estimate), indent=2) + "\n" if arguments.json else render(estimate)
    print(text, end="")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from augbench.commands.check.study import check_study
    from augbench.progress import clock
    from augbench.runtime import launcher
    from augbench.runtime.gpus import snakemake_arguments

    configfiles = arguments.configfile or [DEMO]
    study = load_study(configfiles)
    print(*check_study(study, models="pretrain" not in arguments.targets), sep="\n", flush=True)
    start = time.monotonic()
    extra = arguments.snakemake
    cores = arguments.cores or len(os.sched_getaffinity(0))
    limits = snakemake_arguments(study.execution, cores, extra)
    status = launcher.run(study.study, configfiles, arguments.targets, cores, [*extra, *limits])
    took = clock(time.monotonic() - start)
    if status:
        print(f"augbench: stopped after {took}; finished work is kept, run again to resume", file=sys.stderr)
        return 1
    table = Path(f"results/{study.study}/tables/table1.txt")
    if not arguments.targets and "-n" not in extra and table.is_file():
        text = table.read_text(encoding="utf-8")
        answer, _, _ = text.partition("\n\n")
        print(f"{text}\n{answer}\n")
        report = f"results/{study.study}/report.html"
        print(f"Done in {took}. Next: open {report} in a browser; tables/ and figures/ are beside it.")
    return 0


def _browse(arguments: argparse.Namespace) -> int:
    from augbench.commands.browse import open_server
    from augbench.plan.paths import Plan

    study = load_study(arguments.configfile or [DEMO])
    with open_server(Plan(study, ()), arguments.port) as server:
        print(f"{study.study}: http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from augbench.commands.export.export import Wanted, export

    _show_progress()
    configfiles = arguments.configfile or [DEMO]
    wanted = Wanted(
        configfiles=tuple(configfiles),
        row=arguments.row,
        run=arguments.run,
        format=arguments.format,
        splits=tuple(arguments.splits.split(",")),
        addresses=arguments.addresses,
    )
    written, line = export(load_study(configfiles), wanted, Path(arguments.to))
    print(line)
    return 0 if written else 2


def _compare(arguments: argparse.Namespace) -> int:
    from augbench.commands.compare.compare import compare

    folder, text = compare(arguments.studies, arguments.out and Path(arguments.out))
    print(f"{text}\nWritten to {folder}: table.md has the notes on these tables; figure.png shows the rows")
    return 0


def _clean(arguments: argparse.Namespace) -> int:
    from augbench.commands.clean import clean

    print(clean(load_study(arguments.configfile or [DEMO]), arguments.delete))
    return 0


def _debug(arguments: argparse.Namespace) -> int:
    from augbench.commands.debug import debug

    debug(arguments.configfile or [DEMO], arguments.target, step=not arguments.run)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number, at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Grammar of the command line."""
    top = argparse.ArgumentParser(
        prog="augbench",
        description="Which added training data helps a classifier most?",
        epilog="augbench COMMAND --help has examples.",
    )
    commands = top.add_subparsers(dest="command", required=True)

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(function=function)
        if function in (_init, _compare):
            return made
        help_text = f"study and overlays (default: {DEMO})"
        made.add_argument("--configfile", nargs="+", action="extend", metavar="YAML", help=help_text)
        return made

    init = command("init", _init, "write a commented study for a folder of images")
    init.add_argument("folder", metavar="FOLDER", help="folder with one folder of images per class")
    init.add_argument(
        "--corpus", metavar="FOLDER", help="folder of images, or of embeddings, to retrieve from"
    )
    init.add_argument(
        "--to", metavar="FILE", help="file to write, which names the study (default: FOLDER.yaml)"
    )

    check = command("check", _check, "check config and data before anything runs")
    check.add_argument("--images", action="store_true", help="decode every image of data set and corpus, too")

    plan = command(
        "plan",
        _plan,
        "estimate jobs, images, GPU-hours, disk and downloads; show what is done, runs now, or failed",
    )
    plan.add_argument(
        "--gpu",
        "--device",
        help="GPU in the table of figures, such as h200 or v100 (default: the one measured, else the one "
        "here)",
    )
    plan.add_argument(
        "--gpus", type=_positive, metavar="N", help="GPUs that compute at once (default: those here, or 1)"
    )
    plan.add_argument(
        "--throughput",
        metavar="YAML",
        help="measured figures (default: results/throughput.yaml if it exists)",
    )
    plan.add_argument("--json", action="store_true", help="as JSON")

    run = command("run", _run, "run a study, or resume it after an interruption")
    run.add_argument("--cores", type=int, help="cores to use (default: all)")
    run.add_argument(
        "--target", dest="targets", action="append", default=[], help="file or named target; repeatable"
    )
    run.add_argument("snakemake", nargs="*", help="after --: arguments for snakemake, for example -- -n")

    browse = command("browse", _browse, "show all added images of a study in a browser on this machine")
    browse.add_argument(
        "--port", type=int, default=8700, help="port to serve on; 0 for any free one (default: 8700)"
    )

    export = command("export", _export, "write a training set of a finished study, with a data card")
    export.add_argument(
        "--row", required=True, help="row of the study, or best: the row that its statistics support"
    )
    export.add_argument("--run", type=int, default=0, metavar="N", help="number of the set (default: 0)")
    export.add_argument("--to", required=True, metavar="DIR", help="folder to make")
    export.add_argument(
        "--format",
        choices=("imagefolder", "webdataset", "parquet"),
        default="imagefolder",
        help="default: imagefolder",
    )
    export.add_argument(
        "--splits", default="train", help="train, val, test, separated by commas (default: train)"
    )
    export.add_argument(
        "--addresses",
        action="store_true",
        help="list addresses and hashes of retrieved images in place of the images",
    )

    compare = command("compare", _compare, "put finished studies side by side")
    compare.add_argument(
        "studies",
        nargs="+",
        metavar="STUDY",
        help="a finished study: its name, its folder, or a config or overlay that names it; every one is"
        " compared with the first",
    )
    compare.add_argument(
        "--out", metavar="DIR", help="folder for tables and figure (default: results/compare/STUDY-STUDY)"
    )

    clean = command("clean", _clean, "show what no study uses in the store; free it on request")
    clean.add_argument("--delete", action="store_true", help="delete the unused files")

    debug = command("debug", _debug, "run the script of one job here, under Python's debugger")
    debug.add_argument("--target", required=True, help="a file of the study, or a rule without wildcards")
    debug.add_argument(
        "--run",
        action="store_true",
        help="don't stop at the script's first line, only at breakpoint() and errors",
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = parser().parse_args(argv)
    try:
        with naming_files():
            return int(arguments.function(arguments))
    except UserError as error:
        print(error.for_terminal(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("augbench: interrupted; run again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
