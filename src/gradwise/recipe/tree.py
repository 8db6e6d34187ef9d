"""Recipes as plain nested values: overrides, paths, and the free keys of other libraries."""

from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

from gradwise.data.settings import at_home
from gradwise.errors import RecipeError
from gradwise.plain import DEEPEST, plain
from gradwise.recipe.sections import Adapter, Train
from gradwise.recipe.yaml_text import parse
from gradwise.settings import Settings, field_descriptions
from gradwise.text import clipped, shown

Tree = dict[str, Any]

FREE_SECTIONS = {"train": "arguments", "adapter": "options"}
"""Sections that take further keys of somebody else's, and the field that holds them."""

CONFIGURATIONS = ("deepspeed", "fsdp_config")
"""TrainingArguments that may name a JSON file."""

METHOD_SECTIONS = ("select", "order", "layers", "anneal")
"""Sections for which the bare method's name suffices: `layers: grass` means `layers: {method: grass}`."""


def override(values: Tree, setting: str) -> None:
    """Set one "a.b.c=value" in place; the value is read as YAML."""
    key, equals, text = setting.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys) or len(keys) > DEEPEST:
        raise RecipeError(f"--set takes key=value, such as select.fraction=0.2; found {shown(setting)}.")
    value = plain(parse(text, f"--set {clipped(key)}"), key)
    for name in keys[:-1]:
        if name in METHOD_SECTIONS and isinstance(values.get(name), str):
            values[name] = {"method": values[name]}
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {key}: {name} was already given the value {shown(values)}.")
    if isinstance(values.get(keys[-1]), dict):
        raise RecipeError(
            f"--set {key}: keys below it were already given the values {shown(values[keys[-1]])}."
        )
    values[keys[-1]] = _Whole(value) if _replaces(keys, value) else value


class _Whole(Tree):
    """A mapping that replaces what it is put over, instead of being merged with it."""


def _replaces(keys: list[str], value: object) -> bool:
    """Whether a value of `--set` is a mapping that must not be merged with the recipe's own: keys of another
    library, a mapping that names a method, or an empty one."""
    if not isinstance(value, dict):
        return False
    free = keys[-1] == "fields" or (keys[0] in FREE_SECTIONS and len(keys) > 1)
    names_method = keys[0] in (*METHOD_SECTIONS, "adapter") and len(keys) == 1 and "method" in value
    return free or names_method or not value


def merged(base: Tree, changes: Tree) -> Tree:
    """`base` with the leaves of `changes` put over it; a bare method name that meets a mapping is spelt
    out."""
    result = deepcopy(base)
    for key, value in changes.items():
        if isinstance(value, dict) and not isinstance(value, _Whole):
            below = result.get(key)
            if isinstance(below, str) and key in METHOD_SECTIONS:
                below = {"method": below}
            result[key] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result


def anchor_paths(values: Tree, folder: Path) -> None:
    """Make all paths of files, and that of a local model, absolute in place; hub names stay."""
    signals = values.get("signals")
    proxy = signals.get("model") if isinstance(signals, dict) else None
    if isinstance(signals, dict) and isinstance(proxy, str):
        signals["model"] = _anchored(proxy, folder)
    for model in (values.get("model"), proxy):
        if isinstance(model, dict) and isinstance(model.get("name"), str):
            model["name"] = _anchored(model["name"], folder)
    anchors = {
        "data": _anchor_data,
        "anneal": lambda anneal, folder: _anchor_sources(anneal, "data", folder),
        "train": _anchor_train,
        "metrics": _anchor_metrics,
    }
    for section, anchor in anchors.items():
        if isinstance(values.get(section), dict):
            anchor(values[section], folder)


def _anchor_data(data: Tree, folder: Path) -> None:
    template = data.get("chat_template")
    if isinstance(template, str) and not ("{{" in template or "{%" in template):
        data["chat_template"] = str(_located(template, folder)[0])
    for part in ("train", "validation", "target"):
        _anchor_sources(data, part, folder)


def _anchor_sources(section: Tree, key: str, folder: Path) -> None:
    sources = section.get(key)
    if isinstance(sources, str):
        section[key] = _anchored(sources, folder)
    for position, source in enumerate(sources if isinstance(sources, list) else [sources]):
        if isinstance(source, str) and isinstance(sources, list):
            sources[position] = _anchored(source, folder)
        elif isinstance(source, dict) and isinstance(source.get("path"), str):
            source["path"] = _anchored(source["path"], folder)


def _anchor_train(train: Tree, folder: Path) -> None:
    for key in CONFIGURATIONS:
        if isinstance(train.get(key), str):
            train[key] = str(_located(train[key], folder)[0])


