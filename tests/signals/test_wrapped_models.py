"""Half precision, checkpointing, compiled and quantised models, hooks that others left on them."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.nn import functional

from gradwise import SignalError
from gradwise.data import Collator
from gradwise.signals import Signals, collect
from gradwise.signals.measure import Measured, Measurer
from gradwise.signals.request import SignalRequest
from gradwise.signals.scope import resolve
from gradwise.signals.sums import GradientRequest
from tests.signals.zoo import make, samples

POOL = samples(12)
QUANTITIES = ("loss", "embedding", "grad_norm", "grad", "head_norm", "middle_embedding")

pytestmark = pytest.mark.filterwarnings("error:.*one sample at a time:UserWarning")  # nothing falls back


def measured(model: Any, rows: Any = POOL, **options: Any) -> Signals:
    return collect(model, rows, **{"want": QUANTITIES, "grad_dim": None, "progress": False} | options)


def difference(one: Signals, other: Signals) -> float:
    """The largest, over quantities and samples, relative to the sample's."""
    worst = 0.0
    for name in QUANTITIES:
        mine, theirs = (getattr(s, name).reshape(len(s), -1) for s in (one, other))
        relative = np.linalg.norm(mine - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
        worst = max(worst, float(relative.max()))
    return worst


class TestHalfPrecision:
    @pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPT2", "Mixtral", "LoRA on Llama"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_near_the_same_weights_in_float32(self, name: str, dtype: torch.dtype):
        """bfloat16 has 8 bits: 0.4 % per operation, over dozens of operations."""
        half = make(name).to(dtype)
        full = make(name).to(dtype).float()
        one, other = (measured(model, parameters="all") for model in (half, full))
        assert one.ok is not None
        assert one.ok.all()
        assert difference(one, other) < (0.12 if dtype == torch.bfloat16 else 0.012)
        assert one.grad.dtype == np.float32  # type: ignore[union-attr]

    def test_float16_gradients_too_small_for_it(self):
        """Gradients of 1e-8 and less: zero in float16 unless the loss is scaled up."""
        model = make("Llama")
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.down_proj.weight.mul_(1e-4)
                layer.mlp.up_proj.weight.mul_(1e-2)
        half, full = model.half(), make("Llama")
        full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
        pattern = {"parameters": "*up_proj.weight", "want": ("loss", "grad_norm", "grad")}
        one, other = measured(half, **pattern), measured(full, **pattern)
        assert other.grad_norm is not None
        assert other.grad_norm.max() < 1e-4
        np.testing.assert_allclose(one.grad_norm, other.grad_norm, rtol=0.02)  # type: ignore[arg-type]

    def test_float16_gradients_too_large_for_that(self):
        """Losses scaled up by 4,096 overflow where gradients are large; they are then scaled less."""
        model = make("Llama", torch.float16)
        with torch.no_grad():
            model.lm_head.weight.mul_(60)
            model.model.norm.weight.mul_(60)
        full = make("Llama")
        full.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
        one, other = measured(model), measured(full)
        assert one.ok is not None
        assert one.ok.all()
        assert other.grad is not None
        assert np.abs(other.grad).max() * 4096 > 65504
        assert difference(one, other) < 0.05

    def test_in_float16_a_bad_sample_costs_others_nothing(self):
        model = make("Llama", torch.float16)
        with torch.no_grad():
            model.model.embed_tokens.weight[50] = torch.nan
        clean = [sample for sample in POOL if 50 not in sample["input_ids"]][:5]
        bad = {"input_ids": [4, 50, 6], "labels": [4, 50, 6]}
        with pytest.warns(UserWarning, match="1 of 6 samples set aside"):
            one = measured(model, [*clean, bad])
        other = measured(model, clean, batch_tokens=1)
        for name in QUANTITIES:
            np.testing.assert_array_equal(getattr(one, name)[:-1], getattr(other, name), name)

    def test_scales_are_chosen_by_sample(self, monkeypatch: pytest.MonkeyPatch):
        """One that overflows at 4,096 is scaled less; the others keep the largest scale."""

        def measure(self: Any, batch: Any, positions: Any, scale: float, apart: bool) -> Measured:
            limits = torch.tensor([1e9, 100.0, 5.0, -1.0])
            values = torch.where(scale < limits, scale, torch.inf)
            loss = torch.tensor([1.0, 1.0, 1.0, torch.nan])
            return Measured({"loss": loss, "grad": values[:, None].expand(-1, 3)}, by_parameter={"w": values})

        monkeypatch.setattr(Measurer, "_measure", measure)
        model = make("Llama", torch.float16)
        measurer = Measurer(model, SignalRequest(("loss", "grad")), GradientRequest(resolve(model, "blocks")))
        found = measurer({"labels": torch.tensor([[5, 6]] * 4)}, apart=True)
        assert found.values["grad"][:3].tolist() == [[4096.0] * 3, [16.0] * 3, [1.0] * 3]
        assert found.by_parameter["w"][:3].tolist() == [4096.0, 16.0, 1.0]
        assert found.values["loss"].isfinite().tolist() == [True, True, True, False]


class TestSameAsThePlainModel:
    @pytest.fixture(scope="class")
    @classmethod
    def plain(cls) -> Signals:
        return measured(make("Llama"))

    def test_checkpointing(self, plain: Signals):
        model = make("Llama").train()
        model.gradient_checkpointing_enable()
        assert difference(measured(model), plain) < 1e-6
        assert all(layer.gradient_checkpointing for layer in model.model.layers)

    def test_embeddings_made_to_require_a_gradient(self, plain: Signals):
        """As the Trainer does for adapters with checkpointing."""
        model = make("Llama")
        model.enable_input_require_grads()
        assert difference(measured(model), plain) < 1e-6
        assert model.get_input_embeddings()(torch.tensor([1])).requires_grad

    def test_compiled_by_function(self, plain: Signals):
        assert difference(measured(torch.compile(make("Llama"))), plain) < 1e-6

    def test_compiled_in_place(self, plain: Signals):
        model = make("Llama")
        model.compile()
        assert difference(measured(model), plain) < 1e-6

    def test_compiled_layers(self, plain: Signals):
        model = make("Llama")
        for layer in model.model.layers:
            layer.mlp.compile()
        assert difference(measured(model), plain) < 1e-6

    def test_called_without_gradients(self, plain: Signals):
        with torch.no_grad():
            assert difference(measured(make("Llama")), plain) < 1e-6

    def test_called_in_inference_mode(self, plain: Signals):
        model = make("Llama")
        with torch.inference_mode():
            assert difference(measured(model), plain) < 1e-6

    def test_frozen(self, plain: Signals):
        assert difference(measured(make("Llama").requires_grad_(False)), plain) < 1e-6

    def test_operation_in_place_after_the_first_product(self):
        model, plain = make("Llama"), make("Llama")
        for layer in (*model.model.layers, *plain.model.layers):
            layer.mlp.act_fn = nn.ReLU(inplace=layer in model.model.layers)
        pattern = "*layers.0.mlp.gate_proj.weight"
        assert difference(measured(model, parameters=pattern), measured(plain, parameters=pattern)) < 1e-6

    def test_functions_called_by_keyword(self, plain: Signals):
        model = make("Llama")
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.forward = _by_keyword(module)
        assert difference(measured(model), plain) < 1e-6

    def test_matrices_multiplied_from_the_right(self, plain: Signals):
        model = make("Llama")
        ways = (
            lambda x, w: x @ w.T,
            lambda x, w: torch.matmul(x, other=w.t()),
            lambda x, w: x.matmul(w.transpose(0, 1)),
            lambda x, w: torch.mm(x.flatten(0, 1), w.mT).unflatten(0, x.shape[:2]),
        )
        for layer in model.model.layers:
            for way, name in zip(ways, ("gate_proj", "up_proj", "down_proj", "gate_proj"), strict=True):
                module = getattr(layer.mlp, name)
                module.forward = _multiplied(way, module)
        assert difference(measured(model), plain) < 1e-6


def _by_keyword(module: nn.Linear) -> Any:
    return lambda x: functional.linear(input=x, weight=module.weight, bias=module.bias)


def _multiplied(way: Any, module: nn.Linear) -> Any:
    return lambda x: way(x, module.weight) + module.bias


class TestQuantised:
    class Int8(nn.Module):
        """What bitsandbytes, GPTQ and the like look like: integers and a scale."""

        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.weight = nn.Parameter((linear.weight * 200).to(torch.int8), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x, self.weight.to(x.dtype) / 200)

    def quantised(self, names: tuple[str, ...]) -> Any:
        model = make("Llama")
        for layer in model.model.layers:
            for parent in (layer.self_attn, layer.mlp):
                for name, child in list(parent.named_children()):
                    if name in names:
                        setattr(parent, name, self.Int8(child))
        return model

    ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    @pytest.mark.parametrize("names", [ALL, ("k_proj",)])
    @pytest.mark.parametrize("parameters", ["blocks", "all"])
    def test_refused(self, names: tuple[str, ...], parameters: str):
        """Also where only some are: the rest would be another scope without a word."""
        with pytest.raises(SignalError, match=r"quantised weights.*torch.int8.*put an adapter on the model"):
            measured(self.quantised(names), parameters=parameters)

    def test_loss_and_head_need_no_weight_gradients(self):
        signals = measured(self.quantised(self.ALL), want=("loss", "head_norm"))
        assert signals.ok is not None
        assert signals.ok.all()

    def test_patterns_say_which(self):
        signals = measured(self.quantised(("k_proj",)), parameters="*q_proj.weight")
        assert signals.grad is not None
        assert signals.grad.shape == (len(POOL), 2 * 16 * 16)

    def test_an_adapter_on_it(self):
        """PEFT wraps only what it knows, so the adapter sits on the linear modules that are left."""
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        signals = measured(get_peft_model(self.quantised(("k_proj", "up_proj")), config))
        assert signals.grad is not None
        assert signals.grad.shape == (len(POOL), 2 * 2 * 32)


class TestAdapters:
    def test_what_learns_is_the_scope(self):
        """And it learns again afterwards."""
        model = make("LoRA on Llama")
        learning = {name for name, p in model.named_parameters() if p.requires_grad}
        size = sum(p.numel() for name, p in model.named_parameters() if name in learning)
        signals = measured(model)
        assert signals.grad is not None
        assert signals.grad.shape[1] == size
        assert {name for name, p in model.named_parameters() if p.requires_grad} == learning

    def test_prompt_tuning_is_refused_by_name(self):
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)  # type: ignore[arg-type]
        with pytest.raises(SignalError, match=r"tokens of its own.*PROMPT_TUNING.*LoRA"):
            measured(get_peft_model(make("Llama"), config), parameters="all")


class TestRefused:
    def test_weights_that_are_not_there(self):
        model = make("Llama")
        model.model.layers[0].mlp.to("meta")
        with pytest.raises(SignalError, match="not loaded"):
            measured(model)

    def test_no_head(self):
        with pytest.raises(SignalError, match="LlamaModel has no output head"):
            measured(make("Llama").model)

    def test_nothing_in_scope(self):
        with pytest.raises(SignalError, match=r"'\*.nowhere' matches no parameter"):
            measured(make("Llama"), parameters="*.nowhere")


def test_packing_collators_go_one_by_one():
    """A collator that joins samples in one row, where no sample can be distinguished."""

    def strung(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return Collator(0)([rows])

    plain = measured(make("Llama"))
    with pytest.warns(UserWarning, match="joins samples in one row"):
        assert difference(measured(make("Llama"), collator=strung), plain) < 1e-5
    with pytest.warns(UserWarning, match="joins samples in one row"):
        losses = measured(make("Llama"), collator=strung, want="loss").loss
    np.testing.assert_allclose(losses, plain.loss, rtol=1e-5)  # type: ignore[arg-type]
