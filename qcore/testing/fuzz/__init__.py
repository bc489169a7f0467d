"""Random models, taken all the way: ``python -m qcore.testing.fuzz --backend NAME``."""

from qcore.testing.fuzz.builder import linear_recipe, random_recipe
from qcore.testing.fuzz.outcome import Kind, Outcome, shrunk, try_recipe
from qcore.testing.fuzz.random_models import RandomModels
from qcore.testing.fuzz.recipe import Recipe, Step

__all__ = [
    "Kind",
    "Outcome",
    "RandomModels",
    "Recipe",
    "Step",
    "linear_recipe",
    "random_recipe",
    "shrunk",
    "try_recipe",
]
