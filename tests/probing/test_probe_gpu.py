"""A probe on a GPU: it answers what it answers on the processor, and leaves nothing behind."""

import copy

import numpy as np
import pytest
import torch

import gradwise as gw
from tests.probing.test_probe import TARGET, UNITS, adam, everything, model, same, samples, trained

pytestmark = pytest.mark.gpu


def test_answers_as_on_the_processor_and_gives_everything_back() -> None:
    data, network = samples(), model()
    optimizer = adam(network.parameters())
    trained(network, optimizer, data)
    here = gw.Probe(network, optimizer, data)
    ahead, bends = here.lookahead(UNITS, TARGET), here.bends(UNITS, TARGET)
    there = copy.deepcopy(network).cuda()
    moved = adam(there.parameters())
    moved.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before, chance = everything(there, moved), torch.cuda.get_rng_state()
    probe = gw.Probe(there, moved, data)
    assert probe.lookahead(UNITS, TARGET).after == pytest.approx(ahead.after, rel=1e-4)
    found = probe.bends(UNITS, TARGET)
    assert bends.along is not None and found.along is not None
    assert found.along == pytest.approx(bends.along, rel=0.02, abs=0.02 * np.abs(bends.along).max())
    assert same(before, everything(there, moved))
    assert torch.equal(chance, torch.cuda.get_rng_state())
