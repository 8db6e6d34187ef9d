"""Embeddings after half of the blocks: where nothing else is wanted, the forward pass ends there."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from gradwise import SignalError
from gradwise.methods.cost_counts import Shape, per_sample
from gradwise.signals import Signals, collect
from gradwise.signals.measure import Measurer, middle_block
from gradwise.signals.request import SignalRequest
from gradwise.structure import block_list
from tests.signals.zoo import MAKERS, SIZES, left_padded, make, samples

POOL = samples(9)


def of_size(blocks: int, name: str = "Llama") -> Any:
    config = getattr(transformers, f"{name}Config")(**SIZES[name] | {"num_hidden_layers": blocks})
    torch.manual_seed(1)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def middle(model: Any, pool: Any = POOL, collate: Any = None, **options: Any) -> Any:
    want = options.pop("want", "middle_embedding")
    return collect(model, pool, collate, want=want, progress=False, **options)


def states_after(model: Any, sample: dict[str, Any], blocks: int) -> Tensor:
    """(T, h) hidden states of one sample after some blocks, as the model itself gives them."""
    with torch.no_grad():
        out = model.eval()(input_ids=torch.tensor([sample["input_ids"]]), output_hidden_states=True)
    return out.hidden_states[blocks][0]


def means(model: Any, blocks: int, pooling: str = "labels") -> np.ndarray:
    rows = []
    for sample in POOL:
        states = states_after(model, sample, blocks)
        counted = torch.tensor(sample["labels"]) != -100
        rows.append({"labels": states[counted], "last": states[-1:], "all": states}[pooling].mean(dim=0))
    return torch.stack(rows).float().numpy()


@pytest.mark.parametrize(("blocks", "passed"), [(2, 1), (3, 2), (4, 2), (6, 3), (7, 4)])
def test_half_of_the_blocks_rounded_up(blocks: int, passed: int) -> None:
    model = of_size(blocks)
    np.testing.assert_allclose(middle(model).middle_embedding, means(model, passed), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["labels", "last", "all"])
@pytest.mark.parametrize("collate", [None, left_padded])
def test_pooling(pooling: str, collate: Any) -> None:
    model = make("Llama")
    signals = middle(model, collate=collate, pooling=pooling)
    np.testing.assert_allclose(signals.middle_embedding, means(model, 1, pooling), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(MAKERS))
def test_of_every_architecture(name: str) -> None:
    model = make(name)
    np.testing.assert_allclose(middle(model).middle_embedding, means(model, 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "want", [("middle_embedding", "loss"), ("middle_embedding", "embedding"), ("middle_embedding", "grad")]
)
@pytest.mark.parametrize("layer", [None, 1])
def test_the_same_beside_others(want: Any, layer: int | None) -> None:
    model = of_size(4)
    both, alone = middle(model, want=want, layer=layer, grad_dim=8), middle(model)
    np.testing.assert_allclose(both.middle_embedding, alone.middle_embedding, rtol=1e-4, atol=1e-6)
    if both.embedding is not None:
        one = middle(model, want="embedding", layer=layer)
        np.testing.assert_allclose(both.embedding, one.embedding, rtol=1e-4, atol=1e-6)
        assert not np.allclose(both.embedding, both.middle_embedding) or layer == 1


def test_no_later_block_runs_for_it() -> None:
    model = of_size(6)
    ran: list[int] = []
    for number, block in enumerate(block_list(model)[1]):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    model.lm_head.register_forward_hook(lambda *_: ran.append(6))
    signals = middle(model)
    assert signals.loss is None
    counts = [ran.count(number) for number in range(7)]
    assert counts[0] == counts[1] == counts[2] > 1
    assert counts[3:] == [0] * 4


def test_the_model_is_as_before() -> None:
    model = of_size(3)

    def hooks() -> list[int]:
        return [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()]

    there = hooks()
    ids = torch.tensor([POOL[0]["input_ids"]])
    before = model.eval()(input_ids=ids).logits
    model.train()
    middle(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert hooks() == there
    assert torch.equal(model.eval()(input_ids=ids).logits, before)
    assert torch.is_grad_enabled()


def test_a_failing_block_is_not_taken_for_the_end() -> None:
    model = of_size(6)

    def fail(*_: Any) -> None:
        raise RuntimeError("a block that fails")

    block_list(model)[1][1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a block that fails"):
        middle(model)


class Wrapped(nn.Module):
    """A block that hands on something else than hidden states."""

    def __init__(
        self, block: nn.Module, change: Callable[[Tensor], Any], back: Callable[[Any], Tensor]
    ) -> None:
        super().__init__()
        self.block, self.change, self.back = block, change, back

    def forward(self, state: Any, **options: Any) -> Any:
        out = self.block(self.back(state), **options)
        return self.change(out[0] if isinstance(out, tuple) else out)


def test_without_a_list_of_blocks_it_is_the_last_hidden_state() -> None:
    model = of_size(1)
    assert middle_block(model) is None
    np.testing.assert_allclose(
        middle(model).middle_embedding, middle(model, want="embedding").embedding, rtol=1e-6
    )


def test_of_blocks_that_hand_on_something_else_it_is_the_last_hidden_state() -> None:
    """As Gemma 3n's do, several states for each token."""
    model = of_size(4)
    last = middle(model, want="embedding").embedding
    layers = model.model.layers
    for number, block in enumerate(layers):
        first, end = number == 0, number == len(layers) - 1
        layers[number] = Wrapped(
            block,
            (lambda state: state) if end else (lambda state: torch.stack([state, state])),
            (lambda state: state) if first else (lambda states: states[0]),
        )
    np.testing.assert_allclose(middle(model).middle_embedding, last, rtol=1e-4, atol=1e-6)


def test_a_model_that_adds_tokens_is_refused() -> None:
    model = of_size(2)
    model.model.layers[0].register_forward_hook(lambda *of: torch.cat([of[2], of[2][:, :1]], dim=1))
    with pytest.raises(SignalError, match="a model that adds or drops tokens cannot be measured"):
        Measurer(model, SignalRequest(("middle_embedding",)), None)(left_padded(POOL))


def test_a_sample_whose_middle_state_is_not_finite_is_set_aside() -> None:
    model = of_size(3)
    token = POOL[2]["input_ids"][-1]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.nan
    signals = middle(model)
    has = np.array([token in sample["input_ids"] for sample in POOL])
    assert signals.ok is not None and (signals.ok == ~has).all()
    assert set(signals.problems) == {"middle_embedding not finite"}


def test_later_blocks_do_not_matter() -> None:
    model = of_size(6)
    before = middle(model)
    with torch.no_grad():
        for block in block_list(model)[1][3:]:
            for parameter in block.parameters():
                parameter.fill_(torch.nan)
    after = middle(model)
    assert after.ok is not None and after.ok.all()
    np.testing.assert_array_equal(before.middle_embedding, after.middle_embedding)


def test_a_store_of_the_one_is_none_of_the_other(tmp_path: Any) -> None:
    model = of_size(3)
    middle(model, store=tmp_path / "store")
    again = middle(model, store=tmp_path / "store")
    stored: Any = Signals.open(tmp_path / "store")
    np.testing.assert_array_equal(again.middle_embedding, stored.middle_embedding)
    with pytest.raises(SignalError):
        middle(model, store=tmp_path / "store", want="embedding")


def test_counted_as_half_of_the_blocks_alone() -> None:
    shape = Shape(head=0.25)
    assert per_sample({"middle_embedding"}, shape) == pytest.approx(0.375)
    assert per_sample({"middle_embedding", "loss"}, shape) == per_sample({"loss"}, shape)
