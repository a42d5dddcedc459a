"""NVIDIA's assembler, as the source of what a kernel takes: registers and spills."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

FOLDERS = ("cu13/bin", "cuda_nvcc/bin")  # in the `nvidia` packages of CUDA 13 and 12

_FUNCTION = re.compile(r"Compiling entry function '(\S+)' for")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_STATIC = re.compile(r"(\d+) bytes smem")


class Usage(NamedTuple):
    """What one kernel takes, per thread in registers, per block in shared memory."""

    registers: int
    spill_stores: int  # bytes
    spill_loads: int  # bytes
    static_shared_memory: int  # bytes; what a launch adds is not known to ptxas


def find_ptxas() -> Path:
    """Returns the ptxas of the installed CUDA packages, else the one on PATH.

    Raises:
      FileNotFoundError: there is none.
    """
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else None
    for root in roots or ():
        for folder in FOLDERS:
            if (path := Path(root, folder, "ptxas")).is_file():
                return path
    if found := shutil.which("ptxas"):
        return Path(found)
    raise FileNotFoundError(
        'ptxas is neither in the CUDA packages of this Python (pip install "jax[cuda13]'
        f'", interpreter {sys.executable}) nor on PATH.'
    )


def assemble(ptxas: Path, source: Path, architecture: str, /) -> dict[str, Usage]:
    """Returns the usage of each kernel of a PTX file.

    Raises:
      RuntimeError: ptxas refuses the file.
    """
    command = [ptxas, "-v", f"-arch={architecture}", source, "-o", "/dev/null"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"ptxas refuses {source.name}: {result.stderr.strip()}")
    return parse_usage(result.stderr)


def parse_usage(text: str, /) -> dict[str, Usage]:
    """Returns the usage of each kernel from what `ptxas -v` prints.

    Raises:
      ValueError: a kernel without a line of registers or of spills.
    """
    usages = {}
    names = _FUNCTION.findall(text)
    for name, section in zip(names, _FUNCTION.split(text)[2::2], strict=True):
        registers, spills = _REGISTERS.search(section), _SPILLS.search(section)
        if registers is None or spills is None:
            raise ValueError(f"ptxas -v says nothing known of {name}: {section!r}")
        static = _STATIC.search(section)
        usages[name] = Usage(
            registers=int(registers[1]),
            spill_stores=int(spills[1]),
            spill_loads=int(spills[2]),
            static_shared_memory=int(static[1]) if static else 0,
        )
    return usages
