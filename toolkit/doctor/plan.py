"""What the configured run will load and write here: which base on which device, and how many bytes where."""

import glob
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.core import hardware, places
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.manifest import path_name, read_manifest
from toolkit.core.output_settings import LEAST_ROWS
from toolkit.core.parsing import parse_json
from toolkit.core.run_folder import RunFolder
from toolkit.core.train_settings import ENDLESS
from toolkit.doctor import estimate
from toolkit.model import base, memory
from toolkit.model.gguf_base import converted
from toolkit.model.gguf_config import gguf_config
from toolkit.model.hub_pieces import PIECE
from toolkit.model.known_models import known_model
from toolkit.model.model_config import ModelConfig, model_config, stored_parameters
from toolkit.ollama.address import is_loopback, server_address


@dataclass(frozen=True)
class Write:
    """Bytes that will be written under a path, and what they are; what is not `kept` goes when its `stage` ends."""

    path: Path
    what: str
    size: int
    stage: str = ""
    kept: bool = True


def labels(config: Config, stages: tuple[str, ...]) -> list[str]:
    """Name the bases that these stages load, each once."""
    wanted = [base.training_label(config.model)] if {"prepare", "train"} & {*stages} else []
    wanted += [base.merge_label(config.model, config.export)] if {"export", "validate"} & {*stages} else []
    return list(dict.fromkeys(wanted))


def shape_of(label: str, revision: str) -> ModelConfig | None:
    """Find a base's shape: in its folder, its GGUF header, the hub's cache, or the table of well-known names.

    Raises ToolkitError if it does not exist, ValueError if its header is damaged.
    """
    path = base.local_path(label)
    if path is None:
        config = base.cached_file(label, revision, "config.json")
        return (model_config(config.parent) if config else None) or known_model(label)
    return gguf_config(path) if path.is_file() else model_config(path)


def parameters_of(label: str, revision: str) -> int:
    """Count the elements of a base of unknown shape by its safetensors headers; 0 where none are on this machine."""
    path = base.local_path(label)
    if path is None:
        config = base.cached_file(label, revision, "config.json")
        path = config.parent if config else None
    return stored_parameters(path) if path is not None and path.is_dir() else 0


def first_use(label: str, config: Config, stages: tuple[str, ...]) -> str:
    """Name the stage that loads a base's weights first; prepare reads the tokenizer alone."""
    training = label == base.training_label(config.model)
    return next((stage for stage in (("train",) if training else ()) + ("export", "validate") if stage in stages), "")


def may_stream(label: str, config: Config, stages: tuple[str, ...]) -> bool:
    """Tell whether the export can read a base from the hub without keeping it: nobody else needs it whole."""
    trained = "train" in stages and label == base.training_label(config.model)
    whole = trained or config.export.imatrix or config.export.stream_base is False or label.endswith(base.FOUR_BIT)
    return not whole and label == base.merge_label(config.model, config.export) and base.local_path(label) is None


def base_writes(
    label: str, revision: str, shape: ModelConfig, *, stage: str = "", streamed: bool = False
) -> list[Write]:
    """List what fetching or converting a base writes: nothing where it is already here, pieces where it is streamed."""
    path = base.local_path(label)
    if path is None:
        from huggingface_hub.constants import HF_HUB_CACHE

        if base.wholly_cached(label, revision):
            return []
        four_bit = label.endswith(base.FOUR_BIT)
        size = memory.weights_cuda(shape, four_bit=four_bit) + estimate.TOKENIZER
        there = _downloaded(Path(HF_HUB_CACHE), label, revision)
        if streamed:  # the export takes the largest tensors first, while its results are small
            at_once = 2 * max(PIECE, *(2 * inputs * outputs for inputs, outputs in shape.linears().values()))
            return [Write(places.cache_folder(), f"pieces of {label}", at_once, "export", kept=False)]
        return [Write(Path(HF_HUB_CACHE), f"download of {label}", max(0, size - there), stage)]
    if path.is_file() and converted(path) is None:
        return [Write(places.cache_folder(), "converted base", 4 * shape.parameters() + estimate.TOKENIZER, stage)]
    return []


def _downloaded(cache: Path, label: str, revision: str) -> int:
    """Return the bytes of a hub repository that a download which was cut off left in the cache."""
    config = base.cached_file(label, revision, "config.json")
    whole = config.parent.rglob("*") if config else ()
    parts = (cache / f"models--{label.replace('/', '--')}" / "blobs").glob("*.incomplete")
    return sum(path.stat().st_size for path in (*whole, *parts) if path.is_file())


