"""The engine against one sample at a time by autograd, on every architecture; and that nothing about batches
matters."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradwise.data import Collator
from gradwise.signals import Signals, collect, plain_head
from gradwise.signals.head import Head
from gradwise.signals.measure import Measured, Measurer
from gradwise.signals.model_state import prepared
from gradwise.signals.request import Quantity, SignalRequest
from gradwise.signals.scope import resolve
from gradwise.signals.scoring_run import ScoringRun
from tests.signals.oracle import DoubleThroughout, Truth, all_names, linear_names, truth
from tests.signals.zoo import MAKERS, VOCABULARY, left_padded, make, samples

POOL = samples()
GRADIENTS: tuple[Quantity, ...] = ("loss", "embedding", "grad_norm", "grad")

pytestmark = pytest.mark.filterwarnings("error:.*one sample at a time:UserWarning")  # nothing falls back


@pytest.fixture(autouse=True)
def several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's part of a batch is computed in pieces of seven rows."""
    monkeypatch.setattr(plain_head, "AT_ONCE", 7 * VOCABULARY)


@pytest.fixture(autouse=True)
def double_throughout() -> Iterator[None]:
    with DoubleThroughout():
        yield


def measured(
    model: Any,
    parameters: str | Sequence[str],
    rows: list[dict[str, Any]],
    collate: Callable[..., Any] | None = None,
    want: Sequence[Quantity] = GRADIENTS,
    **options: Any,
) -> Measured:
    """All samples in one batch, in the model's own precision, by the engine alone."""
    wanted = SignalRequest.of(want, **{"grad_dim": None} | options)
    scope = resolve(model, parameters)
    with prepared(model) as bare:
        one = ScoringRun(bare, rows, collate, wanted, scope, None, 10**6)
        plain = Head(bare).returns_product(one.collate(rows[:1]))
        return Measurer(bare, wanted, one.gradient_request, plain_head=plain)(one.collate(rows))


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def truths() -> Callable[[str], list[Truth]]:
    known: dict[str, list[Truth]] = {}

    def of(name: str) -> list[Truth]:
        if name not in known:
            model = make(name, torch.float64)
            model.config._experts_implementation = "eager"
            known[name] = [truth(model, sample, all_names(model)) for sample in POOL]
        return known[name]

    return of


def restricted(found: Truth, names: Sequence[str]) -> Tensor:
    return torch.cat([found.gradients[name].flatten() for name in names])


@pytest.mark.parametrize("name", MAKERS)
class TestEveryArchitecture:
    @pytest.mark.parametrize("scope", ["blocks", "all"])
    def test_inside_the_engine(self, name: str, scope: str, truths: Callable[[str], list[Truth]]):
        model = make(name, torch.float64)
        names = linear_names(model) if scope == "blocks" else all_names(model)
        found = measured(model, scope, POOL).values
        for row, exact in enumerate(truths(name)):
            gradient = restricted(exact, names)
            assert gradient.norm() > 1e-3
            assert abs(found["loss"][row] / exact.loss - 1) < 1e-9
            assert abs(found["grad_norm"][row] / gradient.norm() - 1) < 1e-9
            assert relative(found["grad"][row], gradient) < 1e-9

    def test_every_parameter_on_its_own(self, name: str, truths: Callable[[str], list[Truth]]):
        model = make(name, torch.float64)
        wanted = SignalRequest.of(("loss", "grad_norm"))
        scope = resolve(model, "all")
        with prepared(model) as bare:
            one = ScoringRun(bare, POOL, None, wanted, scope, None, 10**6)
            found = Measurer(bare, wanted, one.gradient_request)(one.collate(POOL), apart=True)
        for row, exact in enumerate(truths(name)):
            for parameter, gradient in exact.gradients.items():
                square = found.by_parameter.get(parameter, torch.zeros(len(POOL)))[row]
                assert float(square) == pytest.approx(float(gradient.square().sum()), rel=1e-9, abs=1e-14)

    def test_as_stored(self, name: str, truths: Callable[[str], list[Truth]]):
        model = make(name, torch.float64)
        names = linear_names(model)
        signals = collect(
            model, POOL, want=GRADIENTS, grad_dim=None, batch_tokens=50, parameters="blocks", progress=False
        )
        assert signals.grad is not None
        assert signals.grad.dtype == np.float32
        for row, exact in enumerate(truths(name)):
            gradient = restricted(exact, names).numpy()
            assert signals.loss[row] == pytest.approx(float(exact.loss), rel=1e-6)  # type: ignore[index]
            assert signals.grad_norm[row] == pytest.approx(np.linalg.norm(gradient), rel=1e-6)  # type: ignore[index]
            assert np.linalg.norm(signals.grad[row] - gradient) < 1e-6 * np.linalg.norm(gradient)

    @pytest.mark.parametrize("scope", ["blocks", "all"])  # in pieces where the head may be, and at once
    def test_head_norm(self, name: str, scope: str):
        model = make(name, torch.float64)
        model.config._experts_implementation = "eager"
        head = model.get_output_embeddings()
        found = measured(model, scope, POOL, want=("head_norm",)).values["head_norm"]
        for row, sample in enumerate(POOL):
            exact = _head_gradient(model, head, sample)
            assert abs(found[row] / exact.norm() - 1) < 1e-9


