"""When layers are drawn and when their scores follow the norms: two settings, each kept to the step."""

import json

import numpy as np
import pytest

from gradwise import Grass, LayerSwitch
from tests.training.test_layers import BATCHES, make_optimizer


def test_scores_adapt_and_layers_are_drawn_each_at_its_own_cadence(tiny_llama) -> None:
    """Drawing every 2 steps and adapting every 3: the loop by hand keeps a window of norms of its own."""
    model = tiny_llama()
    optimizer = make_optimizer(model)
    switch = LayerSwitch(model, Grass(active=2, period=2, adapt_every=3, smoothing=0.5, probe=1), optimizer)
    switch.before_step()
    model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
    switch.after_backward()
    window: list[np.ndarray] = []
    scores, drawn = np.zeros(4), []
    for step in range(12):
        draw = switch.before_step()
        if step == 0:
            scores = switch.scores.copy()
        elif step % 3 == 0:
            for layer in range(4):
                seen = [norms[layer] for norms in window if not np.isnan(norms[layer])]
                scores[layer] = 0.5 * np.mean(seen) + 0.5 * scores[layer] if seen else scores[layer]
            window = []
        assert (draw is not None) == (step % 2 == 0)
        drawn += [draw] if draw else []
        assert switch.scores == pytest.approx(scores, rel=1e-5)
        model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
        norms = np.full(4, np.nan)
        for layer in switch.active:
            squares = sum(
                float(p.grad.double().square().sum()) for p in switch.layers[layer] if p.grad is not None
            )
            norms[layer] = np.sqrt(squares / sum(p.numel() for p in switch.layers[layer]))
        window.append(norms)
        switch.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len({draw.active for draw in drawn}) > 1


def test_without_a_probe_layers_that_were_never_measured_count_as_the_mean(tiny_llama) -> None:
    model = tiny_llama()
    optimizer = make_optimizer(model)
    switch = LayerSwitch(model, Grass(active=2, period=1), optimizer, steps=10)
    assert not switch.probing
    switch.before_step()
    assert switch.scores.tolist() == [1.0] * 4
    first = switch.active
    model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
    switch.after_backward()
    switch.before_step()
    frozen = [layer for layer in range(4) if layer not in first]
    seen = switch.scores[list(first)]
    assert np.all(seen != 1.0) and switch.scores[frozen] == pytest.approx(seen.mean())
    state = json.loads(json.dumps(switch.state_dict()))
    other = tiny_llama()
    again = LayerSwitch(other, Grass(active=2, period=1), make_optimizer(other), steps=10)
    again.load_state_dict(state)
    assert np.array_equal(again.scores, switch.scores)
