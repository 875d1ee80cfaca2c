"""What figures depend on beside the config: the machine and the versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from maml_l2l.system import distributed

_PACKAGES = ("maml_l2l", "torch", "torchvision", "learn2learn", "numpy", "pydantic", "pyyaml", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit of this code, with `-dirty` where it was changed since; None where it is not in a git repository."""
    folder = Path(__file__).parent
    found = None
    # Untracked it would be an installed copy, and the repository around it a stranger's.
    for command in (["ls-files", "--error-unmatch", __file__], ["describe", "--always", "--dirty", "--abbrev=12"]):
        try:
            done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        found = done.stdout.strip()
    return found


def machine() -> dict:
    """Processor, cores, processes, PyTorch's threads in each of them, the GPU if any, `versions` and `commit`."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    work = {"processes": distributed.processes(), "threads": torch.get_num_threads()}
    found = {"processor": name, "cores": os.cpu_count(), **work, "versions": versions(), "commit": commit()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def describe(found: dict) -> str:
    """`machine()` in one line."""
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    if found["processes"] > 1:
        threads = f"{found['processes']} processes of {threads}"
    device = found.get("gpu", f"{found['processor']}, {found['cores']} cores, {threads}")
    return f"{device}; Python {found['versions']['python']}, torch {found['versions']['torch']}"
