"""A process that has the libraries in memory, of which a run's jobs on this machine are forks.

Most jobs of a small study compute for a second and import torch, diffusers and transformers for several. When
a run begins (``launcher.begin_run``), it starts this process. A job's script that Snakemake has started hands
itself over: the process forks, and the fork takes the script's arguments, environment, folder and files, and
runs it. Snakemake's own process waits, and ends with the fork's status. If anything is unlike (another
Python, no such process any more), the script simply goes on where it is.

The process knows no list of libraries: a job that has ended well tells it what it has imported, and it
imports the same for the next forks. So a run that makes only tables never imports torch. Nothing computes in
it, so a fork begins as a new process would, with two exceptions: Snakemake's benchmark files see the waiting
process, so of their figures only seconds hold (a job's log has its processor time), and code that is edited
during a run may be the earlier one for the run's later jobs. ``AUGBENCH_WARM=off`` switches it off. It is not
used for jobs on a cluster or with a GPU, because a process that has touched CUDA can't be forked.

It ends with the process that has started it, and a fork ends if its waiting process is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

ADDRESS = "AUGBENCH_WARM"  # name of the process's socket, or "off"
OFF = "off"
SCRIPTS = "/.snakemake/scripts/"  # where Snakemake puts the scripts that it runs
BEGUN = b"begun\n"
# seconds: a script that is not taken over by then goes on where it is
PATIENCE = 120.0
SERVER = "from augbench.runtime.warm import serve; serve()"
# Whether a job has imported torch is in its log, and decides what its provenance records.
NOTICED = "torch"
# Libraries of the Hub read these when they are imported. Only scripts that fetch may use the Hub, and those
# are not forks.
HUBS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
FETCHING = "fetch_"
_kept: list[Any] = []  # kept open
_hidden: dict[str, ModuleType] = {}
_forked: list[str] = []  # the script, in a fork


# --- in Snakemake's process ---------------------------------------------------------------------------------


def start() -> None:
    """Start the process, for the jobs that this process starts from now on."""
    if ADDRESS in os.environ:
        return
    name = f"augbench-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen(128)
        ours, theirs = socket.socketpair()
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER, str(listener.fileno()), str(theirs.fileno())],
            pass_fds=(listener.fileno(), theirs.fileno()),
            env={**os.environ, **single, **dict.fromkeys(HUBS, "1")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
    _kept.append(ours)  # closed when this process ends, whatever ends it
    os.environ[ADDRESS] = name


# --- in a job's process -------------------------------------------------------------------------------------


def hand_over() -> None:
    """Let the warm process run this job's script, wait for it, and end with its status; or return.

    Importing :mod:`augbench.runtime` calls this, so that nothing else has been imported.
    """
    name = os.environ.get(ADDRESS, OFF)
    script = os.path.abspath(sys.argv[0])  # Snakemake sets __file__ to the script that this is a copy of
    if name == OFF or SCRIPTS not in script or _name(script).startswith(FETCHING):
        return
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as answers:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(f"\0{name}")
            if _owner(connection) != os.getuid():
                return
            _send(connection, _description(script), [0, 1, 2])
            if answers.readline() != BEGUN:
                return
        except OSError:
            return
        except KeyboardInterrupt:  # nothing has begun: a fork ends when this connection closes
            os._exit(130)
        connection.settimeout(None)
        status = _wait(answers)
    sys.stderr.flush()
    os._exit(status)


def _wait(answers: IO[bytes]) -> int:
    """Wait for the fork's end and return its status.

    Ctrl-C reaches the fork, too, which then has the time to clean up; a second one ends it.
    """
    for _ in range(2):
        try:
            return int(answers.readline())
        except (OSError, ValueError):
            print("augbench: the job's process was killed", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            continue
    return 130


def _description(script: str) -> dict[str, Any]:
    """What a fork needs to be like this process."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "python": [sys.executable, *sys.version_info[:3]],
        "script": script,
        "arguments": sys.argv,
        "path": sys.path,
        "folder": os.getcwd(),
        "umask": umask,
        "environment": {key: value for key, value in os.environ.items() if key != ADDRESS},
    }


def _owner(connection: socket.socket) -> int:
    """User id of the process at the other end."""
    who = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", who)[1]


def _send(connection: socket.socket, message: Any, files: Sequence[int] = ()) -> None:
    content = json.dumps(message).encode()
    socket.send_fds(connection, [struct.pack("Q", len(content))], files)
    connection.sendall(content)


