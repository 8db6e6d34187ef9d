"""Writes docs/reference/settings.md from the recipe's schema: `python docs/settings.py`."""

import json
from pathlib import Path
from typing import Any

from gradwise.recipe import Recipe
from gradwise.recipe.foreign_keys import DERIVED, argument_schemas

PAGE = Path(__file__).parent / "reference" / "settings.md"
HEAD = """# Every setting

Written from the recipe's schema by `python docs/settings.py`; do not edit. `gradwise schema` prints the
schema itself for editors. A setting without a value in the column "default" must be given;
`null` there means unset.
"""
MORE = {
    "adapter": """
`target_modules` of LoRA is `all-linear` if unset. Needs the extra `lora`.
""",
}
"""What follows a section's first sentence."""
ARGUMENTS = "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments"
FOREIGN = f"""The remaining keys are those of [TrainingArguments]({ARGUMENTS}).
Without a default here: `per_device_train_batch_size` is the largest divisor of a process's share of the batch
that is at most 8, `dataloader_pin_memory` is true where there is an accelerator, and with held-out data
`eval_strategy` is `epoch` and `eval_on_start` true. The list is that of transformers 5.23; the installed
version decides. `activation_checkpointing` and its `_kwargs` came with 5.23; `gradient_checkpointing` works
in all versions of transformers 5.
"""
DECISIONS = ("select", "order", "layers", "anneal")
SHARED = {"anneal": "Settings of every annealing method"}
"""Sections whose methods have settings in common, with the heading of these."""


def page() -> str:
    """The whole page."""
    schema = Recipe.schema()
    parts = [HEAD, "## Recipe\n", _table(_sections(schema))]
    for name, section in schema["properties"].items():
        kinds = _referred(section, schema["$defs"])
        if kinds:
            parts.append(f"## `{name}`\n\n{_first_paragraph(section)}\n{MORE.get(name, '')}")
        shared = _shared(kinds) if name in SHARED else {}
        if shared:
            parts += [f"### {SHARED[name]}\n", _table(shared)]
        for kind in kinds:
            parts += _kind(kind, name in DECISIONS, shared, above=_first_paragraph(section))
    shown = {
        kind["title"] for part in schema["properties"].values() for kind in _referred(part, schema["$defs"])
    }
    for name in ("Source", "Allowed", "Function", "Choice", "Generate", "LmEval", "Speeds"):
        if name not in shown and name in schema["$defs"]:
            parts.append(f"## {NESTED[name]}\n")
            parts += _kind(schema["$defs"][name], False)
    return "\n".join(parts).rstrip() + "\n"


def _sections(schema: dict[str, Any]) -> dict[str, Any]:
    """The recipe's own settings; the sections that follow have their types below."""
    found = {}
    for name, section in schema["properties"].items():
        kind = "method" if name in DECISIONS else "section"
        kinds = _referred(section, schema["$defs"])
        own = {key: section[key] for key in ("default", "description") if key in section}
        found[name] = {**own, "type": f"[{kind}](#{name})"} if kinds else section
    return found


WORDS = {"object": "mapping", "string": "text"}
NESTED = {
    "Source": "A source of `data.train`, `data.validation`, `data.target`, `anneal.data`",
    "Allowed": "`data.allow`",
    "Function": "`metrics`: a function of yours",
    "Choice": "`metrics`: multiple choice",
    "Generate": "`metrics`: generated answers",
    "LmEval": "`metrics`: lm-eval",
    "Speeds": "Measured speeds",
}


def _shared(kinds: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all methods of a section have alike."""
    first, *others = (kind["properties"] for kind in kinds)
    return {
        name: each
        for name, each in first.items()
        if name != "method" and all(other.get(name) == each for other in others)
    }


def _kind(
    kind: dict[str, Any], is_method: bool, shared: dict[str, Any] | None = None, *, above: str = ""
) -> list[str]:
    """Heading, sentence and table of one kind of settings.

    Args:
        kind: its schema.
        is_method: whether it is a method, which has a heading.
        shared: settings that are listed elsewhere.
        above: what the page says before it, which is not said twice.
    """
    properties = {
        name: each for name, each in kind["properties"].items() if name != "method" or not is_method
    }
    head = [f"### `{kind['properties']['method']['default']}`\n"] if is_method else []
    sentence = _first_paragraph(kind)
    own = {
        name: each
        for name, each in properties.items()
        if name not in (shared or {}) and (name in DERIVED or {"description", "default"} & each.keys())
    }
    foreign = {name: own.pop(name) for name in argument_schemas() if name in own and kind["title"] == "Train"}
    none = "It has no settings of its own.\n" if shared else "It has no settings.\n"
    table = _table(own, set(kind.get("required", ()))) if own else none
    return [
        *head,
        *([] if above.startswith(sentence) else [f"{sentence}\n"]),
        table,
        *([FOREIGN, _table(foreign)] if foreign else []),
    ]


def _referred(section: dict[str, Any], defs: dict[str, Any]) -> list[dict[str, Any]]:
    """The kinds of settings that a section may hold."""
    if "$ref" in section:
        kind = defs[section["$ref"].rsplit("/", 1)[-1]]
        return [kind] if "properties" in kind else []
    inner = [*section.get("anyOf", ()), *section.get("oneOf", ())]
    return [kind for each in inner for kind in _referred(each, defs)]


def _table(properties: dict[str, Any], required: set[str] | None = None) -> str:
    described = any(each.get("description") for each in properties.values())
    lines = ["| setting | type | default |", "|---|---|---|"]
    if described:
        lines = ["| setting | type | default | what it is |", "|---|---|---|---|"]
    for name, each in properties.items():
        follows = name in DERIVED and "default" not in each
        default = "" if name in (required or ()) else _default(each.get("default"))
        default = "see above" if follows else default
        description = f" {_cell(each.get('description', ''))} |" * described
        lines.append(f"| `{name}` | {_type(each)} | {default} |{description}")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return "see the section" if isinstance(value, dict) and len(text) > 40 else f"`{text}`"


def _type(each: dict[str, Any]) -> str:
    if "$ref" in each:
        return _cell(f"{each['$ref'].rsplit('/', 1)[-1]}")
    if "const" in each or "enum" in each:
        return " or ".join(f"`{value}`" for value in each.get("enum", [each.get("const")]))
    if inner := [*each.get("anyOf", ()), *each.get("oneOf", ())]:
        return " or ".join(dict.fromkeys(_type(part) for part in inner))
    if each.get("type") == "array":
        return f"list of {_type(each.get('items', {}))}"
    kind = str(each.get("type", "any"))
    return WORDS.get(kind, kind) + _range(each)


def _range(each: dict[str, Any]) -> str:
    signs = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    if "minimum" in each and each.get("minimum") == each.get("maximum"):
        return f" {each['minimum']}"
    found = [f"{word} {_number(each[key])}" for key, word in signs.items() if key in each]
    return " " + ", ".join(found) if found else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _first_paragraph(each: dict[str, Any]) -> str:
    return _cell(each.get("description", "").split(">>>")[0])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
