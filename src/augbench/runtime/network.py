"""The guard that keeps jobs off the network, except rules that may use it (offline jobs).

In a guarded process, every attempt to reach another machine ends with one error that names the rule.
Loopback and Unix sockets stay open, because processes that train together communicate through them. The
guard sees the Python code of this process and of its forks, and cannot be removed again. It is no sandbox
for compiled code.
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
from augbench.runtime.warm import FETCHING, HUBS

CLOSED = "AUGBENCH_OFFLINE"  # the rule, for processes that a job starts
CONNECTING = ("socket.connect", "socket.sendto", "socket.sendmsg")
RESOLVING = ("socket.getaddrinfo", "socket.gethostbyname")


def restrict(rule: str, study: Study) -> None:
    """Restrict this process to its rule's network use.

    Only ``fetch_*`` rules may use model hubs. Only rules of :func:`uses_network` may reach other machines.
    """
    if not rule.startswith(FETCHING):
        os.environ.update(dict.fromkeys(HUBS, "1"))
    if not uses_network(rule, study):
        close(rule)


def close(rule: str) -> None:
    """Turn the network off for this process, which runs ``rule``.

    Refused connections raise :class:`UserError`. Processes that it starts learn of this through the
    environment (:func:`close_as_parent`).
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
            allowed = (
                "only fetch rules may (docs/faults.md): give models and data as files, or let a fetch rule"
                " download them"
            )
            raise UserError(f"rule {rule}", f"tries to reach {wanted} over the network", allowed)

    sys.addaudithook(refuse)


def close_as_parent() -> None:
    """Turn the network off if it is off in the job that started this process."""
    if rule := os.environ.get(CLOSED):
        close(rule)


def _is_here(host: str | bytes | None, names: tuple[str, ...], any_number: bool) -> bool:
    """Whether ``host`` is this machine.

    With ``any_number``, every numeric address counts, because resolving it needs no other machine.
    """
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
