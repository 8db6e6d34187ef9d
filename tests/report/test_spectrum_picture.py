"""The picture of a spectrum, from the details of a selection."""

import json
from pathlib import Path

import numpy as np
import pytest

import gradwise as gw
from gradwise.report.spectrum import draw_spectra, draw_spectrum, spectrum_picture


def details() -> dict:
    rng = np.random.default_rng(0)
    pool, held_out = (
        gw.Signals(n, grad=rng.standard_normal((n, 12)), num_tokens=np.full(n, 5, np.int32)) for n in (40, 10)
    )
    return gw.Direct(count=5, tau=2.0).select(pool, validation=held_out).details


def test_is_drawn_for_every_choice_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    for step in (8, 12):
        (tmp_path / "plan" / f"spectrum-{step}.json").write_text(json.dumps(details()))
    drawn = draw_spectra(tmp_path)
    assert [path.name for path in drawn] == ["spectrum-8.png", "spectrum-12.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_what_was_chosen_shows(tmp_path: Path) -> None:
    """Another spectrum is another picture; the same one the same bytes."""
    first = details()
    other = first | {"spectrum": first["spectrum"] | {"picks_energy": first["spectrum"]["pool_energy"]}}
    assert spectrum_picture(first) == spectrum_picture(first) != spectrum_picture(other)
    (tmp_path / "details.json").write_text(json.dumps(first))
    assert draw_spectrum(tmp_path / "details.json", tmp_path / "a.png").read_bytes() == spectrum_picture(
        first
    )


def test_a_run_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(gw.RecipeError, match="only `anneal: direct` uses one"):
        draw_spectra(tmp_path)
