"""The command line: ``augbench check``, ``augbench plan``, ``augbench run``, ``augbench browse``.

Flows in: arguments. Flows out: an exit status; problems that a user can fix are one line each on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from augbench.config.study import DEMO, load_study
from augbench.errors import UserError


def _check(arguments: argparse.Namespace) -> int:
    from augbench.commands.check.study import check_study

    study = load_study(arguments.configfile or [DEMO])
    for line in check_study(study, verify_images=arguments.images):
        print(line)
    print(f"{study.study}: config and data are in order")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from augbench.commands.plan.estimate import estimate_study
    from augbench.commands.plan.show import as_json, render

    estimate = estimate_study(
        load_study(arguments.configfile or [DEMO]), arguments.device, arguments.throughput
    )
    print(
        json.dumps(as_json(estimate), indent=2) if arguments.json else render(estimate),
        end="\n" if arguments.json else "",
    )
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from augbench.commands.check.study import check_study
    from augbench.progress import clock
    from augbench.runtime import launcher

    configfiles = arguments.configfile or [DEMO]
    study = load_study(configfiles)
    check_study(study, models="pretrain" not in arguments.targets)
    start = time.monotonic()
    extra = arguments.snakemake
    status = launcher.run(
        configfiles, arguments.targets, arguments.cores or len(os.sched_getaffinity(0)), extra
    )
    if status:
        print(
            f"augbench: stopped after {clock(time.monotonic() - start)}; what is finished is kept, run again to go on",
            file=sys.stderr,
        )
        return 1
    table = Path(f"results/{study.study}/tables/table1.txt")
    if not arguments.targets and "-n" not in extra and table.is_file():
        print(table.read_text(encoding="utf-8"))
        print(
            f"Done in {clock(time.monotonic() - start)}. Next: open results/{study.study}/report.html in a browser; tables/ and figures/ beside it."
        )
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


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="augbench", description="Which added training data helps a classifier most?"
    )
    commands = top.add_subparsers(dest="command", required=True)
    for name, function, text in (
        ("check", _check, "validate config and data before anything runs"),
        (
            "plan",
            _plan,
            "what a study costs in jobs, images, GPU-hours, disk and downloads; what is done and what is left",
        ),
        ("run", _run, "run a study, or go on with it after an interruption"),
        ("browse", _browse, "look at all added images of a study, in a browser on this machine"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        command.add_argument(
            "--configfile", nargs="+", metavar="YAML", help=f"study and overlays (default: {DEMO})"
        )
        if name == "check":
            command.add_argument(
                "--images", action="store_true", help="open every image of the data set, too"
            )
        elif name == "plan":
            command.add_argument(
                "--device",
                help="key of the GPU in the table of figures, for example h200 or a100 (default: the one measured, else h200)",
            )
            command.add_argument(
                "--throughput",
                metavar="YAML",
                help="table of measured figures (default: results/throughput.yaml, if it is there)",
            )
            command.add_argument("--json", action="store_true", help="as JSON")
        elif name == "browse":
            command.add_argument(
                "--port",
                type=int,
                default=8700,
                help="port of this machine, 0 for any that is free (default: 8700)",
            )
        else:
            command.add_argument("--cores", type=int, help="cores to use (default: all)")
            command.add_argument(
                "--target",
                dest="targets",
                action="append",
                default=[],
                help="file or named target; repeatable",
            )
            command.add_argument(
                "snakemake", nargs="*", help="after --: arguments for snakemake, for example -- -n"
            )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.function(arguments))
    except UserError as error:
        print(error.for_terminal(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("augbench: interrupted; run again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
