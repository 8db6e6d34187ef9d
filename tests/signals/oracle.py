"""One sample at a time, without padding, by autograd alone."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Sample = dict[str, Any]


class Truth(NamedTuple):
    loss: Tensor
    gradients: dict[str, Tensor]

    @property
    def flat(self) -> Tensor:
        return torch.cat([gradient.flatten() for gradient in self.gradients.values()])


def truth(model: Any, sample: Sample, names: list[str]) -> Truth:
    """A sample's mean loss and its gradient over the parameters named."""
    ids, labels = torch.tensor([sample["input_ids"]]), torch.tensor(sample["labels"])
    model.eval()
    named = dict(model.named_parameters())
    parameters = [named[name] for name in names]
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    with torch.enable_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels[1:])
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, learned in zip(parameters, before, strict=True):
        parameter.requires_grad_(learned)
    dense = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return Truth(loss.detach(), dict(zip(names, dense, strict=True)))


def linear_names(model: Any) -> list[str]:
    """What "blocks" should stand for: weights of matrices and of experts, inside the layers."""
    adapted = hasattr(model, "peft_config")
    places = (".layers.", ".h.")
    return [
        name
        for name, p in model.named_parameters()
        if p.ndim >= 2 and any(f"{place}0." in name or f"{place}1." in name for place in places)
        if not adapted or "lora_" in name
    ]


def all_names(model: Any) -> list[str]:
    adapted = hasattr(model, "peft_config")
    return [name for name, _ in model.named_parameters() if not adapted or "lora_" in name]


class DoubleThroughout(TorchFunctionMode):
    """Models compute norms, rotations and softmax in float32 whatever their type, where rounding of 1e-16
    before becomes 6e-8 after; here such casts go to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.double if func is Tensor.float else func
        wide = {torch.float32: torch.float64}
        args = tuple(wide.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        kwargs = {k: wide.get(a, a) if isinstance(a, torch.dtype) else a for k, a in (kwargs or {}).items()}
        return func(*args, **kwargs)
