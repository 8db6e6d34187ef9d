"""The HTML page about a comparison: verdicts, notes, and the command that repeats it."""

import json
import re
from html import unescape
from pathlib import Path

from gradwise.report.page.comparison import comparison_page
from gradwise.report.page.document import html
from tests.report.synthetic import Folder, section


def test_a_comparison_shows_its_verdicts_with_intervals(compared: Path) -> None:
    page = comparison_page(compared)
    assert "3 arms over 3 seeds" in page.lead and "Better: better (against full, preliminary)" in page.lead
    text = html(page)
    verdicts = section(text, "verdicts").partition('class="narrow"')[0]
    assert verdicts.count('class="interval good"') == verdicts.count('class="interval quiet"') == 3
    assert "better (preliminary)" in section(text, "verdicts")
    assert section(text, "curves").partition('class="narrow"')[0].count('class="band ') == 3
    assert "Overfitting: same" in section(text, "notes")
    assert section(text, "runs").count("<tr>") == 1 + 9
    assert "--arms full,better,same --seeds 0,1,2 --budget time=20" in section(text, "repeat")


def test_with_too_few_seeds_no_difference_is_claimed_or_denied(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for arm in ("full", "other"):
        folder.run(arm, 0, 3.0)
    lead = comparison_page(folder.comparison(["full", "other"], seeds=1)).lead
    assert lead.endswith("Too few seeds for a verdict.")


def test_the_command_that_repeats_a_comparison_has_all_that_was_asked(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for arm in ("full", "slow", "random"):
        folder.run(arm, 0, 3.0)
    specs = {"full": "full", "slow": "lora+my rate.yaml", "random": "random"}
    folder.comparison(
        specs,
        seeds=1,
        budget={"kind": "tokens", "amount": 1234567.0, "margin": 0.05},
        fraction=0.25,
        requested_pairs=[["slow", "random"], ["slow", "full"]],
        pairs=[{"arm": "slow", "against": "random", "differs": []}],
    )
    (command,) = re.findall(r"gradwise compare RECIPE.*?--out NEW", html(comparison_page(tmp_path)))
    assert unescape(command) == (
        "gradwise compare RECIPE.yaml --arms 'full,slow=lora+my rate.yaml,random' --seeds 0, "
        "--budget tokens=1234567 --fraction 0.25 --pairs slow:random,slow:full --out NEW"
    )
    every = [["slow", "random"], ["slow", "full"], ["random", "full"]]
    folder.comparison(specs, seeds=1, requested_pairs=every, budget={"kind": "time", "amount": 0.1})
    (command,) = re.findall(r"gradwise compare RECIPE.*?--out NEW", html(comparison_page(tmp_path)))
    assert command.endswith("--budget time=0.1 --reference full --pairs slow:random --out NEW")


def test_a_loss_over_fewer_samples_is_said_not_to_compare(compared: Path) -> None:
    path = compared / "runs" / "better" / "seed-1" / "scores.json"
    assert "have a finite loss" not in html(comparison_page(compared))
    scores = json.loads(path.read_text())
    scores["scores"]["held_out_loss"]["samples"] = 4
    path.write_text(json.dumps(scores))
    assert "better, seed 1: 4 of 5 held-out samples have a finite loss" in html(comparison_page(compared))


def test_a_comparison_without_a_finished_run_says_so(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.run("full", 0, 3.0, finished=False)
    page = comparison_page(folder.comparison(["full", "other"], failed={"other": "no memory"}))
    assert "nothing to compare" in html(page) and "other: no memory" in page.missing
