"""Which rules may use the network, and what keeps all others from it (invariant 9).

Flows in: the name of a rule, and where the study's corpus is. Flows out: a process that is told to stay offline, and in which every attempt to
reach another machine ends with one error that names the rule. Loopback and Unix sockets stay open: processes that train together talk through them.
The guard sees what Python code does, in this process and in forks of it, and cannot be taken off again; it is no sandbox for compiled code.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Any

from augbench.config.study import Study
from augbench.errors import UserError
from augbench.plan.uses_network import uses_network

CLOSED = "AUGBENCH_OFFLINE"  # the rule, for processes that a job starts
HUBS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
CONNECTING = ("socket.connect", "socket.sendto", "socket.sendmsg")
RESOLVING = ("socket.getaddrinfo", "socket.gethostbyname")


def restrict(rule: str, study: Study) -> None:
    """Let this process use of the network what its rule may: model hubs are for `fetch_*`, other machines for those of :func:`uses_network`."""
    if not rule.startswith("fetch_"):
        os.environ.update(dict.fromkeys(HUBS, "1"))
    if not uses_network(rule, study):
        close(rule)


def close(rule: str) -> None:
    """Turn the network off for this process, for the sake of ``rule``; the processes that it starts know through the environment.

    Connections that it refuses raise :class:`UserError`.
    """
    os.environ[CLOSED] = rule
    names = ("localhost", socket.gethostname())

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CONNECTING:
            connection, address = arguments
            if connection.family not in (socket.AF_INET, socket.AF_INET6) or address is None:
                return
            host, wanted = address[0], f"{address[0]}:{address[1]}"
        elif event in RESOLVING:
            host = wanted = arguments[0]
        else:
            return
        if not _is_here(host, names, event in RESOLVING):
            allowed = "only rules that fetch may (docs/faults.md): give models and data as files, or let a fetch rule bring them"
            raise UserError(f"rule {rule}", f"tries to reach {wanted} over the network", allowed)

    sys.addaudithook(refuse)


def close_as_parent() -> None:
    """Turn the network off where it is off in the job that started this process."""
    if rule := os.environ.get(CLOSED):
        close(rule)


def _is_here(host: str | bytes | None, names: tuple[str, ...], any_number: bool) -> bool:
    """Whether ``host`` is this machine; ``any_number``: an address in digits is as good, for to read it asks nobody."""
    text = host.decode() if isinstance(host, bytes) else host or ""
    if text in ("", *names):
        return True
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return any_number or address.is_loopback or address.is_unspecified
