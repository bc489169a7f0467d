"""One backend behind its hooks: its plugin manager, checked at the start, and typed calls."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import pluggy
from torch.export import ExportedProgram
from torch.fx import GraphModule

from qcore import hookspecs, registry
from qcore.errors import BackendHookError, BackendLoadError, QcoreError, near_misses
from qcore.lowering import LoweredProgram
from qcore.plan import QuantizationPlan
from qcore.report import AnnotationReport, Diagnostic
from qcore.schemes import QuantizationScheme

__all__ = ["BackendHooks"]

Returned = TypeVar("Returned")

_REQUIRED: Final = ("supported_schemes", "annotate", "lower")


class _Defaults:
    """What happens where a backend implements an optional hook not at all."""

    @hookspecs.hookimpl(trylast=True)
    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        return model


class BackendHooks:
    """Calls a backend's hooks, through the installed extensions, and checks what they return.

    What breaks the contract is a BackendLoadError that names the backend and the hook.
    """

    def __init__(self, backend: object, name: str) -> None:
        if inspect.isclass(backend):
            raise BackendLoadError(
                f"Backend {name!r}: got the class {backend.__name__}, and an instance is due. "
                f"Pass {backend.__name__}(...), or use qcore.get_quantizer({name!r}, ...)."
            )
        cls = registry.check_backend_class(name, type(backend), type(backend).__module__)
        self.name = name
        self.backend = backend
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(_Defaults(), "qcore")
        self._register(backend, cls)
        registry.extensions(self._manager)

    def _register(self, backend: object, cls: type) -> None:
        specs = set(self._specs())
        for hook, function in _implementations(cls):
            if hook not in specs:
                close = near_misses(hook, specs)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise BackendLoadError(
                    f"Backend {self.name!r}: {cls.__name__}.{hook} is no hook of qcore.{hint} "
                    f"The hooks: {', '.join(sorted(specs))}."
                )
            self._check_parameters(cls, hook, function)
        for hook in sorted(specs):
            self._check_marked(cls, hook)
        try:
            self._manager.register(backend, self.name)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise BackendLoadError(
                f"Backend {self.name!r} breaks the hook contract: {' '.join(str(error).split())} "
                "Give the implementation the parameters of the hook in qcore.hookspecs."
            ) from error
        implemented = {caller.name for caller in self._manager.get_hookcallers(backend) or ()}
        missing = [hook for hook in _REQUIRED if hook not in implemented]
        if missing:
            raise BackendLoadError(
                f"Backend {self.name!r}: {cls.__name__} does not implement "
                f"{', '.join(missing)}. Add the method{'s' if len(missing) > 1 else ''}, "
                "marked with @qcore.hookimpl."
            )

    def _check_marked(self, cls: type, hook: str) -> None:
        function = inspect.getattr_static(cls, hook, None)
        if inspect.isfunction(function) and hook not in dict(_implementations(cls)):
            raise BackendLoadError(
                f"Backend {self.name!r}: {cls.__name__}.{hook} has the name of a hook and is not "
                "marked with @qcore.hookimpl: it would never be called. Mark it, or rename it."
            )

    def _check_parameters(self, cls: type, hook: str, function: Any) -> None:
        parameters = inspect.signature(function).parameters.values()
        variadic = [str(p) for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if variadic:
            raise BackendLoadError(
                f"Backend {self.name!r}: {cls.__name__}.{hook} takes {', '.join(variadic)}, which "
                "stays empty: a hook's caller passes parameters by name. Name those of the hook in "
                "qcore.hookspecs."
            )
        defaults = [p.name for p in parameters if p.default is not p.empty]
        if defaults:
            raise BackendLoadError(
                f"Backend {self.name!r}: {cls.__name__}.{hook} gives {', '.join(defaults)} a "
                "default. The hook's caller fills every parameter that is declared without one, "
                "and never one with a default. Remove the default."
            )

    @staticmethod
    def _specs() -> Iterator[str]:
        for name, value in vars(hookspecs).items():
            if hasattr(value, f"{hookspecs.PROJECT}_spec"):
                yield name

    @contextmanager
    def _named(self, hook: str) -> Iterator[None]:
        """Let an error keep its type and traceback, and say where it came from."""
        try:
            yield
        except QcoreError:
            raise
        except Exception as error:
            error.add_note(f"raised in the hook {hook!r} of backend {self.name!r}")
            raise

    def _returned(self, hook: str, value: object, expected: type[Returned], what: str) -> Returned:
        if not isinstance(value, expected):
            raise BackendHookError(
                f"Backend {self.name!r}: hook {hook!r} returned {type(value).__name__}, "
                f"expected {what}. See the docstring of qcore.hookspecs.{hook}."
            )
        return value

    def supported_schemes(self) -> tuple[QuantizationScheme, ...]:
        """Return the schemes that the backend executes."""
        with self._named("supported_schemes"):
            schemes = self._manager.hook.supported_schemes()
        self._returned("supported_schemes", schemes, Sequence, "a sequence of schemes")  # type: ignore[type-abstract]
        if not schemes or not all(isinstance(s, QuantizationScheme) for s in schemes):
            raise BackendHookError(
                f"Backend {self.name!r}: hook 'supported_schemes' must return at least one "
                f"qcore.QuantizationScheme and nothing else, got {schemes!r}."
            )
        return tuple(schemes)

    def transform_for_annotation(self, model: GraphModule, plan: QuantizationPlan) -> GraphModule:
        """Let the backend rewrite a captured model."""
        with self._named("transform_for_annotation"):
            rewritten = self._manager.hook.transform_for_annotation(model=model, plan=plan)
        return self._returned("transform_for_annotation", rewritten, GraphModule, "a GraphModule")

    def annotate(self, model: GraphModule, plan: QuantizationPlan) -> AnnotationReport:
        """Let the backend annotate a model."""
        with self._named("annotate"):
            report = self._manager.hook.annotate(model=model, plan=plan)
        return self._returned("annotate", report, AnnotationReport, "an AnnotationReport")

    def validate_partial(
        self, model: GraphModule, plan: QuantizationPlan, report: AnnotationReport
    ) -> tuple[Diagnostic, ...]:
        """Collect what the backend and the extensions say about the parts left in float."""
        with self._named("validate_partial"):
            found = self._manager.hook.validate_partial(model=model, plan=plan, report=report)
        return tuple(diagnostic for group in found for diagnostic in group)

    def lower(self, program: ExportedProgram, options: Mapping[str, Any]) -> LoweredProgram:
        """Let the backend turn a converted model into a program."""
        with self._named("lower"):
            lowered = self._manager.hook.lower(program=program, options=options)
        return self._returned("lower", lowered, LoweredProgram, "a LoweredProgram")


def _implementations(cls: type) -> Iterator[tuple[str, Any]]:
    for name in dir(cls):
        function = inspect.getattr_static(cls, name)
        marker = getattr(function, f"{hookspecs.PROJECT}_impl", None)
        if marker is not None:
            yield marker.get("specname") or name, function
