"""Writes the schemes of each backend into its package, for ``qcore schemes`` to read without torch.

``python tools/scheme_files.py`` writes them; with ``--check`` it says which are not current.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import qcore
from qcore_analysis.commands.schemes import schemes_of

PLUGINS: Final = Path(__file__).parent.parent / "plugins"


def main(arguments: Sequence[str]) -> int:
    """Write the files, or compare them.

    Args:
        arguments: Perhaps ``--check``.

    Returns:
        The exit status: 1 where a file is not current.
    """
    status = 0
    for name, info in qcore.backends().items():
        package = re.findall(r"\((\w+)", info.origins[0])[0]
        file = PLUGINS / package / "src" / package / "schemes.json"
        if not file.parent.is_dir():
            continue
        options = getattr(info.load(), "conformance", {}).get("options", {})
        text = json.dumps({name: schemes_of(name, dict(options))}, indent=2) + "\n"
        if "--check" not in arguments:
            file.write_text(text, encoding="utf-8")
        elif not file.exists() or file.read_text("utf-8") != text:
            print(f"{file} is not current. Write it again: python tools/scheme_files.py")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
