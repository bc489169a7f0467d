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
from qcore.errors import RuntimeUnavailableError
from qcore.testing.support import write_pages
from qcore_analysis.commands.schemes import schemes_of

PLUGINS: Final = Path(__file__).parent.parent / "plugins"


def main(arguments: Sequence[str]) -> int:
    """Write the files, or compare them.

    Args:
        arguments: Perhaps ``--check``.

    Returns:
        The exit status: 1 where a file is not current.
    """
    files = {}
    for name, info in qcore.backends().items():
        package = re.findall(r"\((\w+)", info.origins[0])[0]
        file = PLUGINS / package / "src" / package / "schemes.json"
        if file.parent.is_dir():
            options = getattr(info.load(), "conformance", {}).get("options", {})
            try:
                schemes = schemes_of(name, dict(options))
            except RuntimeUnavailableError as error:
                print(f"{file.name} of {name} is left as it is: {error}", file=sys.stderr)
                continue
            files[file] = json.dumps({name: schemes}, indent=2) + "\n"
    return write_pages(files, arguments, "python tools/scheme_files.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
