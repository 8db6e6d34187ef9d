"""The presets that do what the papers state, against the papers' formulas taken literally."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from gradwise.errors import RecipeError
from gradwise.methods.d3.graph import InfluenceGraph
from gradwise.methods.d3.units import Units
from gradwise.numerics.budgeted import rounded_at_random
from gradwise.run import train

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "src/gradwise/demo/assets/stories260K"


@pytest.mark.parametrize(
    ("name", "section", "preset"),
    [
        ("grace", "select", gw.Grace.published()),
        ("d3", "order", gw.D3.published()),
        ("grass", "layers", gw.Grass.published()),
        ("direct", "anneal", gw.Direct.published(last=0.85)),
    ],
)
def test_a_recipe_holds_the_preset(name: str, section: str, preset: Any) -> None:
    recipe = gw.Recipe.load(ROOT / "recipes" / "published" / f"{name}.yaml")
    assert getattr(recipe, section) == preset


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["grace", "d3", "grass", "direct"])
def test_a_recipe_runs_on_the_story_model(name: str, tmp_path: Path) -> None:
    shorter = {"direct": ["train.epochs=0.2"], "grass": ["train.epochs=0.3"]}.get(name, [])
    overrides = [f"model.name={STORIES}", *shorter]
    recipe = gw.Recipe.load(ROOT / "recipes" / "published" / f"{name}.yaml", overrides)
    outcome = train(recipe, tmp_path / "run", tell=lambda _: None, progress=False)
    assert outcome.finished and outcome.steps > 0


@pytest.mark.parametrize(
    "decision",
    [
        {"anneal": gw.Direct(count=4)},
        {"order": gw.D3(size=4)},
        {"select": gw.Grace(count=4, refresh_every=5)},
    ],
)
def test_packing_is_refused_before_the_model_is_loaded(decision: Any, tmp_path: Path) -> None:
    common: Any = {"model": {"name": "no/such"}, "data": {"train": "none.jsonl", "packing": True}}
    recipe = gw.Recipe(**common, train={"schedule": "wsd"}, **decision)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="cannot go with packing"):
        train(recipe, tmp_path / "run", tell=lambda _: None, progress=False)


# ---- DiReCT ------------------------------------------------------------------------------------------------


def gradients(n: int, seed: int, k: int = 12) -> gw.Signals:
    rng = np.random.default_rng(seed)
    grad = rng.standard_normal((n, k)) * np.exp(-np.arange(k) / 3)
    return gw.Signals(n, grad=grad.astype(np.float32), loss=rng.random(n, dtype=np.float32))


class Literal:
    """Section 4 of the paper, one sample and one eigen-direction at a time."""

    def __init__(self, pool: gw.Signals, validation: gw.Signals) -> None:
        z_pool, z_valid = (np.asarray(each.grad, dtype=np.float64) for each in (pool, validation))
        k = z_pool.shape[1]
        h = np.zeros((k, k))
        for z in z_valid:
            h += np.outer(z, z) / len(z_valid)
        values, vectors = np.linalg.eigh(h)
        pairs = sorted(zip(values, vectors.T, strict=True), key=lambda pair: -pair[0])
        held, stiff = 0.0, 0
        while held < 0.945 * sum(values):
            held, stiff = held + pairs[stiff][0], stiff + 1
        self.costs = np.zeros(len(z_pool))
        self.flat = np.zeros((len(z_pool), k - stiff))
        for i, z in enumerate(z_pool):
            for j, (value, vector) in enumerate(pairs):
                g = np.sqrt(k) * (z @ vector)
                if j < stiff:
                    self.costs[i] += value * g**2
                else:
                    self.flat[i, j - stiff] = g / np.sqrt(k)

    def value(self, weights: Any) -> float:
        total = sum(w * g for w, g in zip(weights, self.flat, strict=True))
        return float(np.sum(np.square(total)))

    def best_subset(self, count: int, tau: float) -> float:
        values = []
        for some in itertools.combinations(range(len(self.costs)), count):
            weights = np.isin(np.arange(len(self.costs)), some).astype(float)
            if weights @ self.costs <= tau:
                values.append(self.value(weights))
        return max(values)

    def best_weights(self, total: float, tau: float) -> float:
        """A convex function is largest at a corner: all on one sample, or on two that spend the budget."""
        values, n = [], len(self.costs)
        for i, j in itertools.product(range(n), repeat=2):
            low, high = self.costs[i], self.costs[j]
            if total * low > tau:
                continue
            share = (
                1.0 if low == high else min(1.0, (tau / total - low) / (high - low)) if high > low else 0.0
            )
            weights = np.zeros(n)
            weights[i] += total * (1 - share)
            weights[j] += total * share
            values.append(self.value(weights))
        return max(values)


CASES = [(seed, slack) for seed in range(8) for slack in (0.1, 0.6)]


def _case(seed: int, slack: float, count: int = 4) -> tuple[gw.Signals, gw.Signals, Literal, float]:
    pool, validation = gradients(10, seed), gradients(30, 100 + seed)
    literal = Literal(pool, validation)
    least, most = (np.sort(literal.costs)[part].sum() for part in (slice(count), slice(-count, None)))
    return pool, validation, literal, least + slack * (most - least)


@pytest.mark.filterwarnings("ignore:.*movement outside of the stiff")
@pytest.mark.parametrize(("seed", "slack"), CASES)
def test_direct_keeps_the_papers_bound_and_finds_its_best_subset(seed: int, slack: float) -> None:
    pool, validation, literal, tau = _case(seed, slack)
    found = gw.Direct.published(count=4, tau=tau).select(pool, validation=validation)
    assert literal.costs[found.indices].sum() <= tau * (1 + 1e-5)
    chosen = np.isin(np.arange(10), found.indices).astype(float)
    assert found.objective == pytest.approx(literal.value(chosen), rel=1e-4)
    best = literal.best_subset(4, tau)
    assert found.objective is not None
    assert 0.8 * best <= found.objective and best <= found.details["bound"] * (1 + 1e-6)
    assert found.details["tau"] == tau


@pytest.mark.parametrize(("seed", "slack"), CASES)
def test_direct_reweights_as_the_paper_states_it(seed: int, slack: float) -> None:
    pool, validation, literal, tau = _case(seed, slack)
    found = gw.Direct.published(count=4, tau=tau, variant="weights").select(pool, validation=validation)
    weights = np.zeros(10)
    assert found.weights is not None and len(found.indices) <= 2
    weights[found.indices] = found.weights
    assert weights.sum() == pytest.approx(4)
    assert weights @ literal.costs <= tau * (1 + 1e-5)
    assert found.objective == pytest.approx(literal.value(weights), rel=1e-4)
    best = literal.best_weights(4, tau)
    assert found.objective is not None
    assert 0.9 * best <= found.objective and best <= found.details["bound"] * (1 + 1e-6)


def test_a_largest_weight_spreads_them() -> None:
    pool, validation = gradients(60, 1), gradients(30, 2)
    settings: Any = {"count": 20, "tau": 1.0, "tau_relative": True, "variant": "weights"}
    for objective in ("paper", "curvature"):
        method = gw.Direct(objective=objective, largest_weight=2.5, normalise="none", **settings)
        found = method.select(pool, validation=validation)
        assert found.weights is not None and found.weights.max() <= 2.5 * (1 + 1e-9)
        assert found.weights.sum() == pytest.approx(20) and 8 <= len(found.indices) <= 9
        assert found.details["budget_used"] <= 1 + 1e-9
    in_loss = found.weighing("loss").weights
    assert in_loss is not None and in_loss.mean() == pytest.approx(1)


def test_rounding_at_random_keeps_the_count_and_the_probabilities() -> None:
    weights = np.array([1.0, 0.3, 0.0, 0.7, 1.0])
    rng = np.random.default_rng(0)
    drawn = np.zeros(5)
    for _ in range(4000):
        picks = rounded_at_random(weights, rng)
        assert len(picks) == 3
        drawn[picks] += 1
    assert drawn[[0, 2, 4]].tolist() == [4000, 0, 4000]
    assert abs(drawn[1] - 1200) < 5 * np.sqrt(4000 * 0.21)


@pytest.mark.filterwarnings("ignore:.*movement outside of the stiff")
def test_direct_rounded_at_random_differs_by_seed_in_one_sample_at_most() -> None:
    pool, validation, _, tau = _case(3, 0.3)
    method = gw.Direct.published(count=4, tau=tau, rounding="random", starts=1)
    picks = {tuple(sorted(method.select(pool, validation=validation, seed=s).indices)) for s in range(12)}
    assert len(picks) == 2
    assert len(set.union(*map(set, picks))) == 5


def test_what_contradicts_itself_is_refused() -> None:
    for settings in ({"largest_weight": 2.0}, {"variant": "weights", "rounding": "random"}):
        with pytest.raises(RecipeError, match="variant: weights"):
            gw.Direct(count=4, **settings)  # type: ignore[arg-type]


def test_the_preset_keeps_four_fifths() -> None:
    with pytest.warns(UserWarning):
        found = gw.Direct.published().select(gradients(50, 1), validation=gradients(3, 2))
    assert len(found.indices) == 40


# ---- its baselines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("easy", [0, 2])
def test_infobatch_keeps_all_above_the_mean_where_nobody_asked_for_fewer(easy: int) -> None:
    loss = np.array([0.01] * easy + [0.3] * (20 - easy), dtype=np.float32)
    found = gw.baselines.InfoBatch().select(gw.Signals(20, loss=loss, ok=np.arange(20) != 7))
    assert set(found.indices.tolist()) == set(range(easy, 20)) - {7}
    few = np.where(np.arange(20) < 15, 0.1, 0.9).astype(np.float32)
    assert len(gw.baselines.InfoBatch().select(gw.Signals(20, loss=few)).indices) == 16


def test_infobatch_prunes_below_the_mean_and_weighs_up_the_rest() -> None:
    loss = np.arange(10, dtype=np.float32)
    pool = gw.Signals(10, loss=loss)
    found = gw.baselines.InfoBatch(count=8).select(pool, seed=4)
    assert found.weights is not None
    order = np.argsort(found.indices)
    assert found.indices[order][3:].tolist() == [5, 6, 7, 8, 9]
    assert found.weights[order].tolist() == [1.25] * 3 + [1.0] * 5
    even = gw.baselines.InfoBatch(count=8, rescale=None).select(pool, seed=4)
    assert even.weights is not None and even.weights.sum() == pytest.approx(10)
    assert not np.array_equal(found.indices, gw.baselines.InfoBatch(count=8).select(pool, seed=5).indices)
    with pytest.raises(RecipeError, match="keep at least as many"):
        gw.baselines.InfoBatch(count=4).select(pool)


def test_perplexity_ranks_as_loss_does_and_gradient_norms_by_themselves() -> None:
    rng = np.random.default_rng(0)
    pool = gw.Signals(20, loss=rng.random(20, dtype=np.float32), grad_norm=rng.random(20, dtype=np.float32))
    by_perplexity = gw.baselines.PerplexityAnneal(count=6).select(pool)
    assert by_perplexity.indices.tolist() == gw.baselines.LossAnneal(count=6).select(pool).indices.tolist()
    by_norm = gw.baselines.GradNormAnneal(count=6).select(pool)
    assert by_norm.indices.tolist() == np.argsort(-np.asarray(pool.grad_norm))[:6].tolist()


# ---- D3 ----------------------------------------------------------------------------------------------------

RATE = 1e-4


class Micro:
    """Five micro-batches of three speeches on the story model, each loss and gradient by hand."""

    def __init__(self, model: torch.nn.Module, speeches: Any) -> None:
        self.model = model.eval()
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.rows = speeches.select(range(15))
        self.batches = [np.arange(3 * n, 3 * n + 3) for n in range(5)]
        self.probe = gw.Probe(model, torch.optim.AdamW(self.weights, lr=RATE), self.rows)

    def loss(self, samples: Any, model: Any = None) -> torch.Tensor:
        """The mean over all label tokens of some samples."""
        total, tokens = torch.zeros(()), 0
        for sample in samples:
            row = self.rows[int(sample)]
            ids, labels = (torch.tensor(row[name]) for name in ("input_ids", "labels"))
            logits = (model or self.model)(input_ids=ids[None]).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum")
            tokens += int((labels[1:] != -100).sum())
        return total / tokens

    def gradient(self, samples: Any, *, graph: bool = False) -> list[torch.Tensor]:
        return list(torch.autograd.grad(self.loss(samples), self.weights, create_graph=graph))


@pytest.fixture(scope="module")
def micro(_story_model: Any, speeches: Any) -> Micro:
    return Micro(copy.deepcopy(_story_model), speeches)


def products(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def test_d3_curvatures_are_those_of_hutchinsons_diagonal(micro: Micro) -> None:
    everything = np.arange(6)
    found = micro.probe.diagonal_curvatures(micro.batches[:2], everything, 2, np.random.default_rng(3))
    drawn = torch.Generator().manual_seed(int(np.random.default_rng(3).integers(2**63)))
    diagonal = [torch.zeros_like(p) for p in micro.weights]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for _ in range(2):
            v = [(torch.randint(2, p.shape, generator=drawn) * 2 - 1).float() for p in micro.weights]
            hv = torch.autograd.grad(products(micro.gradient(everything, graph=True), v), micro.weights)
            diagonal = [h + each * own / 2 for h, each, own in zip(diagonal, v, hv, strict=True)]
    squares = ([g**2 for g in micro.gradient(batch)] for batch in micro.batches[:2])
    expected = [float(products(diagonal, each)) for each in squares]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())


def measured(method: Any, micro: Micro) -> tuple[Any, list[int]]:
    """The graph of the five micro-batches, and their order."""
    units = method.units_of(np.arange(15), None, 3)
    rng = np.random.default_rng(0)
    graph = method.measure(micro.probe, units, edges="", rng=rng, probes=None)
    return graph, method.arrange(units, graph, np.zeros(0), rng, seed=0).order.tolist()


def test_the_printed_estimate_asks_for_lambda_descending(micro: Micro) -> None:
    """Algorithms 4 and 5 with a Gaussian sketch: the order costs nothing, so that no swap is accepted."""
    graph, order = measured(gw.D3.published(hessian_probes=1), micro)
    lambdas, gamma = graph.influence, 100 * RATE
    assert order == sorted(range(5), key=lambda unit: -lambdas[unit]) and order != list(range(5))
    flat = np.array([torch.cat([g.ravel() for g in micro.gradient(b)]).numpy() for b in micro.batches])
    sketched = flat @ np.random.default_rng(1).standard_normal((flat.shape[1], 50)) / np.sqrt(50)
    a = np.zeros((5, 5))
    for i, j in itertools.permutations(range(5), 2):
        a[i, j] = -gamma * sketched[j] @ sketched[i] + gamma**2 / 2 * lambdas[j]
    assert cost(a, order) <= 1e-9 * np.abs(a).max() < cost(a, order[::-1])
    assert all(cost(a, swapped) > cost(a, order) for swapped in swaps(order))


def cost(a: np.ndarray, order: list[int]) -> float:
    """Advantages max(0, S_ij), S = A^T - A, of pairs placed the other way."""
    s = a.T - a
    return sum(max(0.0, s[order[q], order[p]]) for p in range(len(order)) for q in range(p + 1, len(order)))


def swaps(order: list[int]) -> Any:
    for p, q in itertools.combinations(range(len(order)), 2):
        swapped = list(order)
        swapped[p], swapped[q] = swapped[q], swapped[p]
        yield swapped


@pytest.mark.parametrize("rule", ["trial", "lambda"])
def test_a_trial_that_diverges_decides_nothing(rule: Any) -> None:
    units = Units.of_batches(np.arange(8), 2)
    weight = np.random.default_rng(0).standard_normal((4, 4))
    weight[1] = np.nan
    graph = InfluenceGraph(units.names, weight, np.full((4, 4), np.nan), np.array([2.0, np.nan, 1, 3]), rule)
    rng = np.random.default_rng(0)
    arranged = gw.D3.published(rule=rule).arrange(units, graph, np.zeros(0), rng, seed=0)
    assert sorted(arranged.order.tolist()) == [0, 1, 2, 3]
    assert np.isfinite(arranged.details["advantage_lost"])


def test_d3_by_definition_tries_a_plain_step_on_each(micro: Micro) -> None:
    before = {name: each.clone() for name, each in micro.model.state_dict().items()}
    graph, order = measured(gw.D3.published(rule="trial"), micro)
    assert all(torch.equal(each, before[name]) for name, each in micro.model.state_dict().items())
    a = np.zeros((5, 5))
    for i, batch in enumerate(micro.batches):
        moved, gradient = copy.deepcopy(micro.model), micro.gradient(batch)
        with torch.no_grad():
            for parameter, g in zip(moved.parameters(), gradient, strict=True):
                parameter -= 100 * RATE * g
            for j, other in enumerate(micro.batches):
                a[i, j] = float(micro.loss(other, moved)) - float(micro.loss(other))
    np.testing.assert_allclose(-graph.weight, a, atol=2e-5)
    every = (cost(-graph.weight, list(each)) for each in itertools.permutations(range(5)))
    assert cost(-graph.weight, order) == pytest.approx(min(every), abs=1e-12)


def test_chunks_begin_again_with_the_annealing_phase(story_model: Any, arguments: Any, speeches: Any) -> None:
    """Which begins with step 6, in the middle of the second epoch."""
    trainer = gw.Trainer(
        story_model(),
        arguments("chunks", num_train_epochs=2, lr_scheduler_type="warmup_stable_decay"),
        train_dataset=speeches.select(range(20)),
        recipe=gw.Recipe(
            order=gw.D3.published(chunk=2, hessian_probes=1, hessian_samples=2),
            anneal=gw.baselines.RandomAnneal(last=0.4),
        ),
    )
    trainer.train()
    lines = (Path(trainer.args.output_dir) / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["step"] for event in events if event["event"] == "order"] == [0, 2, 4, 5, 6, 8]


def test_chunks_begin_again_with_each_epoch(story_model: Any, arguments: Any, speeches: Any) -> None:
    """Five batches an epoch in chunks of two: measured before steps 0, 2, 4 and 5, 7, 9."""
    trainer = gw.Trainer(
        story_model(),
        arguments("chunks", num_train_epochs=2, lr_scheduler_type="constant"),
        train_dataset=speeches.select(range(20)),
        recipe=gw.Recipe(order=gw.D3.published(chunk=2, hessian_probes=1, hessian_samples=2)),
    )
    trainer.train()
    assert trainer.session.plan is not None
    segments = trainer.session.plan.segments
    epochs = [np.concatenate([each.indices for each in segments if each.epoch == n]) for n in range(2)]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(20))] * 2
    lines = (Path(trainer.args.output_dir) / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["step"] for event in events if event["event"] == "order"] == [0, 2, 4, 5, 7, 9]
