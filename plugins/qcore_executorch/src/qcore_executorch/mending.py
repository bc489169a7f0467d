"""Programs that are right: executed when they are made, and without what a delegate gets wrong."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import attrs

from qcore.errors import (
    LoweringError,
    QcoreError,
    RuntimeCrashError,
    RuntimeExecutionError,
    RuntimeUnavailableError,
)
from qcore.lowering import NoRunner, export_for_lowering, private_copy
from qcore.progress import stage
from qcore.quiet import quiet
from qcore.report import NodeRecord
from qcore_executorch.inspection import computes, quantizes, record
from qcore_executorch.report import ExecuTorchReport, MendedNode
from qcore_executorch.veto import Veto

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from qcore.lowering import LoweredProgram
    from qcore_executorch.check import Reference

__all__ = ["Attempt", "LowerOnce", "UnmendableError", "lower_checked", "root_cause", "search"]

_CULPRITS: Final = 4
"""So many are searched for; where there are more, everything before the last is left."""

_LONGEST_S: Final = 180.0
"""Seconds of the search. What it has not cleared by then is left."""


class UnmendableError(LoweringError):
    """A lowering that fails whatever the delegates take."""


class LowerOnce(Protocol):
    """One way through the stages of a lowering."""

    def __call__(self, program: ExportedProgram, veto: Veto | None) -> LoweredProgram:
        """Lower a program.

        Args:
            program: The converted model; changed.
            veto: What the partitioners may not take; None for no partitioners at all.
        """
        ...


#: Takes a program and its flat arguments, and returns its flat outputs.
Execute: TypeAlias = "Callable[[LoweredProgram, Sequence[Any]], Sequence[Any]]"


@attrs.frozen
class Attempt:
    """What came of one lowering.

    Attributes:
        program: The program; None where none was made.
        symptom: What is wrong with it; empty where nothing is.
        error: What was raised instead.
        taken: The nodes that the partitioners took, by their names in the converted model.
    """

    program: LoweredProgram | None = None
    symptom: str = ""
    error: Exception | None = None
    taken: Mapping[str, NodeRecord] = attrs.field(factory=dict)


@attrs.define
class _Checked:
    """Lowers a program and executes it, again and again."""

    lower: LowerOnce
    source: ExportedProgram
    execute: Execute
    reference: Reference | None = None
    #: Why a program was not compared, and what was said of the inputs.
    note: str = ""
    seconds: dict[str, float] = attrs.field(factory=dict)
    lowerings: int = 0

    def attempt(self, refused: Mapping[str, str] | None) -> Attempt:
        """Lower and execute without the delegates' share of some nodes; None: of all nodes."""
        self.lowerings += 1
        veto = None if refused is None else Veto(refused)
        taken = {} if veto is None else veto.taken
        try:
            program = self.lower(private_copy(self.source), veto)
        except (RuntimeUnavailableError, UnmendableError):
            raise
        except Exception as error:
            # A stage that failed says what stopped it, and then what to do.
            return Attempt(None, _first_line(root_cause(error)), error, taken)
        with stage("check", self.seconds):
            return Attempt(program, self.symptom(program), None, taken)

    def symptom(self, program: LoweredProgram) -> str:
        """Execute a program once and say what is wrong with it."""
        if program.runner is None:
            self.note = "not executed: no runtime on this machine"
            return ""
        if isinstance(program.runner, NoRunner):
            self.note = f"not executed: {program.runner.reason}"
            return ""
        if self.reference is None and not self.find_reference(program):
            return ""
        assert self.reference is not None
        try:
            outputs = self.execute(program, self.reference.inputs)
        except RuntimeUnavailableError as error:
            self.note = f"not executed: {_first_line(error)}"
            return ""
        except RuntimeExecutionError as error:
            if _UNFINISHED.search(str(error)):
                self.note = f"not compared: {_first_line(error)}"
                return ""
            return _at_run(error, program)
        return self.reference.difference(outputs)

    def find_reference(self, program: LoweredProgram) -> bool:
        """Run the converted model; say whether that succeeds."""
        from qcore_executorch.check import Reference, example_inputs

        drawn = self.source.example_inputs is None
        self.note = "executed once and compared with the converted model"
        self.note += ", on random inputs: the model was captured without any" if drawn else ""
        try:
            inputs = example_inputs(self.source, program.inputs or ())
            self.reference = Reference.of(self.source, inputs)
        except Exception as error:
            self.note = f"not compared: the converted model does not run ({_first_line(error)})"
        return self.reference is not None


def lower_checked(
    lower: LowerOnce, program: ExportedProgram, backend: str, execute: Execute
) -> LoweredProgram:
    """Lower a program, execute it, and leave to portable kernels what a delegate gets wrong.

    Args:
        lower: Lowers once.
        program: The converted model; left as it is.
        backend: Name of the backend, for messages.
        execute: Executes a program that has a runner.

    Returns:
        The program; its report names what was left and why.

    Raises:
        UnmendableError: It fails whatever the delegates take.
        LoweringError: No program is right, not even one without delegates.
    """
    checked = _Checked(lower, program, execute)
    with quiet():
        first = checked.attempt({})
        best, refused = first, dict[str, str]()
        if first.symptom:
            ends = time.monotonic() + _LONGEST_S
            with stage("mend", checked.seconds):
                best, refused = search(first, checked.attempt, lambda: time.monotonic() > ends)
            if best.program is None or best.symptom:
                raise _undelegated(checked, first, best, backend) from best.error or first.error
            checked.note += (
                f"; what is wrong in a delegate was found by {checked.lowerings} lowerings"
            )
            if len(refused) > _CULPRITS and time.monotonic() > ends:
                checked.note += (
                    f"; the search for what is wrong ended after {_LONGEST_S:.0f} s, and all that "
                    "it had not cleared was left to portable kernels"
                )
    assert best.program is not None
    report = best.program.report
    assert isinstance(report, ExecuTorchReport)
    mended = tuple(
        MendedNode(name, node.operator, node.module, symptom)
        for name, symptom in refused.items()
        if (node := first.taken.get(name)) is not None
    )
    seconds = {**report.seconds, **checked.seconds}
    report = attrs.evolve(report, seconds=seconds, mended=mended, checked=checked.note)
    return attrs.evolve(best.program, report=report)


