"""What mkdocs does to links that leave docs/: files of the repository are named, if they exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
_LINK: Final = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Write a link to a file of the repository as its text and its path.

    Raises:
        FileNotFoundError: There is no such file.
    """

    def named(link: re.Match[str]) -> str:
        text, path = link.groups()
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {path}, which is not there")
        return f"{text} (`{path}`)" if path not in text else text

    return _LINK.sub(named, markdown)
