"""Recipes of every kind for hypothesis, with the words that YAML likes to take for something else."""

from dataclasses import replace
from typing import Any, get_args

from hypothesis import strategies as st

from gradwise import Adapter, Data, Direct, Grass, Model, Recipe, Source, Train, baselines
from gradwise.evaluation import Choice, Function, Generate, LmEval, Metrics
from gradwise.methods import Anneal, Layers, OrderBy, Select
from gradwise.recipe import SignalSettings

METHODS = {
    section: list(get_args(get_args(union)[0]))
    for section, union in {"select": Select, "order": OrderBy, "layers": Layers, "anneal": Anneal}.items()
}
EVERY_METHOD = [(section, cls) for section, classes in METHODS.items() for cls in classes]


def named(section: str, cls: Any) -> Any:
    """The method with its defaults, and the size that a part of the data cannot do without."""
    return cls(count=3) if section == "select" and cls is not baselines.FullData else cls()


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
tricky = st.sampled_from(
    ["no", "yes", "on", "1e5", "12e4567", "2e-5", "null", "~", "1", "0x1f", "2024-01-01", "a: b", "-"]
)
shares = st.floats(1e-6, 1)
policy = {
    "active": st.integers(1, 99),
    "period": st.integers(1, 99),
    "state": st.sampled_from(["keep", "drop"]),
}
probed = policy | {"probe": st.integers(1, 9)}
by_score = probed | {"temperature": st.floats(1e-3, 1e3), "floor": st.floats(0, 0.9)}
adapting = {"smoothing": st.floats(0.01, 1)}
layers = st.one_of(
    st.builds(baselines.AllLayers),
    st.builds(baselines.UniformLayers, **policy),
    st.builds(baselines.RoundRobinLayers, **policy),
    st.builds(baselines.StaticLayers, **by_score),
    st.builds(baselines.TopLayers, **probed, **adapting),
    st.builds(Grass, **by_score, **adapting),
)
parts = [baselines.RandomSubset, baselines.LossTop, baselines.LengthTop]
selects = st.one_of(
    st.just(baselines.FullData()),
    *(st.builds(part, fraction=shares) for part in parts),
    *(st.builds(part, count=st.integers(1, 10**9)) for part in parts),
)
sources = st.builds(
    Source,
    path=words | tricky,
    domain=st.none() | tricky,
    split=st.none() | words,
    weight=st.floats(1e-9, 1e9),
)
data = st.builds(
    Data,
    train=sources | st.lists(sources, min_size=1, max_size=3),
    validation=st.none() | sources,
    max_length=st.integers(2, 10**6),
    packing=st.sampled_from([False, True, "auto"]),
    chat_template=st.none() | tricky,
)
trains = st.builds(
    Train,
    epochs=st.floats(1e-3, 1e3),
    batch_size=st.integers(1, 4096),
    learning_rate=st.floats(1e-6, 10),  # above what polynomial ends at
    schedule=st.sampled_from(["linear", "wsd", "cosine", "polynomial"]),
    arguments=st.fixed_dictionaries(
        {},
        optional={
            "weight_decay": st.floats(0, 1),
            "max_steps": st.integers(1, 10**6),
            "bf16": st.booleans(),
            "eval_strategy": st.sampled_from(["no", "steps", "epoch"]),
            "run_name": words | tricky,
        },
    ),
)
limits = st.none() | st.integers(1, 10**6)
on_files = {"path": words | tricky, "prompt": words | tricky, "answer": words | tricky, "limit": limits}
tasks = st.tuples(
    st.builds(
        Generate,
        name=st.just("answers"),
        extract=st.none() | st.sampled_from(["[0-9]+", "no: (.*)"]),
        take=st.sampled_from(["first", "last"]),
        stop=st.lists(tricky, max_size=2),
        chat=st.booleans(),
        **on_files,
    ),
    st.builds(
        Choice,
        name=st.just("no"),
        choices=tricky | st.lists(tricky, min_size=2, max_size=4),
        delimiter=st.none() | tricky,
        normalise=st.booleans(),
        **on_files,
    ),
    st.builds(LmEval, name=st.just("1e5"), shots=st.none() | st.integers(0, 9), limit=limits),
)
metrics = st.builds(
    Metrics,
    tasks=tasks.map(list) | st.just([]),
    functions=st.lists(
        st.builds(
            Function, path=st.sampled_from(["a.b:c", "./m.py:c"]), better=st.sampled_from(["lower", "higher"])
        ),
        max_size=1,
    ),
    batch_size=st.integers(1, 99),
)
models = st.builds(
    Model,
    name=words | tricky,
    revision=st.none() | tricky,
    dtype=st.sampled_from(["auto", "bfloat16", "float32"]),
)
adapters = st.builds(
    Adapter,
    options=st.fixed_dictionaries({}, optional={"r": st.integers(1, 64), "lora_alpha": st.integers(1, 9)}),
)
phase = {
    "last": st.floats(0.01, 0.99),
    "times": st.integers(1, 9),
    "pool": st.sampled_from(["all", "selection"]),
    "candidates": st.none() | st.integers(2, 10**6),
    "validation_samples": st.none() | st.integers(1, 10**6),
}
anneals = st.one_of(
    st.builds(Direct, tau=st.none() | shares, fraction=st.none() | shares, **phase),
    st.builds(Direct, objective=st.just("paper"), count=st.integers(1, 10**9), times=phase["times"]),
    st.builds(baselines.Herding, tokens=st.integers(1, 10**9), **phase),
    st.just(baselines.FullAnneal()),
)
unfinished = st.builds(
    Recipe,
    model=st.none() | models,
    data=st.none() | data,
    train=trains,
    adapter=st.none() | adapters,
    signals=st.builds(SignalSettings, batch_tokens=st.integers(1, 10**6)),
    select=selects,
    order=st.sampled_from([cls() for cls in METHODS["order"]]),
    layers=layers,
    weights=st.sampled_from(["repeat", "loss"]),
    metrics=metrics,
    seed=st.integers(0, 2**31),
)
finished = st.builds(
    lambda recipe, anneal: replace(recipe, train=replace(recipe.train, schedule="wsd"), anneal=anneal),
    unfinished,
    anneals,
)
recipes = unfinished | finished
