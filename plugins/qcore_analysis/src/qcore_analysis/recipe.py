"""Recipes: every choice that makes a program, in a file that can be read, merged and repeated."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import attrs

from qcore.errors import near_misses, warn
from qcore.files import write_whole
from qcore.report import schema
from qcore_analysis.errors import RecipeError

if TYPE_CHECKING:
    import qcore
    from qcore_analysis.making import Made

__all__ = ["IN_FLOAT", "Recipe", "RecipeRule", "recipe_schema"]

IN_FLOAT: Final = "float"
"""The scheme of what stays in float; TOML has no null."""

Setting = str | int | float | bool

_KINDS: Final = ("module_name", "module_type", "operator_type", "node_name", "io")
_PACKAGES: Final = ("qcore-quant", "torch", "torchao")
# Written down even where they are the defaults of today.
_ALWAYS: Final = ("backend", "calibration", "algorithms")


@attrs.frozen
class RecipeRule:
    """What one part of the model is quantized with.

    Attributes:
        select: The kind of rule: module_name, module_type, operator_type, node_name or io.
        scheme: A scheme's name, or float.
        name: What is selected, such as features.0; nothing for io.
    """

    select: str
    scheme: str
    name: str = ""


@attrs.frozen
class Recipe:
    """Every choice that makes a program.

    Attributes:
        backend: The backend's name.
        scheme: The scheme of all that no rule selects; empty takes the backend's first.
        model: The model, as the command line names it.
        data: The calibration data, as the command line names it.
        batch: How many rows of a file of tensors make one sample.
        pictures: The preprocessing of pictures, such as size=224 mean=127 std=128.
        calibration: How ranges are chosen.
        algorithms: What changes weights and biases, in order.
        options: Options of the backend.
        lowering: Options of the backend's lowering.
        versions: Versions of the packages that it was made with.
        digests: Digests of the weights of the model, and of the data.
        rules: What parts of the model are quantized with; a later one of the same name holds.
    """

    backend: str
    scheme: str = ""
    model: str = ""
    data: str = ""
    batch: int = 1
    pictures: str = ""
    calibration: str = "histogram"
    algorithms: tuple[str, ...] = ("bias_correction",)
    options: Mapping[str, Setting] = attrs.field(factory=dict)
    lowering: Mapping[str, Setting] = attrs.field(factory=dict)
    versions: Mapping[str, str] = attrs.field(factory=dict)
    digests: Mapping[str, str] = attrs.field(factory=dict)
    rules: tuple[RecipeRule, ...] = ()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a recipe.

        Args:
            path: A TOML file; ``base = "other.toml"`` in it names one beside it, whose choices hold
                where this one has none.

        Returns:
            The recipe.

        Raises:
            RecipeError: There is no such file, or it says what a recipe does not.
        """
        return cls.of(_merged(Path(path), ()), os.fspath(path))

    @classmethod
    def of(cls, data: Mapping[str, Any], source: str = "the recipe") -> Self:
        """Make a recipe of plain data, and check it.

        Args:
            data: As :meth:`to_dict` gives it.
            source: Where it comes from, for messages.

        Returns:
            The recipe.

        Raises:
            RecipeError: It says what a recipe does not.
        """
        _check(data, source)
        rules = tuple(RecipeRule(**rule) for rule in data.get("rules", ()))
        algorithms = tuple(data.get("algorithms", ("bias_correction",)))
        return cls(**{**data, "rules": rules, "algorithms": algorithms})

    def to_dict(self) -> dict[str, Any]:
        """Return the choices as plain data; what is empty is left out."""
        defaults = type(self)(self.backend)
        data = attrs.asdict(self)
        data["rules"] = [{k: v for k, v in rule.items() if v != ""} for rule in data["rules"]]
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in data.items()
            if key in _ALWAYS or value != _plain(getattr(defaults, key))
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe to a file, whole or not at all.

        Args:
            path: The file, by custom with the suffix ``.toml``.

        Returns:
            The path.

        Raises:
            RecipeError: It cannot be written.
        """
        data = self.to_toml().encode()
        return write_whole(path, data, "the recipe", "recipe.toml", RecipeError)

    def to_toml(self) -> str:
        """Return the text of the recipe's file."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    def made_with(self, model: Any, samples: Iterable[Any]) -> Self:
        """Return the recipe with its scheme, and the versions and digests of what it is used with.

        Args:
            model: The model.
            samples: The calibration samples.
        """
        from qcore_analysis.models import model_digest
        from qcore_analysis.samples import data_digest

        quantizer = self.quantizer()
        first = (*quantizer.supported_schemes, *quantizer.source_schemes)[0]
        return attrs.evolve(
            self,
            scheme=self.scheme or str(first),
            versions=_versions(self.backend),
            digests={"model": model_digest(model), "data": data_digest(samples)},
        )

    def check_made_with(self, model: Any, samples: Iterable[Any]) -> Self:
        """Raise unless a model and data are those that the recipe was made with.

        Args:
            model: The model.
            samples: The calibration samples.

        Returns:
            What :meth:`made_with` returns for them.

        Raises:
            RecipeError: The weights or the data are others.
        """
        now = self.made_with(model, samples)
        for what, digest in self.digests.items():
            if now.digests.get(what, digest) != digest:
                raise RecipeError(
                    f"The {what} is not the one that the recipe was made with: its digest is "
                    f"{now.digests[what]}, not {digest}. Take digests.{what} out of the recipe "
                    "to use it nevertheless."
                )
        for name, wanted in self.versions.items():
            here = now.versions.get(name)
            if here is not None and here != wanted:
                warn(
                    f"The recipe was made with {name} {wanted}, here is {here}: the program may "
                    f"have other bytes. pip install {name}=={wanted} brings the same."
                )
        return now

    def quantizer(self) -> qcore.Quantizer:
        """Build the quantizer that the recipe describes.

        Raises:
            QcoreError: There is no such backend, option, scheme or method, or a rule is none.
        """
        import qcore

        quantizer = qcore.get_quantizer(self.backend, **self.options)
        if self.is_source(quantizer):
            return quantizer
        quantizer.set_calibration(self.calibration)
        quantizer.set_global(self.scheme or quantizer.supported_schemes[0])
        for rule in self.rules:
            scheme = None if rule.scheme == IN_FLOAT else rule.scheme
            if rule.select == "io":
                quantizer.set_io(scheme)
                continue
            name = _operator(rule.name) if rule.select == "operator_type" else rule.name
            getattr(quantizer, f"set_{rule.select}")(name, scheme)
        return quantizer

    def is_source(self, quantizer: qcore.Quantizer) -> bool:
        """Say whether the scheme is one of ``qcore.quantize_``, which treats weights alone."""
        if not self.scheme:
            return not quantizer.supported_schemes
        short = self.scheme.split()[0]
        names = {scheme.name for scheme in quantizer.supported_schemes}
        return short not in names and short in {s.name for s in quantizer.source_schemes}

    def quantize(
        self, model: Any, samples: list[Any], *, progress: bool | None = None
    ) -> qcore.QuantizedModel:
        """Quantize a model, without lowering it.

        Args:
            model: A module or an exported program; never changed.
            samples: The calibration samples.
            progress: Show a progress bar on stderr; ``None`` means: on a terminal.

        Returns:
            The quantized model.

        Raises:
            RecipeError: The scheme treats weights before the model is captured.
            QcoreError: As ``qcore.quantize``.
        """
        from qcore_analysis.making import quantized

        quantizer = self.quantizer()
        if self.is_source(quantizer):
            raise RecipeError(
                f"{self.scheme or self.backend} treats weights before the model is captured: there "
                "is no captured model. Make a program."
            )
        return quantized(model, quantizer, samples, self.algorithms, progress is False)

    def make(
        self,
        model: Any,
        samples: list[Any],
        *,
        progress: bool | None = None,
        compare_on: Sequence[Any] = (),
    ) -> Made:
        """Quantize a model and lower it.

        Args:
            model: A module or an exported program; never changed.
            samples: The calibration samples.
            progress: Show a progress bar on stderr; ``None`` means: on a terminal.
            compare_on: Samples to compare the stages on; none compares nothing.

        Returns:
            The quantized model, and the program.

        Raises:
            QcoreError: As ``qcore.quantize`` and ``quantizer.lower``.
        """
        from qcore_analysis.making import make, make_by_source

        quantizer, quiet = self.quantizer(), progress is False
        if self.is_source(quantizer):
            scheme = self.scheme or quantizer.source_schemes[0].name
            rules = {r.name: None if r.scheme == IN_FLOAT else r.scheme for r in self.rules}
            return make_by_source(model, quantizer, scheme, rules, samples, self.lowering, quiet)
        return make(
            model,
            quantizer,
            samples,
            algorithms=self.algorithms,
            lowering=self.lowering,
            compare_on=compare_on,
            quiet=quiet,
        )


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of recipes, as ``recipe.schema.json`` has it."""
    found = schema(Recipe)
    for kind in (Recipe, RecipeRule):
        definition = found["$defs"][kind.__name__]
        fields = attrs.fields(kind)
        definition["required"] = [f.name for f in fields if f.default is attrs.NOTHING]
        definition["additionalProperties"] = False
    rule = found["$defs"]["RecipeRule"]
    rule["properties"]["select"]["enum"] = list(_KINDS)
    rule["if"] = {"properties": {"select": {"not": {"const": "io"}}}}
    rule["then"] = {"required": ["name"]}
    found["$defs"]["Recipe"]["properties"]["batch"]["minimum"] = 1
    properties = found["$defs"]["Recipe"]["properties"]
    meaning = "A recipe beside this one, whose choices hold where this one has none."
    properties["base"] = {"description": meaning, "type": "string"}
    return found


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _merged(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError(f"{path} is its own base. Take a base out of one of these recipes.")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"Cannot read the recipe {path}: {error.strerror}. Write one with --save-recipe."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no TOML: {error}. Mend it, or write it again.") from error
    base = data.pop("base", None)
    if base is None:
        return data
    below = _merged(path.parent / str(base), (*seen, path.resolve()))
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            below[key] |= value
        elif key == "rules" and isinstance(value, list):
            below[key] = [*below.get(key, ()), *value]
        else:
            below[key] = value
    return below


def _check(data: Mapping[str, Any], source: str) -> None:
    """Raise the first of what the schema of recipes does not allow."""
    from jsonschema import Draft202012Validator

    whole = recipe_schema()
    known = whole["$defs"]["Recipe"]["properties"]
    for key in data:
        if key not in known:
            close = near_misses(key, known)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise RecipeError(
                f"{source}: a recipe has no {key!r}.{hint} It has: {', '.join(known)}."
            )
    if "backend" not in data:
        raise RecipeError(f"{source}: the backend is missing. Add backend = '...', or a base.")
    recipe = {"$defs": whole["$defs"], "$ref": "#/$defs/Recipe"}
    plain = json.loads(json.dumps(data, default=str))
    for error in Draft202012Validator(recipe).iter_errors(plain):
        where = ".".join(map(str, error.absolute_path))
        raise RecipeError(f"{source}: {where}: {error.message}. Mend it there.")


def _operator(name: str) -> Any:
    import torch

    try:
        return attrgetter(name)(torch.ops)
    except AttributeError:
        raise RecipeError(f"There is no operator {name!r}. Write aten.linear.default.") from None


def _versions(backend: str) -> dict[str, str]:
    """Return the versions of what decides the bytes: the plugin's and all that it is built on."""
    import qcore

    known = qcore.backends().get(backend)
    waiting = [origin.split()[0] for origin in (known.origins if known else ())]
    found = {name: version(name) for name in _PACKAGES}
    while waiting:
        name = waiting.pop(0)
        if name in found:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # Registered by a script, or not installed on this platform.
            continue
        # What qcore's own distributions need counts; what that needs in turn, its version says.
        if name.startswith("qcore-"):
            own = (need for need in requires(name) or () if "extra ==" not in need)
            waiting += [re.split(r"[^A-Za-z0-9._-]", need, maxsplit=1)[0] for need in own]
    return found


if __name__ == "__main__":
    import json

    print(json.dumps(recipe_schema(), indent=2))
