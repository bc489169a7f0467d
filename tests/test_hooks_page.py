"""The page on hooks says what the hooks are, exactly."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from qcore import hookspecs

PAGE = (Path(__file__).parents[1] / "docs" / "hooks.md").read_text(encoding="utf-8")
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "qcore_spec")]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_has_a_heading_and_its_exact_signature(hook: str) -> None:
    signature = inspect.signature(getattr(hookspecs, hook))
    heading = f"## {hook}({', '.join(signature.parameters)})"
    # Annotations are kept as strings there.
    definition = f"def {hook}{signature}".replace("'", "")
    section = PAGE.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    assert section, f"docs/hooks.md has no heading {heading!r}"
    assert f"```python\n{definition}\n```" in section


def test_the_page_describes_no_hook_that_is_not_there() -> None:
    assert re.findall(r"^## (\w+)\(", PAGE, re.MULTILINE) == HOOKS


def test_the_page_says_which_hooks_must_be_there() -> None:
    from qcore.backend import _REQUIRED

    rows = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", PAGE, re.MULTILINE))
    assert rows == {hook: "yes" if hook in _REQUIRED else "no" for hook in HOOKS}
