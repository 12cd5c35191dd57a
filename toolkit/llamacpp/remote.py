"""Where a GGUF is opened: in this process, or in one without torch if llama.cpp is built for a GPU (`worker.py`).

Beside torch's CUDA libraries such a build dies by SIGSEGV as it loads a file. A build for the CPU does not; there
nothing is copied between processes, and none is started. Callers see no difference: a function that is marked with
`beside_file` runs where the file is open.
"""

import contextlib
import functools
import inspect
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, TypeVar

from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.ggml_libraries import gpu_libraries
from toolkit.core.other_process import python_command
from toolkit.formats.gguf_reader import quantization_of
from toolkit.llamacpp import compiling
from toolkit.llamacpp.messages import Broken, Call, CallBack, Reply, Step, read_message, write_message

Given = ParamSpec("Given")
Result = TypeVar("Result")
Asked = dict[int, Callable[..., Any]]  # functions of this process that the other one may call, by argument

NO_TORCH = "sys.modules['torch'] = None"  # whoever imports it gets an ImportError
HIDDEN = {"CUDA_VISIBLE_DEVICES": "-1"}  # then CUDA finds no GPU, and sets nothing up
SECONDS = 10  # for a process to end


@dataclass
class Remote:
    """A GGUF file that another process has open; `on_gpu` says whether it sees the GPU, `said` holds its stderr."""

    process: "subprocess.Popen[bytes]"
    asks: IO[bytes]
    replies: IO[bytes]
    path: Path
    said: IO[bytes]
    on_gpu: bool
    over: bool = False

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function there, the open file its first argument; what it yields comes one by one, as it is wanted.

        Functions among the arguments are called here. Raises what the function raises, and ToolkitError if the process
        dies.
        """
        asked: Asked = {number: one for number, one in enumerate(arguments) if inspect.isroutine(one)}
        sent = tuple(CallBack(number) if number in asked else one for number, one in enumerate(arguments))
        reply = self.ask(Call(function, sent, named), asked)
        return reply.value if reply.generator is None else self._steps(reply.generator, asked)

    def _steps(self, number: int, asked: Asked) -> Generator[Any, None, None]:
        try:
            while not (reply := self.ask(Step(number), asked)).ended:
                yield reply.value
        finally:
            if not self.over:
                self.ask(Step(number, close=True), asked)

    def ask(self, request: Call | Step, asked: Asked) -> Reply:
        """Send a request and wait for the reply."""
        try:
            write_message(self.asks, request)
            while isinstance(reply := read_message(self.replies), CallBack):
                write_message(self.asks, asked[reply.number](*reply.arguments))
        except Broken:
            raise self._died() from None
        except BaseException:  # the reply would be taken for the next one's
            self.over = True
            self.process.kill()
            raise
        assert isinstance(reply, Reply)
        if reply.error is not None:
            raise reply.error
        return reply

    def close(self) -> None:
        """End the process, which has written no file."""
        self.over = True
        for pipe in (self.asks, self.replies):
            with contextlib.suppress(OSError):
                pipe.close()
        self._wait()

    def _wait(self) -> int:
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _died(self) -> ToolkitError:
        self.over = True
        code = self._wait()
        self.said.seek(0)
        lines = self.said.read().decode("utf-8", errors="replace").strip().splitlines()
        return death(self.path, code, lines[-1].strip()[:200] if lines else "", on_gpu=self.on_gpu)


def beside_file(
    function: Callable[Concatenate[Any, Given], Result],
) -> Callable[Concatenate[Any, Given], Result]:
    """Let a function run where the GGUF is open that is its first argument; it stands at a module's top."""

    @functools.wraps(function)
    def called(opened: Any, /, *arguments: Given.args, **named: Given.kwargs) -> Result:
        if isinstance(opened, Remote):
            result: Result = opened.call(called, *arguments, **named)
            return result
        return function(opened, *arguments, **named)

    return called


@contextlib.contextmanager
def opened_beside(
    opener: Callable[..., contextlib.AbstractContextManager[Any]], path: Path, *arguments: Any, on_gpu: bool
) -> Iterator[Any]:
    """Give what `opener(path, *arguments)` gives, or the Remote that has it; a Remote without `on_gpu` sees no GPU.

    Raises what the opener raises, and ToolkitError if the other process dies.
    """
    if not gpu_libraries():
        with opener(path, *arguments) as found:
            yield found
        return
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            without_torch("from toolkit.llamacpp.worker import serve\nserve()"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("TOOLKIT_DEBUG") else said,
            env=environment(on_gpu=on_gpu),
            pass_fds=_descriptors(path),
        )
        assert process.stdin is not None and process.stdout is not None
        remote = Remote(process, process.stdin, process.stdout, path, said, on_gpu)
        try:
            remote.ask(Call(opener, (path, *arguments)), {})
            yield remote
        finally:
            remote.close()


def _descriptors(path: Path) -> list[int]:
    """Return the descriptor of a file that has no name yet (`/dev/fd/N`): the other process needs it, too."""
    return [int(path.name)] if path.parent == Path("/dev/fd") else []


def without_torch(code: str) -> list[str]:
    """Return the command of a process that runs some lines of code and cannot import torch."""
    return python_command(f"{NO_TORCH}\n{code}")


def environment(*, on_gpu: bool) -> dict[str, str]:
    """Return the environment of such a process; ggml starts no debugger in it where it aborts."""
    return {**os.environ, "GGML_NO_BACKTRACE": "1", **({} if on_gpu else HIDDEN)}


def death(path: Path, code: int, said: str, *, on_gpu: bool) -> ToolkitError:
    """Return the error of a process that ended with a GGUF open: its file, quantization, and signal or exit code."""
    quantization = quantization_of(path)
    named = f"`{path}` ({quantization})" if quantization else f"`{path}`"
    hint = compiling.advice()
    if code == -signal.SIGKILL:
        hint = "the system kills a process that takes too much memory: see `toolkit doctor`"
    elif on_gpu:
        hint = f"put CUDA_VISIBLE_DEVICES=-1 before the command, and it computes on the CPU; or {hint}"
    return ToolkitError(
        f"llama.cpp died with {named} open: {end_of_process(code)}{said and f', {said}'}", hint=hint, exit_code=MISSING
    )


def end_of_process(code: int) -> str:
    """Name how a process ended: by a signal, whose code is negative, or with an exit code."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
