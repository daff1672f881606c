"""Compute jobs run without the network: which jobs may use it, and what others get.

``test_interruption.py`` runs a whole study without it.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
from conftest import PROJECT, SMALL_STUDY, Workspace
from namespaces import OUTSIDE

from augbench.config.study import parse_study
from augbench.errors import UserError
from augbench.plan.uses_network import uses_network

CORPORA: dict[str, dict[str, Any]] = {
    "miniature": SMALL_STUDY["corpus"],
    "folder": {"kind": "image_folder", "root": "images"},
    "embeddings": {"kind": "embeddings", "folder": "laion", "clip": "resources/mini/clip"},
    "index": {"kind": "clip_retrieval_index", "folder": "laion", "clip": "resources/mini/clip"},
    "server": {
        "kind": "clip_retrieval_server",
        "url": "http://localhost:1234/knn-service",
        "index": "laion",
        "clip": "resources/mini/clip",
    },
}
COMPUTE = (
    "classes",
    "splits",
    "corpus",
    "generate_retrieval_000",
    "finetune_x_lr1_000",
    "classify_000",
    "retrieval_summary",
    "fingerprint_clip",
    "provenance",
)


@pytest.mark.parametrize(
    ("corpus", "rules"),
    [
        ("miniature", ()),
        ("folder", ()),
        ("embeddings", ("retrieve",)),
        ("index", ("retrieve",)),
        ("server", ("search", "retrieve")),
    ],
)
def test_the_network_is_for_fetching_and_for_what_is_on_the_web(corpus: str, rules: tuple[str, ...]) -> None:
    study = parse_study({**copy.deepcopy(SMALL_STUDY), "corpus": CORPORA[corpus]})
    assert all(
        uses_network(rule, study)
        for rule in (
            "fetch_diffusion",
            "fetch_clip",
            "fetch_fashion_mnist",
            "fetch_inception",
            "fetch_aesthetics",
        )
    )
    assert uses_network("search", study) is ("search" in rules)
    assert uses_network("retrieve_retrieval_000", study) is ("retrieve" in rules)
    assert not any(uses_network(rule, study) for rule in COMPUTE)


def in_process(code: str, *arguments: str, closed: bool = True) -> str:
    """Output of a process that runs ``code`` for the rule `classify_000`; without a network if ``closed``."""
    start = "from augbench.runtime import network; network.close('classify_000')\n" if closed else ""
    command = [
        sys.executable,
        "-c",
        f"import os, socket, sys\nfrom augbench.errors import UserError\n{start}{code}",
        *arguments,
    ]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    } | {"PYTHONPATH": str(PROJECT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


REFUSED = """
try:
    {attempt}
except UserError as error:
    print(error)
"""


ATTEMPTS = {
    f"socket.create_connection(('{OUTSIDE}', 443), timeout=1)": f"{OUTSIDE}:443",
    f"socket.socket().connect_ex(('{OUTSIDE}', 443))": f"{OUTSIDE}:443",
    f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('{OUTSIDE}', 53))": f"{OUTSIDE}:53",
    f"socket.socket(type=socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, ('{OUTSIDE}', 53))": f"{OUTSIDE}:53",
    "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 443))": "2001:db8::1:443",
    "socket.create_connection(('huggingface.co', 443), timeout=1)": "huggingface.co",
    "socket.gethostbyname('huggingface.co')": "huggingface.co",
    "import requests; requests.get('https://huggingface.co/api/models', timeout=1)": "huggingface.co",
    f"import asyncio; asyncio.run(asyncio.open_connection('{OUTSIDE}', 80))": f"{OUTSIDE}:80",
}


def test_an_attempt_to_leave_the_machine_is_one_line_that_names_the_rule() -> None:
    printed = in_process("".join(REFUSED.format(attempt=attempt) for attempt in ATTEMPTS)).splitlines()
    for line, wanted in zip(printed, ATTEMPTS.values(), strict=True):
        assert line.startswith(
            f"rule classify_000: tries to reach {wanted} over the network; only fetch rules may"
        )


LOOPBACK = """
server = socket.create_server(("127.0.0.1", 0))
for host in ("127.0.0.1", "localhost"):
    with socket.create_connection((host, server.getsockname()[1])) as client:
        server.accept()[0].sendall(b"talks")
        print(client.recv(5).decode())
