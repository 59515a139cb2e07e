"""The machine in words: processor, cores, memory, accelerators; never its name, its addresses or its user."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """What this process may use. `memory_bytes` is 0 where it cannot be told."""

    processor: str
    cores: int
    memory_bytes: int
    accelerators: list[str]

    def describe(self) -> str:
        """Return one line."""
        memory = f"{self.memory_bytes / 2**30:.0f} GiB memory" if self.memory_bytes else ""
        devices = [f"{number} × {name}" if number > 1 else name for name, number in Counter(self.accelerators).items()]
        return ", ".join(part for part in (self.processor, f"{self.cores} core{'s' * (self.cores != 1)}", memory, *devices) if part)


def this_machine() -> Machine:
    """Look at the machine that runs this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    known = hasattr(os, "sysconf_names") and "SC_PHYS_PAGES" in os.sysconf_names
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 0
    return Machine(_processor(Path("/proc/cpuinfo")), cores, memory, _accelerators(Path("/proc/driver/nvidia/gpus")))


def _processor(facts: Path) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", facts.read_text(errors="replace"), re.M) if facts.exists() else None
    name = match[1] if match else platform.processor() or platform.machine()
    return " ".join(re.sub(r"\((R|TM|tm)\)|\bCPU\b|\bProcessor\b|@.*", " ", name).split())


def _accelerators(folder: Path) -> list[str]:
    texts = [file.read_text(errors="replace") for file in sorted(folder.glob("*/information"))]
    return [match[1].strip() for text in texts if (match := re.search(r"^Model:\s*(.+)$", text, re.M))]
