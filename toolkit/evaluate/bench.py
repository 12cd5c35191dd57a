"""The systems of a run, each opened when it is asked; base and trained model share one loaded model."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from toolkit import __version__
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.evaluate_settings import BASE, TRAINED
from toolkit.core.manifest import FileRecord, installed, record_file
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate.llamacpp_system import device_words, opened_gguf
from toolkit.evaluate.systems import Asked, System, Waiting
from toolkit.evaluate.transformers_system import Place, TransformersSystem, choose_place, ends_of, loaded
from toolkit.llamacpp.vocabulary import trained_positions
from toolkit.model.base import Base
from toolkit.model.model_config import model_config
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer


def systems_of(config: Config, folder: RunFolder) -> list[System]:
    """Return the run's systems, in the order base, trained, quantizations as they are written."""
    files = [System(name, "gguf", folder.gguf(name)) for name in config.export.quantizations]
    return [System(BASE, "base"), System(TRAINED, "trained"), *files]


@dataclass
class Bench:
    """What opens the systems of a run. `kept` is False where only the small files of `base` are on this machine."""

    config: Config
    folder: RunFolder
    base: Base
    kept: bool = True
    known: list[FileRecord] = field(default_factory=list)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _model: Any = None

    @property
    def systems(self) -> list[System]:
        """The systems that the settings name."""
        wanted = self.config.evaluate.systems
        return [system for system in systems_of(self.config, self.folder) if not wanted or system.name in wanted]

    @property
    def keys(self) -> list[str]:
        """The keys of all systems of the run whose files are there, those too that the settings do not name."""
        there = [one for one in systems_of(self.config, self.folder) if one.path is None or one.path.is_file()]
        return [self.key(system) for system in there]

    @cached_property
    def form(self) -> PromptFormat:
        """The prompt format of the run."""
        return prompt_format(self.config.prompt)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The training's tokenizer."""
        return load_tokenizer(self.base.folder, self.form)

    @cached_property
    def place(self) -> Place | str:
        """Where base and trained model compute, or why they cannot."""
        if not self.kept:
            return "its weights are read from the hub piece by piece, and none is kept (export.stream_base)"
        return choose_place(self.base.folder)

    def skipped(self, system: System) -> str:
        """Say why a system cannot be asked on this machine; empty if it can."""
        return self.place if system.kind != "gguf" and isinstance(self.place, str) else ""

    @contextlib.contextmanager
    def opened(self, system: System, window: int) -> Iterator[Asked]:
        """Give a system with room for `window` tokens of prompt and answer, if the model has as many positions.

        It is loaded when it is asked something. Base and trained model then stay loaded until a GGUF is opened, or the
        bench is closed. Raises ToolkitError if it does not load; ask `skipped` before.
        """
        if system.path is not None:
            self.close()
            if not system.path.is_file():
                raise ToolkitError(
                    f"no GGUF file `{system.path}`", hint="write it with `toolkit export`", exit_code=MISSING
                )
        elif isinstance(self.place, str):
            raise ToolkitError(f"{system.name} cannot be asked: {self.skipped(system)}", exit_code=MISSING)
        with _enough_memory(system), contextlib.ExitStack() as stack:
            room = self.room(system, window)
            yield Waiting(self.tokenizer, room, cache(lambda: self._load(system, room, stack)))

    def room(self, system: System, window: int) -> int:
        """Return the tokens of prompt and answer that a system has room for, at most `window`."""
        if system.path is not None:
            positions = trained_positions(system.path)
        else:
            sizes = model_config(self.base.folder)
            positions = sizes.context if sizes else None
        return min(window, positions or window)

    def _load(self, system: System, room: int, stack: contextlib.ExitStack) -> Asked:
        if system.path is not None:
            return stack.enter_context(opened_gguf(system.path, self.tokenizer, room, exact=system.name == "F32"))
        assert isinstance(self.place, Place)
        if self._model is None:
            self._model = self._stack.enter_context(loaded(self.base.folder, self.folder.adapter, self.place))
        ends, adapted = ends_of(self.base.folder, self.tokenizer), system.kind == "trained"
        return TransformersSystem(self._model, adapted, self.tokenizer, ends, room, self.place)

    def device(self, system: System) -> str:
        """Say where a system computes; ask before it is loaded, as it then takes the memory that decides."""
        if system.path is not None:
            return device_words(system.path)
        return self.place if isinstance(self.place, str) else self.place.words

    def close(self) -> None:
        """Let go of base and trained model."""
        self._model = None
        self._stack.close()

    def describe(self, system: System) -> dict[str, Any]:
        """Return what evaluation.json says of a system's file: its path in the run folder, bytes and SHA-256."""
        if system.path is None:
            return {"file": None, "bytes": None, "sha256": None}
        found = record_file(system.path, self.folder, self.known)
        return {"file": found.path, "bytes": found.size, "sha256": found.sha256}

    def key(self, system: System) -> str:
        """Return a hash of all that decides a system's answers besides the question: files, place, libraries."""
        if system.path is not None:
            paths, libraries = [system.path], ["llama-cpp-python"]
        else:
            base = self.base.folder
            paths = sorted([*base.glob("*.safetensors"), *base.glob("*config.json")])
            paths += self.folder.adapter_files if system.kind == "trained" else []
            libraries = ["torch", "transformers", "peft"]
        paths.append(self.base.folder / "tokenizer.json")
        hashes = [record_file(path, self.folder, self.known).sha256 for path in paths]
        place = "" if system.path is not None else str(self.place)
        text = json.dumps([__version__, system.name, hashes, place, installed(libraries)])
        return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def _enough_memory(system: System) -> Iterator[None]:
    """Say which system had too little memory, and how the others are asked without it."""
    try:
        yield
    except Exception as exc:  # torch's own, which is not imported here
        if type(exc).__name__ not in ("OutOfMemoryError", "MemoryError"):
            raise
        raise ToolkitError(
            f"{system.name} has too little memory to answer: {str(exc).splitlines()[0] if str(exc) else 'it ran out'}",
            hint="free memory, for example of another program on the GPU, or name the others in `evaluate.systems`",
        ) from None
