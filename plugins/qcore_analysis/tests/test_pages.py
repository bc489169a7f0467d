"""The commands of the page run in order, as it has them."""

from __future__ import annotations

import filecmp
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qcore.cli.app import app

PAGE = Path(__file__).parents[3] / "docs" / "command-line.md"
BLOCK = re.compile(r"^```(?P<info>[^\n]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    ran = []
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        title = re.search(r'title="(.+)"', block["info"])
        if title:
            (tmp_path / title[1]).write_text(block["text"])
            importlib.invalidate_caches()
        elif block["info"] == "sh":
            for line in block["text"].splitlines():
                command, *arguments = shlex.split(line, comments=True)
                if command == "cmp":
                    assert filecmp.cmp(*arguments, shallow=False)
                    continue
                assert command == "qcore"
                done = CliRunner().invoke(app, arguments)
                assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
                ran.append(arguments[0])
    monkeypatch.delitem(sys.modules, "shop")
    assert ran[:2] == ["explain", "quantize"]


def test_the_page_names_every_command() -> None:
    from importlib import metadata

    names = {point.name for point in metadata.entry_points(group="qcore.commands")}
    listed = set(re.findall(r"^\| `qcore ([\w-]+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == names | {"backends", "new-backend"}