def search(
    first: Attempt,
    attempt: Callable[[Mapping[str, str] | None], Attempt],
    is_late: Callable[[], bool] = lambda: False,
) -> tuple[Attempt, dict[str, str]]:
    """Find the nodes that may not be delegated, by bisection.

    The nodes are in the order of the graph. The shortest beginning of it that must be refused ends
    with a culprit: one culprit among n nodes takes ceil(log2 n) lowerings and one more without it.

    Args:
        first: The lowering that is wrong.
        attempt: Lowers without some nodes, each with its symptom; None: without all.
        is_late: Says whether to search no longer.

    Returns:
        A lowering that is right, and what is refused in it; the lowering without any delegate
        where none is.
    """
    nodes = list(first.taken)
    culprits: dict[str, str] = {}
    spare: tuple[Attempt, dict[str, str]] | None = None
    symptom = first.symptom
    for _ in range(_CULPRITS):
        low, high = 0, len(nodes)
        if not high or is_late():
            break
        while high - low > 1 and not is_late():
            middle = (low + high) // 2
            refused = {**dict.fromkeys(nodes[:middle], symptom), **culprits}
            tried = attempt(refused)
            if tried.symptom:
                low, symptom = middle, tried.symptom
            else:
                high, spare = middle, (tried, refused)
        if high - low > 1:
            break
        culprits[nodes[high - 1]] = symptom
        nodes = nodes[: high - 1]
        tried = attempt(culprits)
        if not tried.symptom:
            return tried, culprits
        symptom = tried.symptom
        if spare is None:
            spare = attempt(None), dict.fromkeys(first.taken, first.symptom)
            if spare[0].symptom:
                break  # The delegates are not at fault.
    return spare or (attempt(None), dict.fromkeys(first.taken, first.symptom))


def _undelegated(checked: _Checked, first: Attempt, last: Attempt, backend: str) -> LoweringError:
    """Name the smallest operator that shows what is wrong without delegates."""
    node = _first_bad(checked)
    error = last.error or first.error
    if node is None:
        what = f"the program is wrong without delegates, too: {last.symptom}"
        return LoweringError(
            f"{error or f'Lowering for {backend}: {what}.'} No operator shows it by itself: lower "
            "parts of the model to see where it begins, and write that part in another way."
        )
    found = record(node, "", "")
    return LoweringError(
        f"Lowering for {backend}: {found} cannot be executed, in a delegate or on ExecuTorch's "
        f"portable kernels: {last.symptom}. Replace it in the model by other operators, or run it "
        "outside of the model."
    )


def _first_bad(checked: _Checked) -> Node | None:
    nodes = [n for n in checked.source.graph.nodes if computes(n) and not quantizes(n)]
    low, high = 0, len(nodes)
    while low < high:
        middle = (low + high) // 2
        if _fails_up_to(checked, nodes[middle]):
            high = middle
        else:
            low = middle + 1
    return nodes[low] if low < len(nodes) else None


def _fails_up_to(checked: _Checked, last: Node) -> bool:
    """Say whether the model that ends with a node fails without delegates."""
    try:
        part = _Checked(checked.lower, _ending_with(checked.source, last.name), checked.execute)
    except Exception:
        return False  # Nothing is known about it.
    return bool(part.attempt(None).symptom)


def _ending_with(program: ExportedProgram, name: str) -> ExportedProgram:
    model: Any = private_copy(program).module(check_guards=False)
    (last,) = [node for node in model.graph.nodes if node.name == name]
    (output,) = model.graph.find_nodes(op="output")
    model.graph.erase_node(output)
    # Of an operator with several results, the first that is read.
    value = last.meta["val"]
    model.graph.output(next(iter(last.users)) if isinstance(value, (tuple, list)) else last)
    model.graph.set_codegen(_positional(model))
    model.graph.eliminate_dead_code()
    model.recompile()
    args, kwargs = program.example_inputs or ((), {})
    return export_for_lowering(model, args or kwargs)


def _positional(model: Any) -> Any:
    """Return how to call a graph as before, for one output."""
    from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
    from torch.utils._pytree import tree_structure

    codegen = model.graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen):
        return codegen
    info = codegen.pytree_info
    return _PyTreeCodeGen(_PyTreeInfo(info.orig_args, info.in_spec, tree_structure(0)))


_UNFINISHED: Final = re.compile(r"did not finish")
_SIGNAL: Final = re.compile(r"\bSIG[A-Z]+\b")


def _at_run(error: RuntimeExecutionError, program: LoweredProgram) -> str:
    names: Sequence[str] = getattr(program.runner, "backends", ())
    where = ", ".join(names) or "the runtime"
    found = _SIGNAL.search(str(error)) if isinstance(error, RuntimeCrashError) else None
    return f"{found.group()} in {where}" if found else f"refused at run: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return text if isinstance(error, QcoreError) else f"{type(error).__name__}: {text}"


def root_cause(error: BaseException) -> BaseException:
    """Return the exception that others were raised from; pass managers list their passes only."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