def _receive(connection: socket.socket, files: list[int]) -> Any:
    """Receive a message; append the files that came with it.

    Raises
    ------
    OSError, ValueError
        It is not complete.
    """
    head, received, _, _ = socket.recv_fds(connection, struct.calcsize("Q"), 3)
    files += received
    (left,) = struct.unpack("Q", head) if len(head) == struct.calcsize("Q") else (0,)
    parts = []
    while left and (part := connection.recv(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return json.loads(b"".join(parts))


# --- in the warm process ------------------------------------------------------------------------------------


def serve() -> None:
    """Fork for each script that is handed over, until the process that has started this one ends.

    The arguments of this process are the numbers of two open sockets: where scripts ask, and one whose other
    end closes with the process that has started this one.
    """
    listener, starter = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    gc.disable()  # nothing here becomes garbage
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that have ended leave nothing behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while starter not in select.select([listener, starter], [], [])[0]:
        connection, _ = listener.accept()
        files: list[int] = []
        with connection, contextlib.suppress(OSError, ValueError):
            connection.settimeout(PATIENCE)
            if _owner(connection) != os.getuid():
                continue
            message = _receive(connection, files)
            if "imported" in message:
                _import_all(message["imported"])
                continue
            if message["python"] == [sys.executable, *sys.version_info[:3]]:
                gc.freeze()  # a fork's garbage collector would touch, and so copy, every page with an object
                if os.fork() == 0:
                    try:
                        _become(message, files, connection, listener, starter)
                    except Exception:
                        traceback.print_exc()
                    finally:
                        os._exit(1)  # the loop goes on in the warm process alone
        for number in files:
            os.close(number)
    os._exit(0)  # taking the libraries apart would take a second


def _name(script: str) -> str:
    """Name of a script of the workflow; Snakemake puts random letters and a dot before it."""
    return Path(script).name.partition(".")[2]


def _import_all(names: Sequence[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception, SystemExit):  # the job that needs it says what is wrong
            importlib.import_module(name)


def _become(
    message: Any,
    files: Sequence[int],
    connection: socket.socket,
    listener: socket.socket,
    starter: socket.socket,
) -> None:
    """Run a script as if in a process of its own, tell its status, and end."""
    server = listener.getsockname()
    for other in (listener, starter):
        other.close()
    for number, own in zip(files, (0, 1, 2), strict=True):
        os.dup2(number, own)
        os.close(number)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # the waiting process sends nothing: if its end of the connection changes, it has been killed
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, 10, signal.SIGTERM)  # F_SETSIG of Linux
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    connection.settimeout(None)
    try:
        connection.sendall(BEGUN)
    except OSError:  # the waiting process has been interrupted
        os._exit(1)
    os.chdir(message["folder"])
    os.umask(message["umask"])
    os.environ.clear()
    os.environ.update(message["environment"])
    sys.argv[:], sys.path[:] = message["arguments"], message["path"]
    importlib.invalidate_caches()
    gc.enable()
    before = set(sys.modules)
    _hide(NOTICED)
    _forked.append(message["script"])
    status = _run(message["script"])
    sys.stdout.flush()
    sys.stderr.flush()
    new = [name for name in sys.modules if name not in before]
    if status == 0 and new:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as again:
            again.connect(server)
            _send(again, {"imported": new})
    connection.sendall(f"{status}\n".encode())
    os._exit(0)


def _run(script: str) -> int:
    """Run a script as ``__main__``, then what it has registered for its end; return its exit status."""
    main = ModuleType("__main__")
    main.__file__ = script
    sys.modules["__main__"] = main
    status: Any = 0
    try:
        exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)
    except SystemExit as ended:
        status = ended.code
    except BaseException as error:
        traceback.print_exc()
        sys.last_value = error
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    if job := sys.modules.get("augbench.runtime.job"):
        atexit.unregister(job.leave)  # this process ends at once anyway, after it has told its status
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return int(status) if isinstance(status, int) else int(status is not None)


class _Hidden(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the hidden modules when somebody imports them."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in _hidden else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = _hidden.pop(spec.name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _hide(name: str) -> None:
    """Let a module that this process has in memory count as not yet imported."""
    if name in sys.modules:
        _hidden[name] = sys.modules.pop(name)
        sys.meta_path.insert(0, _Hidden())


def is_fork() -> bool:
    """Whether this process is a fork of the warm process."""
    return bool(_forked)


def in_memory(name: str) -> ModuleType | None:
    """Return a module that this process has in memory, whether or not the job has imported it yet."""
    return sys.modules.get(name) or _hidden.get(name)