def _head_gradient(model: Any, head: Any, sample: dict[str, Any]) -> Tensor:
    """Gradient of the head's multiplication alone, also where the head shares the embeddings' weight."""
    own = head.weight.detach().clone().requires_grad_()
    model.eval()

    def separately(module: Any, args: Any, out: Any) -> Tensor:
        return torch.nn.functional.linear(args[0], own, module.bias)

    handle = head.register_forward_hook(separately)
    try:
        labels = torch.tensor(sample["labels"])
        logits = model(input_ids=torch.tensor([sample["input_ids"]])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels[1:])
        return torch.autograd.grad(loss, own)[0]
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ("*.mlp.*.weight", lambda name: ".mlp." in name and name.endswith("weight")),
        (["*norm.weight", "*.bias"], lambda name: name.endswith(("norm.weight", ".bias"))),
        ("*embed_tokens*", lambda name: "embed_tokens" in name),
        ("lm_head.weight", lambda name: name == "lm_head.weight"),
    ],
)
def test_patterns(patterns: Any, chosen: Callable[[str], bool], truths: Callable[[str], list[Truth]]):
    model = make("Llama", torch.float64)
    names = [name for name, _ in model.named_parameters() if chosen(name)]
    assert names
    found = measured(model, patterns, POOL).values
    for row, exact in enumerate(truths("Llama")):
        gradient = restricted(exact, names)
        assert relative(found["grad"][row], gradient) < 1e-9
        assert abs(found["grad_norm"][row] / gradient.norm() - 1) < 1e-9


def test_a_tied_weight_is_found_by_either_name():
    model = make("Llama, tied")
    assert list(resolve(model, "lm_head.weight").parameters) == ["model.embed_tokens.weight"]


def test_without_gradient_of_an_embedding_that_is_padding():
    """torch gives the padding row of a table no gradient, also where the token stands in a sample."""
    model = make("Phi3", torch.float64)
    assert model.get_input_embeddings().padding_idx == 0
    sample = {"input_ids": [5, 0, 7, 0, 9], "labels": [5, 0, 7, 0, 9]}
    exact = truth(model, sample, ["model.embed_tokens.weight"]).flat
    found = measured(model, "*embed_tokens*", [sample, POOL[0]]).values
    assert relative(found["grad"][0], exact) < 1e-9
    assert abs(found["grad_norm"][0] / exact.norm() - 1) < 1e-9


class TestEmbeddings:
    """Means of hidden states, against the states of the model itself."""

    @pytest.mark.parametrize("pooling", ["labels", "last", "all"])
    @pytest.mark.parametrize("layer", [None, 0, -1])
    @pytest.mark.parametrize("collate", [None, left_padded])
    def test_pooling_and_layer(self, pooling: str, layer: int | None, collate: Any):
        model = make("Llama", torch.float64)
        found = measured(model, "all", POOL, collate, want=("embedding",), pooling=pooling, layer=layer)
        for row, sample in enumerate(POOL):
            states = self._states(model, sample, layer)
            counted = torch.tensor(sample["labels"]) != -100
            expected = {"labels": states[counted], "last": states[-1:], "all": states}[pooling].mean(dim=0)
            assert relative(found.values["embedding"][row], expected) < 1e-9

    def _states(self, model: Any, sample: dict[str, Any], layer: int | None) -> Tensor:
        """The last ones as the head sees them, or those after a block, caught with a hook."""
        caught: list[Tensor] = []
        module = model.model.norm if layer is None else model.model.layers[layer]
        handle = module.register_forward_hook(
            lambda *of: caught.append(of[2][0] if isinstance(of[2], tuple) else of[2])
        )
        with torch.no_grad():
            model.eval()(input_ids=torch.tensor([sample["input_ids"]]))
        handle.remove()
        return caught[0].view(len(sample["input_ids"]), -1)

    def test_a_layer_that_is_not_there(self):
        with pytest.raises(Exception, match="layer is 2, but the model has 2 blocks"):
            measured(make("Llama"), "all", POOL, want=("embedding",), layer=2)