def stage_writes(config: Config, folder: RunFolder, shape: ModelConfig, held: Mapping[str, int]) -> list[Write]:
    """List what the stages themselves write; files that a stage replaces stay next to the new ones until it ends.

    `held` are the bytes by stage that exist already and are used again.
    """
    writes, stages = [], held.keys()
    files = estimate.gguf_files(shape, config.export)
    if "prepare" in stages:
        writes.append(Write(folder.path, "records", 2 * _source_size(config), "prepare"))
    if "train" in stages:
        continues = config.train.lr_scheduler_type in ENDLESS
        moments = 2 if config.train.optim.endswith("8bit") and hardware.sees_gpu() else 8
        writes.append(Write(folder.path, "adapter", estimate.adapter_folder(shape, config.train), "train"))
        saved = estimate.checkpoints(shape, config.train, moments=moments, records=_training_records(folder))
        writes.append(Write(folder.path, "checkpoints", max(0, saved - held["train"]), "train", kept=continues))
    if "export" in stages:
        writes.append(Write(folder.path, "GGUF files", max(0, sum(files.values()) - held["export"]), "export"))
    if "validate" in stages:
        rows = scored_rows(config, folder)
        answers = min(answer_bytes(folder, rows, config.train.max_length), _source_size(config))
        states = estimate.kept_states(shape, answers, rows)
        writes.append(Write(folder.path, "last layer's states", states, "validate", kept=False))
    store = ollama_store(config)
    if "register" in stages and store is not None:
        there = set() if "export" in stages else _served_already(config, folder, store)
        copies = sum(files[name] for name in config.served if name not in there)
        writes.append(Write(store, "Ollama's copies", copies, "register"))
    return writes


def _served_already(config: Config, folder: RunFolder, store: Path) -> set[str]:
    """Name the quantizations whose exported files the server's store holds, by the digests in the manifest."""
    record = read_manifest(folder).stages.get("export")
    digests = {file.path: file.sha256 for file in record.outputs} if record else {}
    named = {name: digests.get(path_name(folder.gguf(name), folder)) for name in config.served}
    places = (store / "blobs", store / "models" / "blobs")
    return {name for name, digest in named.items() if any((place / f"sha256-{digest}").is_file() for place in places)}


def _source_size(config: Config) -> int:
    names = [Path(name).expanduser() for name in config.data.sources]
    found = {Path(match) for name in names for match in glob.glob(str(name), recursive=True)}  # noqa: PTH207
    return sum(path.stat().st_size for path in found if path.is_file()) or 3_500_005  # MedQuAD's


def _training_records(folder: RunFolder) -> int:
    """Count the prepared records to train on, 0 where there are none yet."""
    path = folder.split_file("train")
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def scored_rows(config: Config, folder: RunFolder) -> int:
    """Return how many rows validation scores: those that are asked for, but no more than the test split has.

    Where there is none yet, the data's size is divided by the mean of MedQuAD's answers.
    """
    wanted = LEAST_ROWS if config.validation.rows == "auto" else config.validation.rows  # more only if there is room
    path = folder.split_file("test")
    if path.is_file():
        return min(wanted, path.read_bytes().count(b"\n"))
    return min(wanted, math.ceil(config.data.test * _source_size(config) / estimate.ANSWER_BYTES))


def answer_bytes(folder: RunFolder, rows: int, max_length: int) -> int:
    """Return the bytes of the answers that validation scores: of the prepared test records, else of MedQuAD's mean."""
    longest = estimate.BYTES_PER_TOKEN * max_length
    try:
        lines = folder.split_file("test").read_bytes().splitlines()[:rows]  # a text has more line ends than JSON
        return sum(min(longest, len(parse_json(line.decode())["output"].encode())) for line in lines)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return rows * min(longest, estimate.ANSWER_BYTES)


def ollama_store(config: Config) -> Path | None:
    """Return where an Ollama server on this machine keeps its models; None if the server is another machine.

    OLLAMA_MODELS as this process sees it, else ~/.ollama: a system service may have its own.
    """
    try:
        if not is_loopback(server_address(config.ollama)):
            return None
    except ToolkitError:
        return None  # the check of Ollama reports it
    named = os.environ.get("OLLAMA_MODELS")
    if named:
        return Path(named)
    service = Path("/usr/share/ollama/.ollama/models")  # of the official installer's systemd service
    return service if service.is_dir() else Path.home() / ".ollama"
