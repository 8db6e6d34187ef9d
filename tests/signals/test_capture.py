"""Uses of weights, seen function by function: what is traced to a parameter, whose rows they are, and that
the fold of an input is only ever used for that input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gradwise.signals.capture import Capture
from gradwise.signals.rows import SampleRows
from gradwise.signals.scope import Matrix, MatrixView, Scope, Tracer
from gradwise.signals.sums import GradientRequest, GradientSums, Projector

B, T, D = 3, 4, 6
Use = Callable[[Tensor, dict[str, nn.Parameter]], Tensor]


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "m.a.weight": (D, D),
        "m.b.weight": (D, D),
        "m.c.weight": (5, D),
        "m.norm.weight": (D,),
        "m.a.bias": (D,),
    }
    return {
        name: nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=generator), requires_grad=False)
        for name, shape in shapes.items()
    }


def inputs() -> Tensor:
    return torch.randn(B, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def captured(use: Use, projected: bool = False) -> GradientSums:
    """Every sample's loss is the sum of sines of what `use` gives for it. Where projections alone are wanted,
    inputs of products are not kept."""
    scope = Scope(parameters())
    whole = not projected
    asked = GradientRequest(scope, Projector(64, 0, side=4) if projected else None, norms=whole, whole=whole)
    sums = GradientSums(asked, B, torch.device("cpu"), torch.float64)
    with Capture(scope, sums, B) as capture:
        out = use(inputs(), scope.parameters)
    torch.autograd.grad(out.sin().sum(), [capture.anchor], allow_unused=True)
    sums.finish()
    return sums


def expected(use: Use) -> Tensor:
    """(B, P) by autograd, one sample at a time."""
    rows = []
    for i in range(B):
        learning = {name: p.detach().clone().requires_grad_() for name, p in parameters().items()}
        out = use(inputs()[i : i + 1], learning)  # type: ignore[arg-type]
        found = torch.autograd.grad(out.sin().sum(), list(learning.values()), allow_unused=True)
        pairs = zip(found, learning.values(), strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    return torch.stack(rows)


USES: dict[str, Use] = {
    "linear": lambda x, p: functional.linear(x, p["m.a.weight"], p["m.a.bias"]),
    "linear by keyword": lambda x, p: functional.linear(input=x, weight=p["m.a.weight"]),
    "of flat rows": lambda x, p: functional.linear(x.flatten(0, 1), p["m.a.weight"]),
    "of heads": lambda x, p: functional.linear(x[:, :, None].expand(-1, -1, 2, -1), p["m.a.weight"]),
    "of an input not contiguous": lambda x, p: functional.linear(x.mT.contiguous().mT, p["m.a.weight"]),
    "of an expanded input": lambda x, p: functional.linear(x[:, :1].expand(-1, T, -1), p["m.c.weight"]),
    "matmul": lambda x, p: x @ p["m.a.weight"],
    "matmul, transposed": lambda x, p: x @ p["m.c.weight"].T,
    "matmul by keyword": lambda x, p: torch.matmul(input=x, other=p["m.c.weight"].t()),
    "matmul on the left": lambda x, p: p["m.c.weight"] @ x.mT,
    "matmul on the left, transposed": lambda x, p: torch.matmul(p["m.a.weight"].mT, x.mT),
    "mm": lambda x, p: torch.mm(x.flatten(0, 1), p["m.c.weight"].mT),
    "mm by keyword": lambda x, p: torch.mm(input=x.flatten(0, 1), mat2=p["m.a.weight"]),
    "addmm": lambda x, p: torch.addmm(p["m.a.bias"], x.flatten(0, 1), p["m.b.weight"]),
    "addmm, method": lambda x, p: p["m.a.bias"].addmm(x.flatten(0, 1), p["m.b.weight"]),
    "layer norm": lambda x, p: functional.layer_norm(x, (D,), p["m.norm.weight"], p["m.a.bias"], 1e-3),
    "layer norm by keyword": lambda x, p: functional.layer_norm(
        x, normalized_shape=(D,), weight=p["m.norm.weight"], eps=1e-2
    ),
    "layer norm, only an offset": lambda x, p: functional.layer_norm(x, (D,), bias=p["m.a.bias"]),
    "rms norm": lambda x, p: functional.rms_norm(x, (D,), p["m.norm.weight"], 1e-3),
    "rms norm, its own eps": lambda x, p: functional.rms_norm(x, [D], weight=p["m.norm.weight"]),
    "gain": lambda x, p: p["m.norm.weight"] * x,
    "gain on the right": lambda x, p: x * p["m.norm.weight"],
    "gain and one": lambda x, p: x * (1.0 + p["m.norm.weight"]),
    "gain, cast": lambda x, p: x * p["m.norm.weight"].to(torch.float32).double(),
    "weight, cast": lambda x, p: functional.linear(x, p["m.a.weight"].float().to(torch.float64)),
    "twice": lambda x, p: functional.linear(functional.linear(x, p["m.a.weight"]).cos(), p["m.a.weight"]),
    "gain twice": lambda x, p: (x * p["m.norm.weight"]).cos() * p["m.norm.weight"],
    "two products of one input": lambda x, p: (
        functional.linear(x, p["m.a.weight"]) * functional.linear(x, p["m.b.weight"])
    ),
    "one use without a gradient": lambda x, p: (
        functional.linear(x, p["m.a.weight"]) + functional.linear(2 * x, p["m.a.weight"]).detach()
    ),
    "an operation in place afterwards": lambda x, p: functional.linear(x, p["m.a.weight"]).tanh_(),
    "nothing of the scope": lambda x, p: functional.linear(
        functional.linear(x, torch.ones(D, D, dtype=x.dtype)), p["m.a.weight"]
    ),
}


@pytest.mark.parametrize("name", USES)
class TestUses:
    def test_whole_gradients_and_norms(self, name: str):
        sums, exact = captured(USES[name]), expected(USES[name])
        tolerance = 1e-6 if "cast" in name else 1e-11
        assert sums.whole is not None
        assert sums.squares is not None
        assert exact.norm() > 0.1
        torch.testing.assert_close(sums.whole, exact, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(sums.squares, exact.square().sum(dim=1), rtol=tolerance, atol=tolerance)
        assert not sums.lost

    def test_projections(self, name: str):
        """Folds of inputs are shared between products here."""
        sums, exact = captured(USES[name], projected=True), expected(USES[name])
        projector, start = Projector(64, 0, side=4), 0
        total = torch.zeros(B, 64, dtype=torch.float64)
        for weight, p in parameters().items():
            part = exact[:, start : start + p.numel()]
            start += p.numel()
            if p.ndim == 1:
                total += projector.vector(weight, len(p))(part)
            else:
                total += projector.matrix(Matrix(weight, None, *p.shape))(part.view(B, *p.shape))
        assert sums.projected is not None
        tolerance = 1e-6 if "cast" in name else 1e-11
        torch.testing.assert_close(sums.projected, total, rtol=tolerance, atol=tolerance)


class TestTheSharedFold:
    """q, k and v multiply one input, which is folded once; each of these inputs looks like the one before."""

    def _projected(self, second: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """With the engine, and for the second weight alone, where nothing can be left from a first."""

        def both(x: Tensor, p: dict[str, nn.Parameter]) -> Tensor:
            x = x.clone()
            first = functional.linear(x, p["m.a.weight"]).detach()
            return functional.linear(second(x), p["m.b.weight"]) + 0 * first.sum()

        def alone(x: Tensor, p: dict[str, nn.Parameter]) -> Tensor:
            return functional.linear(second(x.clone()), p["m.b.weight"])

        one, other = captured(both, projected=True).projected, captured(alone, projected=True).projected
        assert one is not None
        assert other is not None
        return one, other

    @pytest.mark.parametrize(
        "second",
        [
            lambda x: x,
            lambda x: x.mul_(1.5),
            lambda x: x.view(T, B, D).transpose(0, 1),  # the same address and shape, other strides
            lambda x: x.flip(0),
            lambda x: x.flatten().as_strided((B, T, D), (D, D, 1)),
            lambda x: x[:, :2],
        ],
        ids=["the same", "changed in place", "other strides", "a copy", "overlapping", "shorter"],
    )
    def test_is_of_its_own_input(self, second: Callable[[Tensor], Tensor]):
        one, other = self._projected(second)
        torch.testing.assert_close(one, other)

    def test_inputs_that_are_freed(self):
        """The allocator gives the next input the address of the one before."""

        def many(x: Tensor, p: dict[str, nn.Parameter]) -> Tensor:
            total = torch.zeros(B, T, D, dtype=x.dtype)
            for factor in range(1, 20):
                total = total + functional.linear(x * factor, p["m.a.weight"])
            return total

        one = captured(many, projected=True).projected
        two = captured(lambda x, p: functional.linear(190 * x, p["m.a.weight"]), projected=True).projected
        assert one is not None
        torch.testing.assert_close(one, two)

    def test_one_fold_for_several_weights(self, monkeypatch: pytest.MonkeyPatch):
        """What the sharing is for."""
        folds = []
        monkeypatch.setattr(
            "gradwise.numerics.projection.Fold.__call__",
            lambda self, x: folds.append(x.shape) or x[..., : self.size],
        )

        def three(x: Tensor, p: dict[str, nn.Parameter]) -> Tensor:
            outs = [functional.linear(x, p[f"m.{name}.weight"]) for name in "abc"]
            return torch.cat(outs, dim=-1)

        captured(three, projected=True)
        assert len(folds) == 1 + 3


def lost(use: Use) -> set[str]:
    return captured(use).lost


def test_a_table_looked_up_by_columns_is_lost():
    """As adapters of embeddings have it."""
    ids = torch.tensor([[0, 1, 2, 3], [4, 4, 0, 1], [2, 2, 2, 0]])
    assert lost(lambda x, p: functional.embedding(ids, p["m.c.weight"].T)) == {"m.c.weight"}


class TestLost:
    """Uses whose rows cannot be assigned to samples are noted, if a gradient comes back to them."""

    @pytest.mark.parametrize(
        "use",
        [
            lambda x, p: functional.linear(x.transpose(0, 1), p["m.a.weight"]),
            lambda x, p: functional.linear(x.flatten(0, 1)[:-1], p["m.a.weight"]),
            lambda x, p: functional.linear(x.unflatten(1, (2, -1)).flatten(0, 1), p["m.a.weight"]),
            lambda x, p: functional.linear(x.sum(dim=(0, 1)), p["m.a.weight"]),
        ],
    )
    def test_noted(self, use: Use):
        assert lost(use) == {"m.a.weight"}

    def test_not_where_no_gradient_comes(self):
        def use(x: Tensor, p: dict[str, nn.Parameter]) -> Tensor:
            table = functional.linear(x.transpose(0, 1), p["m.a.weight"]).detach()
            return functional.linear(x, p["m.b.weight"]) * table.sum()

        assert not lost(use)

    def test_not_without_gradients(self):
        def use(x: Tensor, p: dict[str, nn.Parameter]) -> Tensor:
            with torch.no_grad():
                inner = functional.linear(x, p["m.a.weight"])
            return functional.linear(inner, p["m.b.weight"])

        sums, exact = captured(use), None
        exact = expected(
            lambda x, p: functional.linear(functional.linear(x, p["m.a.weight"].detach()), p["m.b.weight"])
        )
        assert sums.whole is not None
        torch.testing.assert_close(sums.whole, exact)
        assert not sums.lost


class TestTracer:
    @pytest.fixture
    def weight(self) -> nn.Parameter:
        return nn.Parameter(torch.zeros(4, 6))

    @pytest.fixture
    def stack(self) -> nn.Parameter:
        return nn.Parameter(torch.zeros(3, 4, 4))

    def test_weights_and_views(self, weight: nn.Parameter, stack: nn.Parameter):
        tracer, whole = Tracer(Scope({"w": weight, "s": stack})), Matrix("w", None, 4, 6)
        assert tracer.matrix(weight) == MatrixView(whole, False)
        assert tracer.matrix(weight.T) == tracer.matrix(weight.mT) == MatrixView(whole, True)
        assert tracer.matrix(weight.T.T) == tracer.matrix(weight.view(4, 6)) == MatrixView(whole, False)
        for number in range(3):
            assert tracer.matrix(stack[number]) == MatrixView(Matrix("s", number, 4, 4), False)
            assert tracer.matrix(stack[torch.tensor(number)]) == MatrixView(Matrix("s", number, 4, 4), False)
            assert tracer.matrix(stack[number].T) == MatrixView(Matrix("s", number, 4, 4), True)

    def test_copies_that_stand_for_it(self, weight: nn.Parameter):
        tracer = Tracer(Scope({"w": weight}))
        copy = weight.double()
        assert tracer.matrix(copy) is None
        tracer.stands_for(copy, weight)
        assert tracer.matrix(copy) == MatrixView(Matrix("w", None, 4, 6), False)
        assert tracer.matrix(copy.T) == MatrixView(Matrix("w", None, 4, 6), True)

    def test_what_it_is_not(self, weight: nn.Parameter, stack: nn.Parameter):
        bias = nn.Parameter(torch.zeros(6))
        tracer = Tracer(Scope({"w": weight, "s": stack, "b": bias}))
        others = [
            weight.detach().clone(), weight[:2], weight[:, :3], weight[1:], weight.view(6, 4),
            weight.view(2, 12), stack[:, 0], stack[:, :, 0], stack.view(12, 4), stack[0][:2],
            bias, bias[None], bias.view(2, 3), 1.0, None, torch.zeros(4, 6),
        ]  # fmt: skip
        assert [tracer.matrix(other) for other in others] == [None] * len(others)

    def test_one_row_or_one_column(self):
        for shape in ((1, 5), (5, 1), (1, 1)):
            weight = nn.Parameter(torch.zeros(*shape))
            found = Tracer(Scope({"w": weight})).matrix(weight.T)
            assert found is not None
            assert found.matrix == Matrix("w", None, *shape)
            assert found.transposed or shape == (1, 1)


owners = st.lists(st.integers(0, 3), min_size=1, max_size=20)


class TestRows:
    @given(owners)
    def test_owned_rows_against_a_loop(self, owner: list[int]):
        rows = SampleRows(4, torch.tensor(owner))
        values = torch.randn(len(owner), 3)
        for sample in range(4):
            own = values[torch.tensor(owner) == sample]
            grouped = rows.grouped(values[None])[sample]
            assert torch.equal(grouped[: len(own)], own)
            assert not grouped[len(own) :].any()
            torch.testing.assert_close(rows.summed(values)[sample], own.sum(dim=0))

    @given(st.integers(1, 4), st.integers(1, 4))
    def test_equal_stretches(self, samples: int, length: int):
        values = torch.randn(samples, length, 5)
        for shape in (values, values.flatten(0, 1), values[:, :, None]):
            assert torch.equal(SampleRows(samples).grouped(shape), values)
            torch.testing.assert_close(SampleRows(samples).summed(shape), values.sum(dim=1))


def test_a_hook_that_makes_states_require_a_gradient_changes_nothing():
    def use(x: Tensor, p: Any) -> Tensor:
        return functional.linear((x * 1).requires_grad_(), p["m.a.weight"])

    sums, exact = captured(use), expected(lambda x, p: functional.linear(x, p["m.a.weight"]))
    assert sums.whole is not None
    torch.testing.assert_close(sums.whole, exact)
