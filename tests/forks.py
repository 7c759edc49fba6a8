"""`python -m <module> ...` as a process of its own, without the seconds that imports take.

A server process imports PyTorch, Hydra and this package once, and forks for each command. The fork
is a process like any other: its own environment, folder, streams, signals and exit code. One that
may find the package elsewhere imports it itself. The tests of what a fresh interpreter imports, and
of the same record by one, start one (test_architecture, test_run).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

IMPORTED = (
    "torch",
    "torch.func",
    "torchvision",
    "hydra.main",
    "hydra._internal.hydra",
    "omegaconf",
)
IMPORTED += ("numpy", "pydantic", "safetensors.torch", "filelock", "matplotlib.figure")
IMPORTED += ("matplotlib.backends.backend_agg", "rich.progress", "hydra._internal.utils", "pandas")
OWN = ("cl_bench.engine.job", "cl_bench.results.tracking", "cl_bench.methods.er")
ROOT = Path(__file__).parents[1]


class Command:
    """A started command, with the part of subprocess.Popen's interface that tests use."""

    def __init__(self, words: list[str], cwd: Path, env: dict[str, str]) -> None:
        """`words`: a module's name or a script's path, and its arguments."""
        (out, own_out), (err, own_err), (self._status, own_status) = (os.pipe() for _ in range(3))
        given = [own_out, own_err, own_status]
        socket.send_fds(_server(), [json.dumps([words, str(cwd), env]).encode()], given)
        for handle in given:
            os.close(handle)
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
        self.pid = int(self._line())
        self.returncode: int | None = None

    def _line(self) -> str:
        text = b""
        while not text.endswith(b"\n"):
            text += os.read(self._status, 1) or b"\n"
        return text.decode().strip()

    def wait(self) -> int:
        """Until it has ended, and no longer read what it prints; the exit code.

        That is minus the number of the signal that killed it, where one did.
        """
        self.stdout.close()
        self.stderr.close()
        return self._code()

    def _code(self) -> int:
        if self.returncode is None:
            self.returncode = int(self._line())
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        running = Path(f"/proc/{self.pid}").exists()
        return None if running and self.returncode is None else self._code()

    def send_signal(self, number: int) -> None:
        """The same as from another process."""
        os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """All that it prints, until it has ended."""
        with subprocess.Popen(["cat"], stdin=self.stderr, stdout=subprocess.PIPE, text=True) as cat:
            out = self.stdout.read()
            err = cat.communicate()[0]
        self.wait()
        return out, err


_started: list[tuple[socket.socket, subprocess.Popen]] = []


def _server() -> socket.socket:
    """The connection to this process's server; it ends when the connection closes."""
    if not _started:
        mine, its = socket.socketpair()
        os.set_inheritable(its.fileno(), True)
        call = [sys.executable, __file__, str(its.fileno())]
        plain = {**os.environ, "OMP_NUM_THREADS": "1"}
        own = {"pass_fds": [its.fileno()], "env": plain, "stdin": subprocess.DEVNULL}
        _started.append((mine, subprocess.Popen(call, **own)))
        its.close()
    return _started[0][0]


def _serve(connection: socket.socket) -> list[str] | None:
    """Fork for each request; returns its words in the fork that runs it, None at the end."""
    sys.path.insert(1, str(ROOT))
    for name in (*IMPORTED, *OWN):
        importlib.import_module(name)
    sys.path.remove(str(ROOT))
    gc.freeze()  # what is shared is not written to
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, handles, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not request:
            return None
        if os.fork() == 0:
            connection.close()
            words, cwd, env = json.loads(request)
            return _begin(words, cwd, env, *handles)
        for handle in handles:
            os.close(handle)


def _begin(
    words: list[str], cwd: str, env: dict[str, str], out: int, err: int, status: int
) -> list:
    """Fork once more: the child is the command, this process waits for it and tells its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    child = os.fork()
    if child:
        for handle in (out, err):
            os.close(handle)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.write(status, f"{child}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(status, f"{code}\n".encode())
        os._exit(0)
    os.close(status)
    for handle, number in ((out, 1), (err, 2)):
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if cwd != str(ROOT) or env.get("PYTHONPATH", str(ROOT)) != str(ROOT):
        for name in [name for name in sys.modules if name.partition(".")[0] == "cl_bench"]:
            del sys.modules[name]
    sys.path[0] = cwd
    sys.path[1:1] = [part for part in env.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.argv = words
    return words


def _run(module: str) -> int:
    """The exit code of a module run as `python -m` runs it; a signal's end where one ended it."""
    try:
        if module.endswith(".py"):
            sys.path[0] = str(Path(module).parent)
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        _end()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end() -> None:
    """What an interpreter does at its end, but for freeing what it has imported: a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()


if __name__ == "__main__":
    called = _serve(socket.socket(fileno=int(sys.argv[1])))
    if called:
        code = _run(called[0])
        _end()
        os._exit(code)
