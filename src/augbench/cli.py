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
from dataclasses import dataclass
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


def _init_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of ``augbench init``."""
    command.add_argument("folder", metavar="FOLDER", help="folder with one folder of images per class")
    command.add_argument(
        "--corpus", metavar="FOLDER", help="folder of images, or of embeddings, to retrieve from"
    )
    command.add_argument(
        "--to", metavar="FILE", help="file to write, which names the study (default: FOLDER.yaml)"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number, at least 1")
    return int(text)


def _show_progress() -> None:
    """Show the lines of :mod:`augbench.progress` on stderr."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("augbench").setLevel(logging.INFO)


def _check(arguments: argparse.Namespace) -> int:
    from augbench.commands.check.study import check_study

    _show_progress()
    if not arguments.configfile:
        print(f"no --configfile: this is the demo, {DEMO}")
    study = load_study(arguments.configfile or [DEMO])
    for line in check_study(study, verify_images=arguments.images, tokenise=True):
        print(line)
    print(f"{study.study}: config and data are in order")
    return 0


def _check_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of ``augbench check``."""
    command.add_argument(
        "--images", action="store_true", help="decode every image of data set and corpus, too"
    )


def _plan(arguments: argparse.Namespace) -> int:
    from augbench.commands.plan.estimate import estimate_study
    from augbench.commands.plan.show import as_json, render

    estimate = estimate_study(
        load_study(arguments.configfile or [DEMO]), arguments.gpu, arguments.throughput, arguments.gpus
    )
    text = json.dumps(as_json(estimate), indent=2) + "\n" if arguments.json else render(estimate)
    print(text, end="")
    return 0


def _plan_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of ``augbench plan``."""
    command.add_argument(
        "--gpu",
        "--device",
        help="GPU in the table of figures, such as h200 or v100 (default: the one measured, else the one "
        "here)",
    )
    command.add_argument(
        "--gpus", type=_positive, metavar="N", help="GPUs that compute at once (default: those here, or 1)"
    )
    command.add_argument(
        "--throughput",
        metavar="YAML",
        help="measured figures (default: results/throughput.yaml if it exists)",
    )
    command.add_argument("--json", action="store_true", help="as JSON")


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


def _run_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of ``augbench run``."""
    command.add_argument("--cores", type=int, help="cores to use (default: all)")
    command.add_argument(
        "--target", dest="targets", action="append", default=[], help="file or named target; repeatable"
    )
    command.add_argument("snakemake", nargs="*", help="after --: arguments for snakemake, for example -- -n")


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


def _browse_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of ``augbench browse``."""
    command.add_argument(
        "--port", type=int, default=8700, help="port to serve on; 0 for any free one (default: 8700)"
    )


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


def _export_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of ``augbench export``."""
    command.add_argument(
        "--row", required=True, help="row of the study, or best: the row that its statistics support"
    )
    command.add_argument("--run", type=int, default=0, metavar="N", help="number of the set (default: 0)")
    command.add_argument("--to", required=True, metavar="DIR", help="folder to make")
    command.add_argument(
        "--format",
        choices=("imagefolder", "webdataset", "parquet"),
        default="imagefolder",
        help="default: imagefolder",
    )
    command.add_argument(
        "--splits", default="train", help="train, val, test, separated by commas (default: train)"
    )
    command.add_argument(
        "--addresses",
        action="store_true",
        help="list addresses and hashes of retrieved images in place of the images",
    )


def _compare(arguments: argparse.Namespace) -> int:
    from augbench.commands.compare.compare import compare

    folder, text = compare(arguments.studies, arguments.out and Path(arguments.out))
    print(f"{text}\nWritten to {folder}: table.md has the notes on these tables; figure.png shows the rows")
    return 0


def _compare_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of ``augbench compare``."""
    command.add_argument(
        "studies",
        nargs="+",
        metavar="STUDY",
        help="a finished study: its name, its folder, or a config or overlay that names it; every one is"
        " compared with the first",
    )
    command.add_argument(
        "--out", metavar="DIR", help="folder for tables and figure (default: results/compare/STUDY-STUDY)"
    )


def _clean(arguments: argparse.Namespace) -> int:
    from augbench.commands.clean import clean

    print(clean(load_study(arguments.configfile or [DEMO]), arguments.delete))
    return 0


def _clean_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of ``augbench clean``."""
    command.add_argument("--delete", action="store_true", help="delete the unused files")


def _debug(arguments: argparse.Namespace) -> int:
    from augbench.commands.debug import debug

    debug(arguments.configfile or [DEMO], arguments.target, step=not arguments.run)
    return 0


def _debug_arguments(command: argparse.ArgumentParser) -> None:
    """Arguments of ``augbench debug``."""
    command.add_argument("--target", required=True, help="a file of the study, or a rule without wildcards")
    command.add_argument(
        "--run",
        action="store_true",
        help="don't stop at the script's first line, only at breakpoint() and errors",
    )


@dataclass(frozen=True)
class _Command:
    """A subcommand: its function, its own arguments, a line of help, and whether it takes a config."""

    function: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    text: str
    takes_config: bool = True


COMMANDS = {
    "init": _Command(
        _init, _init_arguments, "write a commented study for a folder of images", takes_config=False
    ),
    "check": _Command(_check, _check_arguments, "check config and data before anything runs"),
    "plan": _Command(
        _plan,
        _plan_arguments,
        "estimate jobs, images, GPU-hours, disk and downloads; show what is done, runs now, or failed",
    ),
    "run": _Command(_run, _run_arguments, "run a study, or resume it after an interruption"),
    "browse": _Command(
        _browse, _browse_arguments, "show all added images of a study in a browser on this machine"
    ),
    "export": _Command(
        _export, _export_arguments, "write a training set of a finished study, with a data card"
    ),
    "compare": _Command(
        _compare, _compare_arguments, "put finished studies side by side", takes_config=False
    ),
    "clean": _Command(_clean, _clean_arguments, "show what no study uses in the store; free it on request"),
    "debug": _Command(_debug, _debug_arguments, "run the script of one job here, under Python's debugger"),
}


def parser() -> argparse.ArgumentParser:
    """Grammar of the command line."""
    top = argparse.ArgumentParser(
        prog="augbench",
        description="Which added training data helps a classifier most?",
        epilog="augbench COMMAND --help has examples.",
    )
    commands = top.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        made = commands.add_parser(
            name,
            help=command.text,
            description=command.text,
            epilog=EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(function=command.function)
        if command.takes_config:
            what = f"study and overlays (default: {DEMO})"
            made.add_argument("--configfile", nargs="+", action="extend", metavar="YAML", help=what)
        command.add_arguments(made)
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
