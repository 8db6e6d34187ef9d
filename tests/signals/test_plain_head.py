"""The head's part in pieces: the numbers of autograd over all logits at once, and only where it may be."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradwise.data import Collator
from gradwise.signals import collect, plain_head
from gradwise.signals.head import Head, LabelPositions
from gradwise.signals.measure import Measurer
from gradwise.signals.plain_head import at_head
from tests.signals.zoo import MAKERS, make, samples

VOCABULARY, WIDTH = 31, 5
NO_LABEL = -100


def batch_of(seed: int, lengths: tuple[int, ...]) -> tuple[LabelPositions, Tensor]:
    """Labels with a prompt and padding at random, and hidden states for those that count."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((len(lengths), max(lengths) + 4), NO_LABEL)
    for row, length in enumerate(lengths):
        labels[row, 2 : 2 + length] = torch.randint(0, VOCABULARY, (length,), generator=generator)
    positions = LabelPositions.of(labels)
    hidden = torch.randn(len(positions.targets), WIDTH, generator=generator, dtype=torch.float64)
    return positions, hidden


def head_of(seed: int, *, bias: bool) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_losses_gradients_and_norms_are_autograds(
    seed: int, bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plain_head, "AT_ONCE", rows * VOCABULARY)
    positions, hidden = batch_of(seed, (3, 1, 7, 4))
    head = head_of(seed, bias=bias)
    found = at_head(head, hidden, positions, None, scale=3.0, gradient=True, norms=True)
    learning = hidden.clone().requires_grad_()
    losses = functional.cross_entropy(head(learning), positions.targets, reduction="none")
    own = [losses[positions.owner == sample].mean() for sample in range(4)]
    (exact,) = torch.autograd.grad(3.0 * torch.stack(own).sum(), learning, retain_graph=True)
    assert found.gradient_nh is not None and found.squares_B is not None
    assert torch.allclose(found.gradient_nh, exact, rtol=1e-12, atol=1e-14)
    for sample, loss in enumerate(own):
        (of_weight,) = torch.autograd.grad(loss, head.weight, retain_graph=True)
        assert float(found.losses_B[sample]) == pytest.approx(loss.item(), rel=1e-12)
        assert float(found.squares_B[sample]) == pytest.approx(float(of_weight.square().sum()), rel=1e-11)


def test_without_gradients_the_losses_are_the_same():
    positions, hidden = batch_of(0, (3, 5))
    head = head_of(0, bias=False)
    alone = at_head(head, hidden, positions, None)
    assert alone.gradient_nh is None and alone.squares_B is None
    assert torch.allclose(
        alone.losses_B, at_head(head, hidden, positions, None, gradient=True).losses_B, rtol=1e-12
    )


def test_a_target_of_no_probability_has_its_loss():
    """exp underflows from a difference of 104 on in float32."""
    positions = LabelPositions.of(torch.tensor([[NO_LABEL, 1]]))
    head = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
    found = at_head(head, torch.tensor([[500.0]]), positions, None, gradient=True)
    assert found.losses_B.tolist() == [1000.0]


def test_a_loss_that_is_not_finite_stays_with_its_sample():
    positions, hidden = batch_of(0, (3, 5))
    hidden[0] = torch.nan
    found = at_head(head_of(0, bias=False), hidden, positions, None, gradient=True, norms=True)
    assert found.squares_B is not None
    assert found.losses_B.isfinite().tolist() == found.squares_B.isfinite().tolist() == [False, True]


def returns_product(model: Any) -> bool:
    return Head(model).returns_product(Collator(0)(samples()[:1]))


class TestWhereItMayBe:
    @pytest.mark.parametrize("name", [name for name in MAKERS if name != "Gemma2"])
    def test_models_that_hand_on_their_heads_output(self, name: str):
        assert returns_product(make(name).eval())

    def test_a_soft_cap_is_none(self):
        assert not returns_product(make("Gemma2").eval())

    def test_a_hook_on_the_head_is_none(self):
        model = make("Llama").eval()
        handle = model.lm_head.register_forward_hook(lambda _, __, out: 2 * out)
        assert not returns_product(model)
        handle.remove()
        assert returns_product(model)

    def test_a_head_of_another_kind_is_none(self):
        class Scaled(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        model = make("Llama").eval()
        head = Scaled(16, model.config.vocab_size, bias=False)
        head.load_state_dict(model.lm_head.state_dict())
        model.set_output_embeddings(head)
        assert not returns_product(model)

    def test_a_forward_of_its_own_is_none(self):
        """accelerate hands layers over in this way, between host and device."""
        model = make("Llama").eval()
        model.lm_head.forward = lambda x: functional.linear(2 * x, model.lm_head.weight)
        assert not returns_product(model)

    @pytest.mark.parametrize(
        ("parameters", "pieces"), [("blocks", True), ("all", False), ("lm_head.weight", False)]
    )
    def test_where_the_heads_own_gradient_is_wanted_its_products_are_seen(
        self, parameters: str, pieces: bool, monkeypatch: pytest.MonkeyPatch
    ):
        runs = []
        for name in ("_head_in_pieces", "_head_at_once"):
            before = getattr(Measurer, name)

            def noted(self: Any, *args: Any, name: str = name, before: Any = before) -> Any:
                runs.append(name)
                return before(self, *args)

            monkeypatch.setattr(Measurer, name, noted)
        collect(make("Llama"), samples(), want="grad", parameters=parameters, grad_dim=8, progress=False)
        assert set(runs) == {"_head_in_pieces" if pieces else "_head_at_once"}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_pieces_as_at_once(dtype: torch.dtype, autocast: Any, monkeypatch: pytest.MonkeyPatch):
    want = ("loss", "embedding", "grad", "grad_norm", "head_norm")

    def measured() -> Any:
        return collect(make("Llama", dtype), samples(), want=want, autocast=autocast, progress=False)

    pieces = measured()
    monkeypatch.setattr(Head, "returns_product", lambda *_: False)
    at_once = measured()
    precise = dtype == torch.float32 and autocast is None
    for name in want:
        mine, theirs = (torch.as_tensor(getattr(each, name)) for each in (pieces, at_once))
        assert float((mine - theirs).norm() / theirs.norm()) < (1e-5 if precise else 2e-2), name