socket.getaddrinfo(socket.gethostname(), 80)
left, right = socket.socketpair()
left.sendall(b"too")
path = f"/tmp/augbench-test-{os.getpid()}"
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
socket.socket(socket.AF_UNIX).connect(path)
os.unlink(path)
print(right.recv(3).decode())
"""


def test_processes_of_this_machine_still_talk() -> None:
    assert in_process(LOOPBACK).split() == ["talks", "talks", "too"]


RESTRICTED = """
import json
from augbench.config.study import parse_study
import augbench.runtime.job
network.restrict(sys.argv[1], parse_study(json.loads(sys.argv[2])))
assert "huggingface_hub" not in sys.modules
from huggingface_hub import constants
print(constants.HF_HUB_OFFLINE, network.CLOSED in os.environ)
"""


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("fetch_clip", "False False"),
        ("retrieve_retrieval_000", "True False"),
        ("generate_x_000", "True True"),
    ],
)
def test_model_hubs_are_for_fetching_only_and_are_told_before_they_are_imported(rule: str, said: str) -> None:
    study = {**SMALL_STUDY, "corpus": CORPORA["embeddings"]}
    assert (
        in_process("from augbench.runtime import network" + RESTRICTED, rule, json.dumps(study), closed=False)
        == said
    )


def test_processes_that_a_job_starts_are_closed_too() -> None:
    child = (
        "from augbench.runtime import network; network.close_as_parent(); "
        f"import socket; socket.create_connection(('{OUTSIDE}', 443), timeout=1)"
    )
    said = in_process(
        f"import subprocess; command = [sys.executable, '-c', {child!r}]; "
        "print(subprocess.run(command, capture_output=True, text=True).stderr)"
    )
    assert said.splitlines()[-1].startswith(
        f"augbench.errors.UserError: rule classify_000: tries to reach {OUTSIDE}:443"
    )
    refused = REFUSED.format(attempt=f"socket.create_connection(({OUTSIDE!r}, 443))")
    forked = f"if os.fork() == 0:\n{refused.replace(chr(10), chr(10) + '    ')}\nelse:\n    os.wait()"
    assert "rule classify_000: tries to reach" in in_process(forked)


def test_a_workflow_s_job_that_leaves_the_machine_fails_with_that_line(workspace: Workspace) -> None:
    workflow = workspace.folder / "workflow"
    workflow.unlink()
    shutil.copytree(PROJECT / "workflow", workflow)
    lines = (
        "import socket",
        "from augbench.runtime.job import running",
        "with running(snakemake):",
        f"    socket.create_connection(('{OUTSIDE}', 443), timeout=1)",
    )
    (workflow / "scripts/classes.py").write_text("\n".join(lines))
    (workspace.folder / "Snakefile").unlink()
    shutil.copyfile(PROJECT / "Snakefile", workspace.folder / "Snakefile")
    done = workspace.augbench(
        "run", "--configfile", "study.yaml", "--cores", "1", "--target", "results/small/classes.parquet"
    )
    assert done.returncode == 1
    assert f"rule classes: tries to reach {OUTSIDE}:443 over the network; only fetch rules may" in done.stderr
    assert "Traceback" not in done.stderr


def gathered(group: Any) -> list[str]:
    """Addresses that each process of a group can reach: only those of the other processes."""
    import socket

    import torch
    import torch.distributed as dist

    total = torch.ones(1)
    dist.all_reduce(total)
    try:
        socket.create_connection((OUTSIDE, 443), timeout=1)
    except UserError as error:
        return [str(total.item()), str(error)]
    return [str(total.item()), "left the machine"]


@pytest.mark.full
def test_processes_that_train_together_do_so_with_the_network_off() -> None:
    code = f"""
import torch
sys.path.insert(0, {str(PROJECT / "tests")!r})
from test_offline import gathered
from augbench.classifier.launch import in_processes
print(in_processes(2, torch.device("cpu"), gathered))
"""
    printed = in_process(code)
    assert printed.startswith("['2.0', 'rule classify_000: tries to reach")
