"""What cannot be captured is found before the scoring run, reported, and still measured exactly."""

import re
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from gradwise import SignalError
from gradwise.signals import collect
from gradwise.signals.scope import resolve
from gradwise.signals.sums import Projector
from tests.signals.oracle import truth
from tests.signals.test_projected_gradients import exact, projected
from tests.signals.zoo import make, samples

POOL = samples(5)


class Kernel(torch.autograd.Function):
    """A linear map as a fused kernel has it: nothing that torch functions would show."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return torch.einsum("...i,oi->...o", x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return gradient @ weight, torch.einsum("...o,...i->oi", gradient, x)


class KernelLinear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return Kernel.apply(x, self.weight)  # type: ignore[no-any-return]


class Convolved(nn.Module):
    """A causal convolution over tokens before the attention, as state-space models have."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.conv1d = inner, nn.Conv1d(16, 16, 3, groups=16)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.1 * self.conv1d(functional.pad(x.mT, (2, 0))).mT


class OverBatch(nn.Module):
    """Statistics of the whole batch: samples influence each other."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=(0, 1), keepdim=True)


class Einsum(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bti,oi->bto", x, self.weight)


class HalfOfAWeight(nn.Module):
    """Two views of a weight, multiplied apart."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = self.weight.chunk(2)
        return torch.cat([functional.linear(x, upper), functional.linear(x, lower)], dim=-1)


class SequenceFirst(nn.Module):
    """(T, B, d) inside, as older models have it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.transpose(0, 1), self.weight).transpose(0, 1)


class Flattened(nn.Module):
    """(T B, d) inside, tokens first: rows that could be taken for samples."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        flat = x.transpose(0, 1).flatten(0, 1)
        return functional.linear(flat, self.weight).unflatten(0, (x.shape[1], x.shape[0])).transpose(0, 1)


def replaced(kind: type[nn.Module], name: str = "q_proj") -> Any:
    model = make("Llama")
    for layer in model.model.layers:
        setattr(layer.self_attn, name, kind(getattr(layer.self_attn, name)))
    return model


def convolved() -> Any:
    model = make("Llama")
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.input_layernorm = Convolved(layer.input_layernorm)
    return model


def over_batch() -> Any:
    model = make("Llama")
    model.model.norm = OverBatch()
    return model


def mamba() -> Any:
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4)
    return transformers.MambaForCausalLM(config)


def check(
    model: Any,
    parameters: str,
    warning: str | None,
    pool: Any = POOL,
    tolerance: float = 1e-6,
    **options: Any,
) -> None:
    """The warning, and every gradient and norm as autograd has it."""
    model = model.double()
    everything: Any = {"want": ("loss", "grad_norm", "grad"), "parameters": parameters, "progress": False}
    if warning is None:
        signals = collect(model, pool, **everything, grad_dim=None, **options)
    else:
        with pytest.warns(UserWarning, match=warning):
            signals = collect(model, pool, **everything, grad_dim=None, **options)
    names = list(resolve(model, parameters).parameters)
    for row, sample in enumerate(pool):
        found = truth(model, sample, names)
        assert signals.loss[row] == pytest.approx(float(found.loss), rel=tolerance)  # type: ignore[index]
        assert signals.grad_norm[row] == pytest.approx(float(found.flat.norm()), rel=tolerance)  # type: ignore[index]
        error = np.linalg.norm(signals.grad[row] - found.flat.numpy())  # type: ignore[index]
        assert error < tolerance * float(found.flat.norm())


