"""Recipes as TOML: those that come with the package, the user's own, and what is wrong in one."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tallrec.recipe import STAGES, Recipe


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(files("tallrec") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def about(path: Path) -> str:
    """The first sentence of the comment at the head of a recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.removeprefix("#").strip() for line in head)
    return re.split(r"\.\s", text.removeprefix(f"{path.stem}: "))[0]


def load_recipe(source: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        source: The name of a shipped recipe or the path of a TOML file.
        overrides: `path=value` texts, such as `stages.0.learning_rate=3e-4`; the value is TOML, or
            else taken as text.

    Raises:
        ValueError: If there is no such recipe, or a key or value is not allowed; each is named
            with its path and what would be right.
    """
    shipped = shipped_recipes()
    try:
        return read_recipe(shipped.get(source, Path(source)), overrides, name=source)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"there is no recipe {source!r}: give a TOML file or one of {', '.join(shipped)}"
        ) from None


def read_recipe(path: Path, overrides: tuple[str, ...] = (), *, name: str | None = None) -> Recipe:
    """Reads a recipe from a file, called `name` in messages; see `load_recipe`."""
    name = name or str(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the recipe {name} is not TOML: {error}") from None
    for override in overrides:
        _set(tree, override)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_explain(problem) for problem in error.errors())
        raise ValueError(f"the recipe {name} is not right: {problems}") from None


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"--set takes path=value, such as stages.0.epochs=4; got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.strip().split(".")
    place: Any = tree
    for name in tables:
        if isinstance(place, list):
            place = place[_index(place, name, override)]
        else:
            place = place.setdefault(name, {})
        if not isinstance(place, dict | list):
            raise ValueError(f"--set {override}: {name} is a value, not a table")
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    else:
        place[last] = value


def _index(items: list[Any], text: str, override: str) -> int:
    if not text.isdecimal() or int(text) >= len(items):
        raise ValueError(
            f"--set {override}: {text!r} is none of the numbers 0 to {len(items) - 1} of that list"
        )
    return int(text)


def _explain(problem: Any) -> str:
    """One validation problem as path, fault and allowed keys."""
    path = list(problem["loc"])
    model: type[BaseModel] = Recipe
    if path[:1] == ["stages"] and len(path) > 2:
        model = STAGES[path.pop(2)]  # pydantic tells which kind of stage it took it for
        inner = path[2:]
    else:
        inner = path
    where = ".".join(map(str, path)) or "recipe"
    if problem["type"] == "union_tag_not_found":
        return f"{where}: data is missing; give data = {' or '.join(map(repr, STAGES))}"
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"
    for part in inner[:-1]:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return f"{where}: there is no such key; there are {', '.join(model.model_fields)}"