def _anchor_metrics(metrics: Tree, folder: Path) -> None:
    tasks, functions = (metrics.get(name) for name in ("tasks", "functions"))
    for task in tasks if isinstance(tasks, list) else []:
        if isinstance(task, dict) and isinstance(task.get("path"), str):
            task["path"] = _anchored(task["path"], folder)
        if isinstance(task, dict) and isinstance(task.get("folder"), str):
            task["folder"] = str(_located(task["folder"], folder)[0])
    functions = functions if isinstance(functions, list) else []
    for position, function in enumerate(functions):
        if isinstance(function, str):
            functions[position] = _anchored_function(function, folder)
        elif isinstance(function, dict) and isinstance(function.get("path"), str):
            function["path"] = _anchored_function(function["path"], folder)


def _anchored_function(path: str, folder: Path) -> str:
    """`file.py:function` made absolute; `package.module:function` stays as it is."""
    place, colon, name = path.rpartition(":")
    if not place.endswith(".py"):
        return path
    return str(_located(place, folder)[0]) + colon + name


def _located(path: str, folder: Path) -> tuple[Path, bool]:
    """A path made absolute, and whether it exists."""
    local = (folder / at_home(path)).absolute()
    try:
        return local, local.exists()
    except OSError as error:  # longer than any name can be, or behind a folder that may not be entered
        raise RecipeError(f"{clipped(path)}: {error.strerror}; give another path.") from None


def _anchored(name: str, folder: Path) -> str:
    local, exists = _located(name, folder)
    # A name that ends like a data file is a path even where there is no file, so that the message names the
    # place where it was looked for. A plain name may stand on the hub.
    looks_local = name.startswith((".", "/", "~")) or Path(name).suffix in (
        ".jsonl",
        ".json",
        ".csv",
        ".parquet",
    )
    return str(local) if looks_local or exists else name


def nested(values: Tree) -> Tree:
    """From the YAML form to the fields: bare method names spelt out, free keys gathered into their field."""
    result = deepcopy(values)
    for section in METHOD_SECTIONS:
        if isinstance(result.get(section), str):
            result[section] = {"method": result[section]}
    for section, holder in FREE_SECTIONS.items():
        settings = result.get(section)
        if isinstance(settings, dict):
            field_names = section_fields(section)
            free = {key: settings.pop(key) for key in list(settings) if key not in field_names}
            if free:
                settings[holder] = free
    return result


def flattened(values: Tree) -> Tree:
    """From the fields to the YAML form; the inverse of `nested` but for bare method names."""
    result = {}
    for section, value in values.items():
        if isinstance(value, dict):
            free = value.get(FREE_SECTIONS.get(section, ""), {})
            value = {key: inner for key, inner in value.items() if key != FREE_SECTIONS.get(section)} | free
            if "method" in value:
                value = {"method": value.pop("method")} | value
        result[section] = value
    return result


def section_fields(section: str) -> set[str]:
    """Keys of a free section that are gradwise's, without the field that gathers the others."""
    owner = {"train": Train, "adapter": Adapter}[section]
    return {field.name for field in fields(owner)} - {FREE_SECTIONS[section]}


def flattened_schema(schema: Tree) -> Tree:
    """The JSON schema of the YAML form: free keys beside the section's own, bare method names allowed."""
    from gradwise.recipe.foreign_keys import argument_schemas

    definitions = schema["$defs"]
    _describe(definitions | {schema["title"]: schema}, Settings)
    train = definitions["Train"]["properties"]
    del train["arguments"]
    theirs = argument_schemas()
    for described in theirs.values():
        # References are from the root of the whole schema.
        definitions.update(described.pop("$defs", {}))
    definitions["Train"]["properties"] = train | theirs
    del definitions["Adapter"]["properties"]["options"]
    definitions["Adapter"]["additionalProperties"] = True
    for section in METHOD_SECTIONS:
        described = schema["properties"][section]
        # A section that may be left out is an alternative beside null.
        described = described["anyOf"][0] if "anyOf" in described else described
        names = list(described.get("discriminator", {}).get("mapping", {}))
        described.pop("discriminator", None)
        described["oneOf"] = [*described["oneOf"], {"enum": names}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "gradwise recipe"}


def _describe(definitions: Tree, cls: type[Settings]) -> None:
    """Give the properties of gradwise's settings classes the docstrings of their fields."""
    # pydantic can do this itself, but then every command that reads a recipe reads the sources of all
    # settings, which took most of the time until a mistake was reported.
    for below in cls.__subclasses__():
        _describe(definitions, below)
        # Somebody else's class of the same name has no place in the schema.
        if below.__name__ in definitions and below.__module__.startswith("gradwise."):
            texts = field_descriptions(below)
            for name, described in definitions[below.__name__].get("properties", {}).items():
                described.setdefault("description", texts.get(name, ""))
