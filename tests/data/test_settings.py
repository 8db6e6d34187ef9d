"""The recipe's `data` as YAML gives it: strictly checked, with a bare string for a source."""

import pytest
from pydantic import TypeAdapter, ValidationError

from gradwise.data import Allowed, Data, Source
from gradwise.errors import RecipeError
from gradwise.recipe import Recipe

DATA = TypeAdapter(Data)


def test_a_bare_string_is_a_path_alone_and_in_lists():
    data = DATA.validate_python({"train": "a.jsonl", "validation": ["b.jsonl", {"path": "c", "weight": 2}]})
    assert data.train == Source("a.jsonl")
    assert data.validation == [Source("b.jsonl"), Source("c", weight=2.0)]
    assert data.allow == Allowed()


def test_python_callers_get_the_same():
    assert Data(train="a.jsonl").train == Source("a.jsonl")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RecipeError, match=r"max_length: .* found 1"):
        Data(max_length=1)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"trian": "a"}, "trian"),
        ({"max_length": 1}, "max_length"),
        ({"template": "alpaca"}, "template"),
        ({"allow": {"cut": 1.5}}, "cut"),
        ({"allow": {"cuts": 0.5}}, "cuts"),
        ({"train": {"path": "a", "weight": 0}}, "weight"),
        ({"train": {"path": "a", "weight": float("inf")}}, "weight"),
        ({"train": {"path": "a", "fields": {"reply": "b"}}}, "reply"),
        ({"train": {"path": "a", "format": "alpaca"}}, "format"),
        ({"train": {"file": "a"}}, "file"),
    ],
)
def test_what_is_not_known_or_out_of_range_is_refused(given, place):
    with pytest.raises(ValidationError) as error:
        DATA.validate_python(given)
    assert place in {str(part) for problem in error.value.errors() for part in problem["loc"]}


@pytest.mark.parametrize("given", [{}, {"target": "a.jsonl", "validation": "b.jsonl"}])
def test_a_share_of_a_set_that_does_not_have_to_do_both_is_refused(given):
    for alone in ("target", "validation"):
        assert DATA.validate_python({alone: "a.jsonl", "target_share": 0.3}).target_share == 0.3
    with pytest.raises(RecipeError, match=r"target_share is 0\.3, .* Leave it out"):
        DATA.validate_python({**given, "target_share": 0.3})


def test_the_schema_describes_every_field_and_takes_strings_for_sources():
    definitions = Recipe.schema()["$defs"]
    schema = definitions["Data"]
    described = [schema, *(definitions[name] for name in ("Source", "Allowed"))]
    assert all(field.get("description") for part in described for field in part["properties"].values())
    assert {"type": "string"} in schema["properties"]["train"]["anyOf"]
