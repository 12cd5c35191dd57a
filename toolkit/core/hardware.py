"""What this machine has: memory that is free for us, disk by file system, CPU, CUDA GPU."""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from toolkit import DISTRIBUTION
from toolkit.core.errors import ToolkitError
from toolkit.core.other_process import python_command

DEVICES = Path("/dev")  # tests look elsewhere


@dataclass(frozen=True)
class Gpu:
    """A CUDA GPU: its name, driver version, total and free memory in bytes, and whether it computes in bf16.

    `capability` is NVIDIA's number of its generation; `flash` says whether torch has its flash attention.
    """

    name: str
    driver: str
    total: int
    free: int
    bf16: bool
    capability: tuple[int, int]
    flash: bool


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that can still be taken: MemAvailable, or less where a cgroup sets a limit.

    `root` is where /proc and /sys are looked for. None where the system does not say (not Linux).
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if not found:
        return None
    return min(found[0], *_cgroup_rooms(root), found[0])


def _cgroup_rooms(root: Path) -> list[int]:
    """Return what each limiting cgroup above this process leaves, in bytes: its limit less what it uses now.

    Version 2: memory.max and memory.current; version 1: memory.limit_in_bytes and memory.usage_in_bytes. File pages
    that the kernel can drop (inactive_file) do not count as used.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    rooms = []
    for line in [*lines, "0::/"]:
        number, controllers, inside = ([*line.split(":", 2), "", ""])[:3]
        if number == "0" and not controllers:
            top, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = top / inside.strip("/")
        for place in [folder, *folder.parents]:
            if place != top and top not in place.parents:
                break
            most, used = _number(place / limit), _number(place / usage)
            if most is not None and used is not None and most < 1 << 60:  # version 1 writes "no limit" as 2^63
                rooms.append(max(0, most - used + _droppable(place)))
    return rooms


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _droppable(place: Path) -> int:
    try:
        lines = (place / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))


def existing(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def free_disk(path: Path) -> int:
    """Return the bytes that can be written where `path` is, or would be."""
    return shutil.disk_usage(existing(path)).free


def file_system(path: Path) -> int:
    """Return the number of the file system that holds `path`, or would."""
    return existing(path).stat().st_dev


def cpu_name() -> str:
    """Return the CPU's name as the system reports it, or an empty string."""
    return _cpu_field("model name")


def cpu_has_bf16() -> bool:
    """Tell whether the CPU multiplies bf16 in hardware (avx512_bf16 or amx_bf16)."""
    flags = _cpu_field("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cpu_has_amx() -> bool:
    """Tell whether the CPU has Intel's matrix units (AMX)."""
    return "amx_tile" in _cpu_field("flags").split()


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name]
    return found[0] if found else ""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launched() -> bool:
    """Tell whether a launcher (accelerate, torchrun) started this process as one of several."""
    return number_in("WORLD_SIZE", 1) > 1


def number_in(variable: str, default: int) -> int:
    """Return the whole number in a variable of the environment, or `default` where there is none."""
    text = os.environ.get(variable, "").strip()
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 10 else default


def driver_offers_gpu() -> bool:
    """Tell whether a GPU's device file is there and not hidden; torch, whose import takes seconds, is not asked.

    `/dev/dxg` is the device file under WSL. A container may have any number of the machine's GPUs.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    found = [*DEVICES.glob("nvidia[0-9]*"), *DEVICES.glob("dxg")]
    return bool(found) and not hidden


ASK = """
import json, torch
if torch.cuda.is_available():
    free, total = torch.cuda.mem_get_info()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    flash = torch.version.hip is None and torch.backends.cuda.is_flash_attention_available()
    print(json.dumps([torch.cuda.get_device_name(0), total, free, bf16, torch.cuda.get_device_capability(0), flash]))
"""


def gpu() -> Gpu | None:
    """Ask torch for the first CUDA GPU; None where the driver offers none or torch sees none.

    A separate process asks, because the process that asks keeps some 500 MB of the GPU until it ends. Raises
    ToolkitError if torch fails.
    """
    if not driver_offers_gpu():
        return None
    done = subprocess.run(python_command(ASK), capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ToolkitError(f"torch cannot report the CUDA GPU: {said[-1] if said else done.returncode}")
    if not done.stdout.strip():
        return None
    name, total, free, bf16, capability, flash = json.loads(done.stdout.splitlines()[-1])
    return Gpu(name, driver_version(), total, free, bf16, (capability[0], capability[1]), flash)


@functools.cache
def sees_gpu() -> bool:
    """Tell whether torch sees a CUDA GPU, as training will; asked once. Raises what `gpu` raises."""
    return gpu() is not None


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the NVIDIA kernel driver's version, or an empty string."""
    try:
        words = path.read_text(encoding="utf-8").splitlines()[0].split()
    except (OSError, IndexError):
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def installed(package: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def requirements() -> list[str]:
    """Return the package's requirements as installed, or as pyproject.toml states them in a checkout."""
    try:
        listed = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        listed = tomllib.loads(text)["project"]["dependencies"]
    return [line for line in listed if "extra ==" not in line]