@pytest.fixture(scope="module", params=["Llama", "GPT2", "Gemma2", "Mixtral", "GPTNeoX"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def together(name: str) -> dict[str, Tensor]:
    with DoubleThroughout():
        return measured(make(name, torch.float64), "all", POOL, grad_dim=64).values


class TestNothingAboutBatchesMatters:
    """Float64 inside the engine: whatever changes stays at rounding, 1e-12."""

    def _same(self, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        assert found.keys() == expected.keys()
        for quantity, values in found.items():
            torch.testing.assert_close(values, expected[quantity], rtol=1e-10, atol=1e-12)

    def test_other_samples_in_the_batch(self, name: str, together: dict[str, Tensor]):
        model = make(name, torch.float64)
        for row, sample in enumerate(POOL):
            alone = measured(model, "all", [sample], grad_dim=64).values
            self._same(alone, {n: values[row : row + 1] for n, values in together.items()})

    def test_order(self, name: str, together: dict[str, Tensor]):
        backwards = measured(make(name, torch.float64), "all", POOL[::-1], grad_dim=64).values
        self._same(backwards, {n: values.flip(0) for n, values in together.items()})

    def test_padding_on_the_left(self, name: str, together: dict[str, Tensor]):
        self._same(
            measured(make(name, torch.float64), "all", POOL, left_padded, grad_dim=64).values, together
        )

    def test_more_padding(self, name: str, together: dict[str, Tensor]):
        wider = Collator(0, pad_to_multiple_of=32)
        self._same(measured(make(name, torch.float64), "all", POOL, wider, grad_dim=64).values, together)

    def test_as_many_samples_as_tokens(self, name: str, together: dict[str, Tensor]):
        """B = T: if rows were distinguished by their sizes, they would be mixed up here."""
        rows = [dict(sample) for sample in samples(8, longest=8, shortest=8)]
        model = make(name, torch.float64)
        found = measured(model, "all", rows, grad_dim=64).values
        for row, sample in enumerate(rows):
            alone = measured(model, "all", [sample], grad_dim=64).values
            self._same(alone, {n: values[row : row + 1] for n, values in found.items()})

    def test_every_token_counts(self, name: str):
        """No prompts and no padding: the head's rows are then a mere reshape."""
        rows = [{"input_ids": s["input_ids"], "labels": s["input_ids"]} for s in samples(4, 9, shortest=9)]
        model = make(name, torch.float64)
        model.config._experts_implementation = "eager"
        found = measured(model, "all", rows, grad_dim=64).values
        for row, sample in enumerate(rows):
            alone = measured(model, "all", [sample], grad_dim=64).values
            self._same(alone, {n: values[row : row + 1] for n, values in found.items()})
            assert abs(found["loss"][row] / truth(model, sample, all_names(model)[:1]).loss - 1) < 1e-9

    def test_two_tokens_each(self, name: str, together: dict[str, Tensor]):
        rows = [{"input_ids": [i, i + 9], "labels": [i, i + 9]} for i in range(3, 8)]
        model = make(name, torch.float64)
        found = measured(model, "all", rows, grad_dim=64).values
        alone = measured(model, "all", rows[2:3], grad_dim=64).values
        self._same(alone, {n: values[2:3] for n, values in found.items()})


@pytest.mark.parametrize("batch_tokens", [1, 20, 64, 10**6])
def test_batch_tokens_change_nothing_but_rounding(batch_tokens: int):
    model, pool = make("Llama"), samples(30)
    one, other = (
        collect(model, pool, want=(*GRADIENTS, "head_norm"), grad_dim=64, batch_tokens=size, progress=False)
        for size in (100, batch_tokens)
    )
    assert_close(one, other, 1e-5)


def assert_close(one: Signals, other: Signals, tolerance: float) -> None:
    for name in (*GRADIENTS, "head_norm"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert np.abs(mine - theirs).max() <= tolerance * np.abs(mine).max(), name