@pytest.mark.parametrize(
    "kind", [KernelLinear, Einsum, HalfOfAWeight, SequenceFirst, Flattened], ids=lambda kind: kind.__name__
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_use_that_cannot_be_watched(kind: type[nn.Module]):
    warning = (
        r"Llama.*the gradients of 2 parameters cannot be watched \(first: .*q_proj.weight\).*one sample at a"
    )
    check(
        replaced(kind),
        "blocks",
        warning if kind not in (SequenceFirst, Flattened) else "one sample at a time",
    )


def test_a_convolution():
    check(convolved(), "all", r"the gradients of 4 parameters cannot be watched \(first: .*conv1d")


def test_statistics_over_the_batch():
    check(over_batch(), "blocks", "samples influence each other within a batch")


def test_statistics_over_the_batch_where_all_samples_have_one_length():
    """A pair must be two samples: one of them twice would have the same mean."""
    check(over_batch(), "blocks", "samples influence each other", samples(4, longest=6, shortest=6))


def test_statistics_over_the_batch_where_the_shortest_samples_are_not_finite():
    model = over_batch()
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = torch.nan
    bad = [{"input_ids": [4, 50, 6][:n], "labels": [4, 50, 6][:n]} for n in (2, 3)]
    good = [sample for sample in POOL if 50 not in sample["input_ids"]]
    with pytest.warns(UserWarning) as warned:
        signals = collect(model, [*bad, *good], want=("loss", "grad"), progress=False)
    assert any("influence each other" in str(one.message) for one in warned)
    assert signals.ok is not None
    assert signals.ok.tolist() == [False, False] + [True] * len(good)


@pytest.mark.parametrize("parameters", ["blocks", "all"])
def test_mamba(parameters: str):
    warning = "one sample at a time" if parameters == "all" else None
    check(mamba(), parameters, warning, tolerance=1e-4)  # its scan is in float32


def test_an_adapter_of_embeddings():
    """It looks up columns of its A; that of the head has the rows of labels only."""
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head", "embed_tokens"], init_lora_weights=False)
    check(get_peft_model(make("Llama"), config), "all", "the gradients of 1 parameters cannot be watched")


def test_projections_of_what_autograd_gave():
    """Vectors, matrices and stacks meet the same signs as when they are watched."""
    model = replaced(KernelLinear)
    with pytest.warns(UserWarning, match="one sample at a time"):
        found = collect(model, POOL, want="grad", parameters="all", grad_dim=30, progress=False).grad
    expected = projected(Projector(30, 0), exact(model, resolve(model, "all"), POOL))
    assert found is not None
    assert np.abs(found - expected.numpy()).max() < 1e-4 * float(expected.abs().max())
    plain = collect(
        make("Llama"), POOL, want="grad", parameters="*mlp*weight", grad_dim=30, progress=False
    ).grad
    there = collect(model, POOL, want="grad", parameters="*mlp*weight", grad_dim=30, progress=False).grad
    assert plain is not None
    assert there is not None
    assert plain.shape == there.shape


def test_warned_once_and_not_at_all_where_it_does_not_matter(recwarn: pytest.WarningsRecorder):
    collect(replaced(KernelLinear), POOL, want="grad", parameters="*mlp*weight", progress=False)
    collect(replaced(KernelLinear), POOL, want=("loss", "head_norm"), progress=False)
    assert not [one for one in recwarn if issubclass(one.category, UserWarning)]


class Chunked(nn.Module):
    """Folds chunks of eight tokens into the batch, but only where there is more than one chunk."""

    beyond: ClassVar[int] = 10**6

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if length <= 8 or length > self.beyond:
            return functional.linear(x, self.weight)
        padded = functional.pad(x, (0, 0, 0, -length % 8))
        chunks = padded.unflatten(1, (-1, 8)).flatten(0, 1)
        return functional.linear(chunks, self.weight).unflatten(0, (len(x), -1)).flatten(1, 2)[:, :length]


def test_what_only_the_longest_samples_show():
    pool = [*samples(4, longest=7), *samples(4, longest=40, shortest=30)]
    check(replaced(Chunked), "blocks", "samples influence each other", pool)


def test_what_neither_end_shows_is_an_error_and_no_wrong_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Chunked, "beyond", 16)
    parts = [(4, 7), (12, 16), (30, 40)]
    pool = [s for low, high in parts for s in samples(4, longest=high, shortest=low)]
    sentence = re.escape("layers.0.self_attn.q_proj.weight cannot be assigned to samples")
    with pytest.raises(SignalError, match=f"at this length the rows of model.{sentence}"):
        collect(replaced(Chunked), pool, want="grad", batch_tokens=64, progress=False)


class SeesPadding(nn.Module):
    """What a mask that leaks does: states depend on how far their sample is padded."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.02 * x.shape[1])


class SeesTheNextSample(nn.Module):
    """Each sample's states have a little of its neighbour's."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.03 * x.roll(1, dims=0)


@pytest.mark.parametrize("want", ["loss", "embedding", "head_norm", ("loss", "grad")])
@pytest.mark.parametrize("kind", [SeesPadding, SeesTheNextSample])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours_matter_whatever_is_wanted(kind: type[nn.Module], want: Any, dtype: torch.dtype):
    """Only at the long end: all short samples have one length."""
    model = make("Llama", dtype)
    model.model.norm = nn.Sequential(model.model.norm, kind())
    pool = [*samples(3, longest=5, shortest=5), *samples(5, longest=40, shortest=6)]
    options: Any = {"want": want, "parameters": "all", "grad_dim": 8, "progress": False}
    with pytest.warns(UserWarning, match="samples influence each other within a batch"):
        found = collect(model, pool, **options)
    for row in (0, 3, 7):
        alone = collect(model, [pool[row]], **options)
        for name in [want] if isinstance(want, str) else want:
            assert np.array_equal(getattr(found, name)[row], getattr(alone, name)[0]), name


class TestStillInBatches:
    """What a model may do without falling back."""

    pytestmark = pytest.mark.filterwarnings("error:.*one sample at a time:UserWarning")

    @pytest.mark.parametrize("parameters", ["blocks", "all"])
    def test_a_layer_used_twice(self, parameters: str):
        model = make("Llama")
        model.model.layers[1] = model.model.layers[0]
        check(model, parameters, None)

    @pytest.mark.parametrize("parameters", ["blocks", "all"])
    def test_a_use_that_gets_no_gradient(self, parameters: str):
        """Norms of a weight wait for all of its uses; this one never comes back."""
        model = make("Llama")
        for layer in model.model.layers:
            inner = layer.mlp.forward
            layer.mlp.forward = lambda x, inner=inner: (inner(2 * x).detach(), inner(x))[1]
        check(model, parameters, None)

    def test_a_part_without_gradients(self):
        model = make("Llama")
        inner = model.model.layers[0].mlp.forward

        def frozen(x: Tensor) -> Tensor:
            with torch.no_grad():
                return inner(x)

        model.model.layers[0].mlp.forward = frozen
        check(model, "all", None)

    def test_two_inputs_of_one_size_below_one_parent(self):
        """q and o both take 16 numbers, and so share a fold, but not its result."""
        check(make("Llama"), "*self_attn.[qo]_proj.weight", None)
