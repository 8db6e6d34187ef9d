"""`gradwise schema`: the recipe's JSON schema, for editors."""

import json


def schema() -> None:
    """Print the JSON schema of a recipe.

    An editor that knows YAML schemas then completes and checks recipes: save the output beside the recipe and
    begin the recipe with the line "# yaml-language-server: $schema=<file>".
    """
    from gradwise.recipe import Recipe

    print(json.dumps(Recipe.schema(), indent=2))
