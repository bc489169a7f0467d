"""Commands that installed distributions add: found by entry point, imported when they are asked."""

from __future__ import annotations

import errno
from functools import cached_property
from importlib.metadata import EntryPoint
from typing import Any, Final

import typer
from typer.core import TyperGroup

from qcore.cli.log import written_log
from qcore.errors import QcoreError, near_misses
from qcore.registry import entry_points

__all__ = ["COMMANDS", "CommandGroup"]

COMMANDS: Final = "qcore.commands"
"""Entry-point group: the name is the command's, the value a function as typer takes it, or a
``typer.Typer`` with commands of its own."""

#: What mends an error of the system.
_MEND: Final = {
    errno.ENOSPC: "Free some space there, or set TMPDIR to a folder that has some.",
    errno.EACCES: "Name a file or folder that you may read and write.",
}

# The whole command line of a command that cannot be imported.
_ANYTHING: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


class CommandGroup(TyperGroup):
    """The commands of the core and of what is installed beside it.

    A command that cannot be imported says so when it is asked, and spoils no other.
    """

    @cached_property
    def _added(self) -> dict[str, list[EntryPoint]]:
        """The entry points by name; finding them reads the metadata of all that is installed."""
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(COMMANDS):
            found.setdefault(point.name, []).append(point)
        return found

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, the core's first."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in sorted(self._added) if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; imports what an installed distribution adds."""
        own = super().get_command(ctx, cmd_name)
        points = [] if own is not None else self._added.get(cmd_name, [])
        return _command(cmd_name, points) if points else own

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is asked for; a mistyped name is answered with what is close."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            close = near_misses(args[0], known)
            hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(known)}."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error of qcore becomes a line on stderr and exit status 1."""
        try:
            return super().invoke(ctx)
        except QcoreError as error:
            message = str(error)
        except BrokenPipeError:
            raise
        except OSError as error:
            message = f"{error}. {_MEND.get(error.errno or 0, 'Name another file or folder.')}"
        except Exception as error:
            # What has a status is typer's: a wrong command line, or an end that a command chose.
            if not isinstance(error, typer.Abort) and not hasattr(error, "exit_code"):
                error.add_note(
                    f"Nobody expected this error: please report all of it.{written_log()}"
                )
            raise
        typer.echo(f"qcore: {message}{written_log()}", err=True)
        raise typer.Exit(1)


def _command(name: str, points: list[EntryPoint]) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    owners = " and ".join(point.dist.name if point.dist else "?" for point in points)
    try:
        if len(points) > 1:
            raise QcoreError("two distributions claim it. Uninstall all but one")
        loaded = points[0].load()
        if isinstance(loaded, typer.Typer):
            app = loaded
        else:
            app.command(name)(loaded)
        return typer.main.get_command(app)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    message = (
        f"The command {name!r} of {owners} cannot be used: {reason}. Reinstall that distribution "
        "with its dependencies, or uninstall it."
    )
    broken = typer.Typer(add_completion=False, rich_markup_mode=None)

    @broken.command(name, help=f"Broken: {reason}", context_settings=_ANYTHING)
    def refuse() -> None:
        raise QcoreError(message)

    return typer.main.get_command(broken)
