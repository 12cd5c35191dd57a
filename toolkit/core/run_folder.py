"""The run folder `exports/<name>/`: its layout, its manifest, freshness, and writes that are whole or absent."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError

MANIFEST_VERSION = 1
STAGES = ("prepare", "train", "export", "validate", "register")
SIDES = ("train", "val", "test")


@dataclass(frozen=True)
class RunFolder:
    """The places inside one run's folder; nothing else builds these paths."""

    path: Path
    name: str

    @property
    def manifest(self) -> Path:
        """The record of what ran: `manifest.json`."""
        return self.path / "manifest.json"

    @property
    def config(self) -> Path:
        """The settings that ran last: `config.toml`."""
        return self.path / "config.toml"

    @property
    def log(self) -> Path:
        """Everything that was printed: `log.txt`."""
        return self.path / "log.txt"

    @property
    def data(self) -> Path:
        """The folder of prepared records."""
        return self.path / "data"

    def side(self, name: str) -> Path:
        """The records of one side of the split: `train`, `val` or `test`."""
        return self.data / f"{name}.jsonl"

    @property
    def rejected(self) -> Path:
        """The rows that prepare refused, each with its row number and reason."""
        return self.data / "rejected.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of training checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter with its tokenizer, as PEFT saves it."""
        return self.path / "adapter"

    @property
    def train_log(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "train_log.jsonl"

    @property
    def loss_plot(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def imatrix(self) -> Path:
        """The importance matrix of the training split."""
        return self.path / "gguf" / f"{self.name}-imatrix.gguf"

    def gguf(self, quantization: str) -> Path:
        """The GGUF file of one quantization."""
        return self.path / "gguf" / f"{self.name}-{quantization}.gguf"

    @property
    def modelfile(self) -> Path:
        """The Modelfile of the default quantization."""
        return self.path / "Modelfile"

    @property
    def report(self) -> Path:
        """What validation measured."""
        return self.path / "report.json"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"


def folder_of(config: Config) -> RunFolder:
    """Return the run folder that the settings name; nothing is created."""
    return RunFolder(Path(config.run.folder) / config.run.name, config.run.name)


@dataclass(frozen=True)
class Outcome:
    """What a room hands back when its stage succeeded: the files it wrote and its headline figures."""

    outputs: list[Path]
    figures: dict[str, Any]


class FileRecord(BaseModel):
    """One file as it was when a stage ended: its path, bytes, time stamp (ns) and SHA-256 (hex)."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    mtime_ns: int
    sha256: str


class StageRecord(BaseModel):
    """What one stage did: the settings it used, what it read and wrote, and its headline figures.

    `failure` is set where the stage wrote its results, and they say no (a validation gate that is not met).
    """

    settings: dict[str, Any]
    inputs: list[FileRecord]
    outputs: list[FileRecord]
    versions: dict[str, str]
    seconds: float
    finished: str
    figures: dict[str, Any]
    failure: str = ""


class Manifest(BaseModel):
    """All records of a run, by stage."""

    version: int = MANIFEST_VERSION
    run_id: str
    stages: dict[str, StageRecord] = {}


def read_manifest(folder: RunFolder) -> Manifest:
    """Read the manifest, or start an empty one with a new run id; raises ToolkitError if it is damaged."""
    try:
        text = folder.manifest.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Manifest(run_id=uuid.uuid4().hex)
    try:
        return Manifest.model_validate_json(text)
    except (ValidationError, UnicodeDecodeError):
        raise ToolkitError(
            f"`{folder.manifest}` is damaged",
            hint="move it away; the stages then run again",
        ) from None


def write_manifest(folder: RunFolder, manifest: Manifest) -> None:
    """Write the manifest whole or not at all."""
    write_text(folder.manifest, manifest.model_dump_json(indent=1) + "\n")


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_file(path: Path, folder: RunFolder, known: Iterable[FileRecord] = ()) -> FileRecord:
    """Describe a file; its hash is taken over from `known` where path, size and time stamp are the same.

    A path inside the run folder is recorded relative to it, so that the folder can be moved.
    """
    stat = path.stat()
    name = path_name(path, folder)
    for old in known:
        if (old.path, old.size, old.mtime_ns) == (name, stat.st_size, stat.st_mtime_ns):
            return old
    return FileRecord(path=name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256_of(path))


def path_name(path: Path, folder: RunFolder) -> str:
    """Return how the manifest names a path: relative to the run folder if inside, else as it was given."""
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(folder.path.resolve()).as_posix()
    return path.as_posix()


def why_stale(
    record: StageRecord | None, folder: RunFolder, settings: dict[str, Any], inputs: list[Path], outputs: list[Path]
) -> str:
    """Say why a stage must run again, or return an empty string if it is fresh.

    Unchanged size and time stamp count as unchanged; otherwise the SHA-256 decides.
    """
    if record is None:
        return "not run"
    if record.failure:
        return record.failure
    changed = [key for key in sorted({*settings, *record.settings}) if settings.get(key) != record.settings.get(key)]
    if changed:
        return "settings changed: " + ", ".join(changed)
    names = [path_name(path, folder) for path in inputs]
    recorded = {file.path: file for file in record.inputs}
    if set(names) != set(recorded):
        return "inputs changed: " + ", ".join(sorted(set(names) ^ set(recorded)))
    for path, name in zip(inputs, names, strict=True):
        if not _same(path, recorded[name]):
            return f"input changed: {name}"
    written = {file.path for file in record.outputs}
    for path in outputs:
        if path_name(path, folder) not in written:
            return f"output missing: {path_name(path, folder)}"
    for file in record.outputs:
        if not (folder.path / file.path).is_file():
            return f"output missing: {file.path}"
        if not _same(folder.path / file.path, file):
            return f"output changed: {file.path}"
    return ""


def foreign_outputs(record: StageRecord | None, folder: RunFolder, outputs: list[Path]) -> list[str]:
    """List files that a stage would overwrite although it did not write them in their present form."""
    recorded = {file.path: file for file in record.outputs} if record else {}
    foreign = []
    for path in outputs:
        name = path_name(path, folder)
        if path.is_file() and (name not in recorded or not _same(path, recorded[name])):
            foreign.append(name)
    return foreign


def _same(path: Path, old: FileRecord) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    if (stat.st_size, stat.st_mtime_ns) == (old.size, old.mtime_ns):
        return True
    return stat.st_size == old.size and sha256_of(path) == old.sha256


@contextlib.contextmanager
def writing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` and rename it there if the block succeeds; otherwise remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    encoding = None if "b" in mode else "utf-8"
    try:
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # says that somebody is at work on it; gone with the process
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` that takes its place if the block succeeds; otherwise it is removed.

    A former folder of that name is moved aside first and removed last, so there is always one whole folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    descriptor = os.open(fresh, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield fresh
        fresh.chmod(0o755)
        former = path.with_name(f".{path.name}.old")
        shutil.rmtree(former, ignore_errors=True)
        if path.exists():
            path.replace(former)
        fresh.replace(path)
        shutil.rmtree(former, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def clear_stale(paths: Iterable[Path]) -> None:
    """Remove what killed processes left half-written beside these files or folders, and bring back a former folder.

    What another process is writing at this moment is locked by it, and left alone.
    """
    for path in paths:
        _clear(path.parent.glob(f".{glob.escape(path.name)}.*.part"), [path.with_name(f".{path.name}.old")])


def _clear(parts: Iterable[Path], formers: Iterable[Path]) -> None:
    for left in parts:
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(descriptor)
    for former in formers:
        rightful = former.with_name(former.name.removeprefix(".").removesuffix(".old"))
        if former.is_dir():
            shutil.rmtree(former, ignore_errors=True) if rightful.exists() else former.replace(rightful)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    with writing(path) as file:
        file.write(text.encode("utf-8"))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read one side of the split; raises ToolkitError if the file is missing or a line is no JSON object."""
    found: list[dict[str, Any]] = []
    try:
        # Lines end at \n alone: JSON leaves U+2028 and U+0085 in a text as they are, where splitlines() would cut.
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                found.append(dict(json.loads(line)))
    except FileNotFoundError:
        raise ToolkitError(f"no prepared data `{path}`", hint="write it with `toolkit prepare`") from None
    except (ValueError, TypeError) as exc:
        raise ToolkitError(
            f"`{path}` line {len(found) + 1} is no record: {exc}", hint="write it again with `toolkit prepare --force`"
        ) from None
    return found


def sweep(folder: RunFolder) -> None:
    """Do everywhere in a run folder what `clear_stale` does beside single paths."""
    found = {end: [*folder.path.glob(f".*.{end}"), *folder.path.glob(f"*/.*.{end}")] for end in ("part", "old")}
    _clear(found["part"], found["old"])


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keep a second process from writing into the same run folder; raises ToolkitError if one already does."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ToolkitError(
                f"another toolkit is at work in `{folder.path}`",
                hint="wait for it to end, or choose another `run.name`",
            ) from None
        yield
