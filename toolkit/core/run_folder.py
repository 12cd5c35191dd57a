"""The run folder `exports/<name>/`: its layout, and the lock on it."""

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.files import clear_parts, lock
from toolkit.core.together import put_back

SPLITS = ("train", "val", "test")
OF_RUN = "config.toml"  # the settings in a run's folder


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
        return self.path / OF_RUN

    @property
    def log(self) -> Path:
        """Everything that was printed: `log.txt`."""
        return self.path / "log.txt"

    @property
    def data(self) -> Path:
        """The folder of prepared records."""
        return self.path / "data"

    def split_file(self, name: str) -> Path:
        """The records of one split: `train`, `val` or `test`."""
        return self.data / f"{name}.jsonl"

    @property
    def rejected(self) -> Path:
        """The rows that prepare refused, each with its row number and reason."""
        return self.data / "rejected.jsonl"

    @property
    def personal(self) -> Path:
        """What may be personal data, each with its row and kind, never with its value."""
        return self.data / "personal.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of training checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter with its tokenizer, as PEFT saves it."""
        return self.path / "adapter"

    @property
    def adapter_files(self) -> list[Path]:
        """The two files that an adapter is made of."""
        return [self.adapter / "adapter_config.json", self.adapter / "adapter_model.safetensors"]

    @property
    def train_log(self) -> Path:
        """One JSON object per logged step."""
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
    def evaluation(self) -> Path:
        """What the evaluation found."""
        return self.path / "evaluation.json"

    @property
    def evaluated(self) -> Path:
        """What systems answered in evaluations: it is not asked again."""
        return self.path / ".evaluate.answers.jsonl"

    @property
    def page(self) -> Path:
        """All of it as one page: `report.html`."""
        return self.path / "report.html"

    @property
    def model_card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def review(self) -> Path:
        """The clinicians' sheet: `review.html`."""
        return self.path / "review.html"

    @property
    def review_table(self) -> Path:
        """The same comparisons for a spreadsheet: `review.csv`."""
        return self.path / "review.csv"

    @property
    def review_key(self) -> Path:
        """What says which system gave which answer of the sheet: `review-key.json`."""
        return self.path / "review-key.json"


def folder_of(config: Config) -> RunFolder:
    """Return the run folder that the settings name; nothing is created."""
    return RunFolder(Path(config.run.folder) / config.run.name, config.run.name)


def sweep(folder: RunFolder) -> None:
    """Apply `clear_stale` everywhere in a run folder."""
    found = {end: [*folder.path.glob(f".*.{end}"), *folder.path.glob(f"*/.*.{end}")] for end in ("part", "old")}
    clear_parts(found["part"], found["old"])
    for undo in folder.path.glob(".*.undo"):
        put_back(undo)


def heal(folder: RunFolder) -> None:
    """Restore what a killed process had moved away, before anything is read; not while another process is at work."""
    if any(any(folder.path.glob(kind)) for kind in (".*.old", "*/.*.old", ".*.undo")):
        with contextlib.suppress(OSError, ToolkitError), locked(folder):
            sweep(folder)


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keep a second process from writing into the same run folder; raises ToolkitError if one already does."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / ".lock").open("w") as file:
        try:
            lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ToolkitError(
                f"another toolkit process, or another run of this one, is at work in `{folder.path}`",
                hint="wait for it to end, or choose another `run.name`",
            ) from None
        yield
