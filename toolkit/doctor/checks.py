"""The checks of the machine and of what is installed, one function each; memory and disk are in `resources.py`."""

import contextlib
import fcntl
import os
import platform
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from toolkit.core import hardware
from toolkit.core.errors import ToolkitError
from toolkit.core.files import lock
from toolkit.core.hardware import Gpu
from toolkit.core.network import forbidden_by, hub_proxy
from toolkit.core.run_folder import RunFolder
from toolkit.core.stage import Check
from toolkit.doctor import plan
from toolkit.formats.gguf_reader import open_gguf
from toolkit.model import base, families
from toolkit.model.gguf_base import converted, licence_in
from toolkit.model.gguf_config import read_base

INSTALL = "pip install -c constraints.txt ."
HUB_SECONDS = 10.0
DAMAGED = "copy or download the base model again"


def python() -> Check:
    """Check the interpreter's version."""
    fits = sys.version_info >= (3, 11)
    return Check("python", fits, platform.python_version(), "" if fits else "install Python 3.11 or later")


def libraries(listed: list[str] | None = None) -> list[Check]:
    """Check that each required library is installed in a version that fits; none is imported."""
    from packaging.requirements import Requirement

    checks = []
    wanted = [Requirement(line) for line in (hardware.requirements() if listed is None else listed)]
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
        checks.append(Check(requirement.name, False, found, f"install matching versions: {INSTALL}"))
    return checks or [Check("libraries", True, f"{len(wanted)} libraries in versions that fit", "")]


def cpu() -> Check:
    """Say which CPU this is; nothing about it can be wrong."""
    bf16 = "bf16 in hardware" if hardware.cpu_has_bf16() else "no bf16 in hardware"
    parts = [hardware.cpu_name(), f"{hardware.cores()} cores", bf16]
    return Check("cpu", None, ", ".join(part for part in parts if part), "")


def gpu(gpu: Gpu | None) -> Check:
    """Say which CUDA GPU training will use, if any."""
    if gpu is not None:
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        memory = f"{gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free"
        return Check("gpu", True, f"{gpu.name}, {memory}{driver}", "")
    if hardware.driver_offers_gpu():
        fix = "check whether `nvidia-smi` works, and install torch for your driver's CUDA version"
        return Check("gpu", None, "there is an NVIDIA GPU, but torch does not see it: the CPU will train", fix)
    return Check("gpu", None, "no CUDA GPU: the CPU will train", "")


def base_model(label: str, revision: str, *, offline: bool) -> Check:
    """Check that a base is available: complete on this machine, or on the hub with access."""
    name = f"base {label}"
    path = base.local_path(label)
    if path is None:
        return _on_hub(label, revision, offline=offline)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                fix = "set `model.base` to a folder with safetensors, or to a GGUF file"
                return Check(name, False, f"`{path}` is neither a model folder nor a GGUF file", fix)
        try:
            opened = open_gguf(path)
            read_base(path, opened)
        except ToolkitError as exc:
            return Check(name, False, f"damaged: {exc.message}", DAMAGED)
        ready = "converted already" if converted(path) else "will be converted to float32 once"
        licence = licence_in(opened)
        return Check(name, True, f"{path.name}, {ready}" + (f", licence: {licence}" if licence else ""), "")
    base.check_folder(path)
    try:
        count = plan.parameters_of(label, revision)  # reads every header
    except ToolkitError as exc:
        return Check(name, False, f"its weights are damaged: {exc.message}", DAMAGED)
    families.check_base(path)
    return Check(name, True, f"safetensors with {count:,} elements in {path}", "")


def _on_hub(label: str, revision: str, *, offline: bool) -> Check:
    """Check a hub id: in the cache, or there with safetensors and with access. The token is used, never shown."""
    name = f"base {label}"
    config = base.cached_file(label, revision, "config.json")
    if config is not None and base.wholly_cached(label, revision):
        families.check_base(config.parent)
        return Check(name, True, "in the hub's cache", "")
    if offline:
        fix = f"fetch it where there is a network with `hf download {label}`, or set `model.base` to a local folder"
        return Check(name, False, f"not on this machine, and {forbidden_by()} forbids the network", fix)
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
    proxy = hub_proxy()
    through, mend = (
        (f" through the proxy of {proxy}", f"correct or unset {proxy}") if proxy else ("", "check the network")
    )
    fix = f"{mend}, or set `model.base` to a local folder or GGUF file"
    return Check(name, False, f"the hub did not answer{through}: {reason}", fix)


def run_folder(folder: RunFolder) -> Check:
    """Check that the run folder can be written and that no other process is at work in it; nothing is left there."""
    place = hardware.existing(folder.path)
    fix = "change its permissions, or choose another folder with `--set run.folder=DIR`"
    if not place.is_dir():
        return Check("run folder", False, f"`{place}` is a file, where a folder is needed", fix)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as exc:
        return Check("run folder", False, f"`{place}` cannot be written: {exc.strerror or exc}", fix)
    holder = _lock_holder(folder.path / ".lock")
    if holder not in (None, os.getpid()):
        by = f" (process {holder})" if holder else ""
        wait = "wait for it to end, or choose another `run.name`"
        return Check("run folder", False, f"another toolkit process is at work in `{folder.path}`{by}", wait)
    return Check("run folder", True, f"{folder.path} can be written", "")


def _lock_holder(path: Path) -> int | None:
    """Return the process that holds a lock on a file: 0 where the system does not say which, None if nobody."""
    try:
        with path.open("rb") as file:
            lock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
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
