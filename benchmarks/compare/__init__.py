"""Do selections, orders and layer policies pay at equal cost? Through `gradwise compare`, as a user would
call it.

    python -m benchmarks.compare.run --task small_llama       # 9 M parameters, 5 seeds, 8 arms

`tasks` lists what is compared: models, data, arms, budgets. Recipes are in `recipes/`, arms with settings of
their own in `arms/`. `rates` chooses learning rates, `page` writes the tables and draws the curves.

An arm named `d3` or `d3_*` orders by a measured influence graph. `balanced` is the order that spreads label
tokens evenly; it measures nothing.
"""
