"""Arms: small named changes of one recipe, from words on a command line.

    full            a preset: the name of any method or baseline, which sets its own section of the recipe
    loss_top+lisa   several at once
    anneal.random   a preset with its section; `random` alone is the selection of that name
    other.yaml      a file of overrides
    grass+rate.yaml both
    slow=lora+rate.yaml   with a name of one's own
    recipe          the recipe as it stands; recipe+all changes one decision and keeps the others

An arm that names presets starts from the recipe with its decisions set aside, so that `full` is all data,
shuffled, through all layers. A preset takes over the settings that the recipe has for that section as far as
it knows them: `grass` under a recipe with `layers: {method: grass, active: 4}` has four active layers, and so
has `lisa`; a random subset is as large as the recipe's own selection. An arm of files only, or with `recipe`,
starts from the recipe as it stands.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from gradwise.data.settings import HALF
from gradwise.errors import RecipeError
from gradwise.plain import plain
from gradwise.recipe import Recipe, tree
from gradwise.recipe.yaml_text import read_yaml
from gradwise.settings import Settings, nearest
from gradwise.text import shown

AS_IT_STANDS = "recipe"
ADAPTER = "adapter"

NOT_AN_ARMS = {
    "seed": "seeds are the comparison's (--seeds)",
    "data.validation": "all arms are measured on the same held-out data",
    "data.target_share": "all arms are measured on the same held-out data",
    "metrics": "all arms are measured by the same metrics",
    "train.epochs": "how long an arm trains follows from --budget",
    "train.max_steps": "how long an arm trains follows from --budget",
}
"""Keys that a file of overrides may not set, each with why."""

SIZES = ("fraction", "count", "tokens")
"""Settings that give the size of a selection."""

Tree = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One column of a comparison."""

    name: str
    spec: str
    """The word that it was parsed from."""
    recipe: Recipe


def parse_arms(words: list[str], recipe: Recipe, *, fraction: float | None = None) -> list[Arm]:
    """The arms that words such as `full` or `slow=lora+rate.yaml` name, as changes of `recipe`. `fraction` is
    the size of selections, in place of the recipe's. Raises RecipeError for unknown or contradictory
    words."""
    arms = [_parse_arm(word.strip(), recipe, fraction) for word in words]
    for position, arm in enumerate(arms):
        same = [other for other in arms[:position] if other.name == arm.name]
        if same:
            raise RecipeError(
                f"--arms: two arms are called {shown(arm.name)}; give one a name of its own, such as "
                f"again={arm.spec}."
            )
    return _measured_alike(arms, recipe)


def _measured_alike(arms: list[Arm], recipe: Recipe) -> list[Arm]:
    """Let the same samples measure all arms if one arm lets a part of the validation data choose."""
    shared = recipe.data
    for arm in arms:
        data = arm.recipe.data
        if shared is None or data is None or shared.target is None or shared.validation is not None:
            continue
        # Alone, a part of the target measures.
        if data.target != shared.target:
            raise RecipeError(
                f"--arms: {arm.name} has a data.target of its own, and would be measured by a part of that "
                "instead of the recipe's; give data.validation, by which all arms are measured."
            )
    if not any(arm.recipe.goal == "validation" for arm in arms):
        return arms
    return [replace(arm, recipe=_with_share(arm.recipe)) for arm in arms]


def _with_share(recipe: Recipe) -> Recipe:
    data = recipe.data
    assert data is not None
    if data.target is not None:
        return recipe  # measured by all of the validation data, which is refused once they are counted
    return replace(recipe, data=replace(data, target_share=data.target_share or HALF))


def presets() -> dict[str, list[str]]:
    """Names of methods and the sections they set, as the recipe's own types have them."""
    sections_by_method: dict[str, list[str]] = {"lora": [ADAPTER]}
    for section in tree.METHOD_SECTIONS:
        for method in _methods(section):
            sections_by_method.setdefault(method, []).append(section)
    return sections_by_method


@cache
def _methods(section: str) -> dict[str, type[Settings]]:
    """The settings classes that may stand in a section, by the name of their method."""
    hint = get_type_hints(Recipe, include_extras=True)[section]
    classes_by_method = {}
    for cls in _classes(hint):
        names: list[Any] = [field.default for field in fields(cls) if field.name == "method"]  # type: ignore[arg-type]
        classes_by_method.update(dict.fromkeys(names, cls))
    return classes_by_method


def _classes(hint: object) -> Iterator[type[Settings]]:
    if isinstance(hint, type) and issubclass(hint, Settings):
        yield hint
    for argument in get_args(hint):
        yield from _classes(argument)


def _parse_arm(word: str, recipe: Recipe, fraction: float | None) -> Arm:
    name, equals, spec = word.partition("=") if "=" in word else ("", "", word)
    parts = [part.strip() for part in spec.split("+")]
    if not all(parts) or (equals and not name.strip()):
        raise RecipeError(f"--arms: {shown(word)} names no arm; {_known_arms()}")
    name = name.strip() or "+".join(Path(part).stem if _is_file(part) else part for part in parts)
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise RecipeError(
            f"--arms: {shown(name)} cannot be an arm's name, which is also that of a folder; use letters, "
            "digits and . _ + -."
        )
    # Files last, so that they can refine what a preset sets, whatever the order they are named in.
    apart = sorted((part for part in parts if part != AS_IT_STANDS), key=_is_file)
    changes = [_change(part, recipe, fraction) for part in apart]
    _check_apart(word, apart, changes)
    base = recipe.to_dict()
    if AS_IT_STANDS not in parts and not all(_is_file(part) for part in parts):
        default = Recipe().to_dict()
        base |= {section: default[section] for section in (*tree.METHOD_SECTIONS, ADAPTER)}
    for change in changes:
        for section, values in change.items():
            if isinstance(values, dict) and "method" in values:
                base[section] = {}  # another method's settings must not stay behind
        base = tree.merged(base, change)
    return Arm(name, spec, Recipe.from_dict(_decaying_alike(base, recipe), source=f"--arms {word}"))


