"""Python processes that start warm: forks of a parent that has imported the large libraries.

A process that trains imports for some eight seconds before it begins. Two parents import for all workers of a session:
a fork of the large one, for those that train, takes 0.1 s longer than one of the small one.
Its children have an environment, a working directory, standard streams, cores and an exit code of their own.
What a library reads from the environment when it is imported cannot differ: such a process starts afresh.
Tests whose point is a fresh interpreter (imports, the time of `--help`, a wheel) start one themselves.
"""

import atexit
import fcntl
import functools
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from tests.support import cache
from tests.support.places import REPOSITORY

# What most verbs import, in a second, and the languages' model, which takes half of one.
STAGES = ("prepare", "train", "export", "validate", "register", "evaluate")
ALWAYS = (
    "toolkit.cli.main",
    "toolkit.doctor",
    *(f"toolkit.{stage}.stage" for stage in STAGES),
    "toolkit.evaluate.sheet",
    "toolkit.evaluate.votes",
    "toolkit.pipeline.beside",
    "toolkit.pipeline.performing",
    "httpx",
    "httpcore",
    "numpy",
    "scipy.stats",
    "sklearn.metrics",
    "gguf",
    "llama_cpp",
    "tokenizers",
    "toolkit.prompt.languages:load_identifier",
)
LARGE = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "pandas", "sklearn", "matplotlib.pyplot")
LARGE_TOO = ("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama", "llama_cpp", "gguf")
# Read once, when Python starts or a library is imported. OMP_NUM_THREADS is not among them: see _become.
FIXED = ("PYTHON", "HF_", "HUGGINGFACE", "TRANSFORMERS_", "XDG_", "HOME", "LD_", "LANG", "LC_", "CUDA_", "MPL", "TORCH")
# Libraries set these when they are imported: torch to what it would take anyway, lm-eval for downloads from the hub.
ITS_OWN = {"TORCHINDUCTOR_CACHE_DIR", "HF_XET_HIGH_PERFORMANCE", "HF_HUB_ENABLE_HF_TRANSFER"}
WARM_THREADS = {"jemalloc_bg_thd"}  # Arrow's allocator starts its thread again in a child
AT_FIRST = dict(os.environ)
PARENTS = "TOOLKIT_TEST_PARENTS_ENVIRONMENT"  # tells a process that trains what the warm parent was started with
LARGEST = 1 << 17


class Process(Protocol):
    """What tests use of a process, started afresh or warm."""

    pid: int
    stdin: IO[str] | None
    stdout: IO[str] | None
    stderr: IO[str] | None
    returncode: int | Any

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...
    def send_signal(self, sig: int) -> None: ...
    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]: ...


class Forked:
    """A child of the warm parent; its methods do what subprocess.Popen's do."""

    def __init__(self, arguments: Sequence[str], report: int, pipes: Sequence[IO[str] | None]) -> None:
        self.args, self._report = arguments, os.fdopen(report)
        self.stdin, self.stdout, self.stderr = pipes
        self.returncode: int | None = None
        said = self._report.readline()
        assert said, "the warm parent has ended"
        self.pid = int(said)

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            with selectors.DefaultSelector() as waiting:
                waiting.register(self._report, selectors.EVENT_READ)
                if not waiting.select(timeout):
                    raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            self.returncode = int(self._report.readline())
            self._report.close()
        return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        if self.stdin:
            with suppress(BrokenPipeError), self.stdin:
                self.stdin.write(input or "")
        with ThreadPoolExecutor(2) as pool:
            said = [pool.submit(pipe.read) if pipe else None for pipe in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            out, err = (reading.result() if reading else "" for reading in said)
        return out, err


def start(
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
    imports: Sequence[str] = (*LARGE, *LARGE_TOO),
    afresh: bool = True,
) -> Process:
    """Start `python ARGUMENTS`, which are `-m MODULE …` or `-c CODE …`; streams are PIPE, DEVNULL or None (the same).

    `imports` is what the large parent imports, if it has not yet; without any, the small one forks. Unless it may start
    `afresh`, the environment is known to be the parent's.
    """
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})}
    parents = of_parent()
    if afresh and (sys.platform != "linux" or fixed(env) != parents):
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=cwd, env=env, text=True, stdin=stdin, stdout=stdout, stderr=stderr
        )
    env = {PARENTS: json.dumps(parents), **env}
    theirs: list[int] = []
    ours: list[IO[str] | None] = []
    for number, stream in enumerate((stdin, stdout, stderr)):
        if stream == subprocess.PIPE:
            reading, writing = os.pipe()
            theirs.append(writing if number else reading)
            ours.append(os.fdopen(reading if number else writing, "r" if number else "w"))
        else:
            theirs.append(os.dup(number) if stream is None else os.open(os.devnull, os.O_RDWR))
            ours.append(None)
    report, reporting = os.pipe()
    request = {
        "arguments": arguments,
        "cwd": str(cwd or Path.cwd()),
        "env": env,
        "imports": [*imports],
        "cores": _cores(),
    }
    message = json.dumps(request).encode()
    assert len(message) < LARGEST, "too much to say to the warm parent"
    socket.send_fds(_parent("large" if imports else "small"), [message], [*theirs, reporting])
    for handle in (*theirs, reporting):
        os.close(handle)
    return Forked(arguments, report, ours)


def run(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 600, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` to its end and return what it said."""
    process = start(*arguments, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def of_parent() -> dict[str, str]:
    """Return the fixed part of the environment that this process starts its parents with."""
    return fixed({**AT_FIRST, "PYTHONPATH": str(REPOSITORY)})


def fixed(env: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that cannot differ from the parent's."""
    return {name: value for name, value in env.items() if name.startswith(FIXED) and name not in ITS_OWN}


@functools.cache
def _parent(size: str) -> socket.socket:
    """Connect to a warm parent, and start it where there is none; a closed connection ends its children."""
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with _alone(place := cache.place()) as folder:
        address = f"/proc/self/fd/{folder}/{size}"  # the folder's own name may be too long for a socket's
        try:
            ours.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            Path(address).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(address)
                listener.listen()
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.processes", str(listener.fileno()), str(place / size)],
                    cwd=REPOSITORY,
                    # A library's threads may start as it is imported.
                    env={**AT_FIRST, "PYTHONPATH": str(REPOSITORY), "OPENBLAS_NUM_THREADS": "1"},
                    pass_fds=[listener.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            ours.connect(address)
    return ours


@contextmanager
def _alone(place: Path) -> Iterator[int]:
    """Hold the lock under which a parent starts, ends and is looked for; gives a handle of its folder."""
    folder = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(folder)


class _Parent:
    """What the warm parent holds: whom it listens to, and its children by the handle that tells a child's end."""

    def __init__(self, listener: socket.socket, address: Path) -> None:
        self.listener, self.address = listener, address
        self.events = selectors.DefaultSelector()
        self.events.register(listener, selectors.EVENT_READ)
        self.asking: dict[int, socket.socket] = {}
        self.children: dict[int, tuple[int, int, int]] = {}  # process id, where to report, who asked

    def accept(self) -> None:
        """Take on whoever has connected."""
        asking, _ = self.listener.accept()
        self.asking[asking.fileno()] = asking
        self.events.register(asking, selectors.EVENT_READ)

    def dismiss(self, number: int) -> None:
        """End the children of a worker that has ended, and this process after the last one."""
        for child, _, asked in self.children.values():
            if asked == number:
                os.kill(child, signal.SIGKILL)
        self.events.unregister(number)
        self.asking.pop(number).close()
        if self.asking:
            return
        with suppress(FileNotFoundError), _alone(self.address.parent) as folder:  # else the session has ended
            self.listener.setblocking(False)
            with suppress(BlockingIOError):
                self.accept()  # somebody connected meanwhile
                self.listener.setblocking(True)
                return
            Path(f"/proc/self/fd/{folder}/{self.address.name}").unlink(missing_ok=True)
        sys.exit()

    def report(self, number: int) -> None:
        """Say how a child has ended."""
        self.events.unregister(number)
        child, report, _ = self.children.pop(number)
        _, status = os.waitpid(child, 0)
        with suppress(BrokenPipeError):
            os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(report)
        os.close(number)

    def fork(self, message: bytes, handles: Sequence[int], asked: int) -> dict[str, Any] | None:
        """Fork a child; returns in the child, with what it is to do."""
        request: dict[str, Any] = json.loads(message)
        for name in (*ALWAYS, *request["imports"]):
            module, _, loader = name.partition(":")
            imported = importlib.import_module(module)
            if loader:
                getattr(imported, loader)()  # the module keeps what it loads
        if request["imports"]:  # what a verb starts to train begins warm too
            launch: Any = importlib.import_module("toolkit.train.launch")
            launch.WORKER = importlib.import_module("tests.support.warm").WORKER
        tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
        others = {(task / "comm").read_text().strip() for task in tasks}
        assert others <= WARM_THREADS, f"a fork would lose threads: {others}"
        gc.freeze()  # a child's collections then write to no shared page
        child = os.fork()
        if not child:
            self.events.close()
            for connection in (self.listener, *self.asking.values()):
                connection.close()
            for handle, (_, report, _) in self.children.items():
                os.close(handle)
                os.close(report)
            gc.enable()
            _become(request, handles)
            return request
        os.write(handles[3], b"%d\n" % child)
        ended = os.pidfd_open(child)
        self.children[ended] = child, handles[3], asked
        self.events.register(ended, selectors.EVENT_READ)
        for handle in handles[:3]:
            os.close(handle)
        return None

    def serve(self) -> dict[str, Any]:
        """Fork a child for every request and report its end; returns in the child, with what it is to do."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.disable()  # imports make a million objects that stay
        while True:
            for key, _ in self.events.select():
                if key.fd == self.listener.fileno():
                    self.accept()
                elif key.fd in self.children:
                    self.report(key.fd)
                else:
                    message, handles, _, _ = socket.recv_fds(self.asking[key.fd], LARGEST, 4)
                    if not message:
                        self.dismiss(key.fd)
                    elif request := self.fork(message, handles, key.fd):
                        return request


def _become(request: dict[str, Any], handles: Sequence[int]) -> None:
    """Take on a request's streams, folder and environment, as a new interpreter would."""
    for number, handle in enumerate(handles):
        if number < 3:
            os.dup2(handle, number)
        os.close(handle)
    unbuffered = bool(request["env"].get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = io.TextIOWrapper(
            open(number, "wb" if number else "rb", closefd=False),  # noqa: SIM115 (it stays open)
            encoding=sys.stdout.encoding,
            errors="backslashreplace" if number == 2 else "strict",
            line_buffering=number == 2 or os.isatty(number),
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    os.sched_setaffinity(0, request["cores"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(request["cores"]))))


def _run(request: dict[str, Any]) -> None:
    option, what, *more = request["arguments"]
    sys.argv = [option, *more]
    if option == "-m":
        sys.path[0] = request["cwd"]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = ""
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), module.__dict__)


def _main() -> None:
    code = 0

    def leave() -> None:
        """End without taking torch apart, which takes longer than most children."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        if code == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code)

    atexit.register(leave)  # the first to register is the last to be called
    try:
        _run(_Parent(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])).serve())
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as problem:
        code = -signal.SIGINT if isinstance(problem, KeyboardInterrupt) else 1
        sys.excepthook(*sys.exc_info())


if __name__ == "__main__":
    _main()