def takes_size(arm: Arm, fraction: float) -> bool:
    """Whether an arm selects the fraction that presets get."""
    return getattr(arm.recipe.select, "fraction", None) == fraction


def _is_file(part: str) -> bool:
    return Path(part).suffix in (".yaml", ".yml")


def _decaying_alike(base: Tree, recipe: Recipe) -> Tree:
    """An arm without `anneal` decays as long as the recipe's own annealing phase."""
    phase = recipe.anneal
    if phase is None or base["anneal"] is not None or base["train"]["schedule"] != "wsd":
        return base
    if base["train"]["decay"] is None:
        return tree.merged(base, {"train": {"decay": phase.last}})
    return base


def _change(part: str, recipe: Recipe, fraction: float | None) -> Tree:
    if _is_file(part):
        return _overrides(Path(part))
    section, method = _preset(part)
    settings = recipe.to_dict()[section]
    if section == ADAPTER:
        return {ADAPTER: settings if settings and settings["method"] == method else {"method": method}}
    cls = _methods(section)[method]
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    unused = SIZES if (section, method) == ("anneal", "full") else ()
    if section == "anneal" and not getattr(cls, "validation_needs", None):
        unused = (*unused, "validation_samples")
    inherited = {key: value for key, value in (settings or {}).items() if key in names and key not in unused}
    return {section: {**_sized(part, section, inherited, names, fraction), "method": method}}


def _sized(part: str, section: str, settings: Tree, names: set[str], fraction: float | None) -> Tree:
    """Settings of a selection, with a size if it needs one."""
    if section != "select" or not {"fraction", "count"} <= names:
        return settings
    if fraction is not None:
        return {key: value for key, value in settings.items() if key not in SIZES} | {"fraction": fraction}
    if all(settings.get(size) is None for size in SIZES):
        raise RecipeError(
            f"--arms: {part} selects a part of the data, and nothing says how much; give --fraction 0.2, or "
            "a `select` with fraction or count in the recipe."
        )
    return settings


def _preset(part: str) -> tuple[str, str]:
    """Section and method of a preset."""
    section, dot, method = part.partition(".")
    sections_of = presets()
    if dot and section == ADAPTER:
        return section, method
    if dot and section in tree.METHOD_SECTIONS:
        if method not in _methods(section):
            raise RecipeError(
                f"--arms: {section} knows no method {shown(method)}{nearest(method, list(_methods(section)))}"
            )
        return section, method
    if part not in sections_of:
        near = nearest(part, [*sections_of, AS_IT_STANDS])
        raise RecipeError(
            f"--arms: unknown arm {shown(part)}{near if 'did you mean' in near else ';'} {_known_arms()}"
        )
    # What to train on from the start comes first: `random` is a selection, `anneal.random` a way to finish.
    sections = [section for section in sections_of[part] if section != "anneal"] or sections_of[part]
    if len(sections) > 1:
        spelt = " or ".join(f"{section}.{part}" for section in sections)
        raise RecipeError(f"--arms: {part} could be several things; write {spelt}.")
    return sections[0], part


def _known_arms() -> str:
    methods = ", ".join(sorted(presets()))
    return (
        f"Known: {methods}, {AS_IT_STANDS} (as it stands), a .yaml file of overrides, and any of these "
        "with +."
    )


def _overrides(path: Path) -> Tree:
    values = plain(read_yaml(path))
    tree.anchor_paths(values, path.parent.resolve())
    for key, why in NOT_AN_ARMS.items():
        if any(set_key == key or set_key.startswith(f"{key}.") for set_key in _keys(values)):
            raise RecipeError(f"{path}: an arm cannot set {key}: {why}.")
    spelt: Tree = {
        section: {"method": value} if section in tree.METHOD_SECTIONS and isinstance(value, str) else value
        for section, value in values.items()
    }
    return spelt


def _keys(values: Tree, above: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        yield name
        if isinstance(value, dict):
            yield from _keys(value, name)


def _check_apart(word: str, parts: list[str], changes: list[Tree]) -> None:
    """Refuse two parts that set the same setting, since it is unclear which should count."""
    part_of: dict[str, str] = {}
    for part, change in zip(parts, changes, strict=True):
        # A preset says which method; a file may refine its settings, as in grass+active4.yaml.
        keys = [key for key in _keys(change) if not _is_section(change, key)]
        if not _is_file(part):
            keys = [key for key in keys if key.endswith(".method")]
        for key in keys:
            if key in part_of:
                raise RecipeError(
                    f"--arms: in {word}, both {part_of[key]} and {part} set {key.removesuffix('.method')}; "
                    "leave one out."
                )
            part_of[key] = part


def _is_section(values: Tree, key: str) -> bool:
    inner: Any = values
    for name in key.split("."):
        inner = inner[name]
    return isinstance(inner, dict)
