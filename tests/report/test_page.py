"""The HTML page about a run or a comparison, whatever the data hold and whatever is missing."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml

import gradwise as gw
from gradwise.data.settings import Allowed
from gradwise.recipe import Model, Train
from gradwise.report.page.comparison import comparison_page
from gradwise.report.page.document import MOST_CHARACTERS, html
from gradwise.report.page.run import run_page
from gradwise.report.page.write import write_at_end, write_page
from gradwise.run import train
from gradwise.training.record_names import PARTS, PHASES
from tests.conftest import ROOT
from tests.report.synthetic import Folder, jsonl, section

ASSETS = ROOT / "src" / "gradwise" / "demo" / "assets"

HOSTILE = (
    "</td><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\x00\u202egnp.exe\u2066 {{ 7 * 7 }} "
    "\u05e9\u05dc\u05d5\u05dd \U0001f4a9 ]]> --> '\" &amp; \udc80" + "w" * 5000
)
"""Markup, control characters, marks that reverse text, Hebrew, an emoji, half a surrogate pair."""

TAGS = {
    "html", "head", "meta", "title", "link", "style", "body", "header", "button", "p", "h1", "bdi", "nav",
    "a", "main", "div", "strong", "ul", "li", "section", "h2", "h3", "dl", "dt", "dd", "small", "pre",
    "details", "summary", "figure", "figcaption", "svg", "line", "text", "rect", "circle", "path", "table",
    "thead", "tbody", "tr", "th", "td", "footer", "script",
}  # fmt: skip
"""Elements that the page itself is made of."""


class Elements(HTMLParser):
    """Collects elements and attributes as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of all four methods."""
    folder = tmp_path_factory.mktemp("page")
    sources: dict[str, Any] = {}
    for part, name, count in (("train", "plays_train", 24), ("validation", "plays_held_out", 4)):
        lines, sources[part] = (ASSETS / f"{name}.jsonl").read_text().splitlines(), []
        for place, domain in enumerate(("plays", "verse")):
            path = folder / f"{domain}-{part}.jsonl"
            path.write_text("\n".join(lines[place * count :][:count]) + "\n")
            sources[part].append(gw.Source(path=str(path), domain=domain))
    recipe = gw.Recipe(
        model=Model(name=str(ASSETS / "stories260K")),
        data=gw.Data(**sources, max_length=96, allow=Allowed(cut=1.0)),
        train=Train(
            epochs=1,
            batch_size=2,
            learning_rate=2e-3,
            schedule="wsd",
            arguments={"eval_strategy": "steps", "eval_steps": 6},
        ),
        select=gw.Grace(fraction=0.5, candidates="all", refresh_every=4, anchors=0.5, domain_minimum=1.0),
        order=gw.D3(target_samples=4, probes=2, overhead=2.0),
        layers=gw.Grass(active=2, period=3, probe=1),
        anneal=gw.Direct(last=0.25, count=8),
    )
    assert train(recipe, folder / "run", progress=False, tell=lambda _: None).finished
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_path / "run"


# ---- a run -------------------------------------------------------------------------------------------------


def test_a_run_of_all_four_methods_has_every_section(finished: Path) -> None:
    page = run_page(finished)
    assert not page.missing
    assert [each.name for each in page.sections] == [
        "run", "loss", "samples", "pool", "order", "layers", "annealing", "time", "notes",
    ]  # fmt: skip
    assert "select: grace" in page.lead and "The held-out loss fell from" in page.lead
    text = html(page)
    for name in ("loss", "samples", "pool", "order", "layers", "annealing", "time"):
        assert section(text, name).count("<svg") >= 2, name  # wide and narrow
    picks = pyarrow.parquet.read_table(finished / "plan" / "picks-0.parquet").to_pylist()
    assert picks[0]["text"][:12] in section(text, "samples")
    assert "stands for" in section(text, "samples") and "verse" in section(text, "samples")
    assert "stiff directions" in section(text, "annealing")
    assert "annealing phase" in section(text, "loss") and "samples replaced" in section(text, "loss")


def test_memory_is_shown_by_part_beside_its_forecast(run: Path) -> None:
    def shown(*more: dict[str, Any], without: str = "") -> str:
        jsonl(run / "events.jsonl", [*(event for event in known if event["event"] != without), *more])
        page = run_page(run)
        assert not page.missing
        return section(html(page), "time")

    known = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    text = shown()
    assert "Memory by part" in text and "forward and backward" in text
    assert all(f"{part}: " in text for part in PARTS) and "Parts that change" in text
    assert 'class="forecast"' not in text.partition("Memory by part")[2]
    parts = {phase: dict.fromkeys(PARTS, 2**20) for phase in PHASES}
    forecast = {"event": "memory", "step": 2, "seconds": 0.1, "phases": parts, "forecast": parts}
    assert shown(forecast).partition("Memory by part")[2].count('class="forecast"') == 2 * (len(PARTS) + 1)
    assert "Memory by part" not in shown(without="memory")


def test_every_draw_of_layers_is_a_column_with_its_active_layers_marked(finished: Path) -> None:
    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    draws = [event for event in events if event["event"] == "layers"]
    figure = section(html(run_page(finished)), "layers").partition('class="narrow"')[0]
    assert figure.count('class="spot"') == sum(len(event["active"]) for event in draws)
    assert figure.count("probability") == 5 * len(draws)


def test_the_pool_holds_every_scored_sample_and_marks_the_picks(finished: Path) -> None:
    rows = pyarrow.parquet.read_table(finished / "plan" / "pool.parquet").to_pylist()
    assert len(rows) == 48 and {row["domain"] for row in rows} == {"plays", "verse"}
    assert np.isfinite([[row["x"], row["y"]] for row in rows]).all()
    picked = len(pyarrow.parquet.read_table(finished / "plan" / "picks-8.parquet"))
    figure = section(html(run_page(finished)), "pool").partition('class="narrow"')[0]
    assert figure.count('class="picked') == picked and figure.count('class="faint') == 48 - picked


def test_the_mix_of_domains_follows_the_plan(finished: Path) -> None:
    """The shares of each stretch are those of the samples that the plan has there."""
    from gradwise.training.plan import Plan

    plan = Plan.load(finished / "plan" / "plan.safetensors")
    figure = section(html(run_page(finished)), "samples").partition('class="narrow"')[0]
    first = re.findall(r'data-tip="(\w+): (\d+)%, optimizer steps 0 to 1"', html(run_page(finished)))
    domains = ["plays" if index < 24 else "verse" for index in plan.indices[:2]]
    assert dict(first) == {name: f"{domains.count(name) * 50}" for name in set(domains)}
    assert "share of the samples" in html(run_page(finished)) and figure


def test_the_step_of_a_sample_is_that_of_the_run_whatever_its_recipe_says(run: Path) -> None:
    """A recipe given to a Trainer has the default batch size, and names no model to train again."""
    tip = "optimizer steps 0 to 1"
    assert html(run_page(run)).count(tip) and "repeats the run" in html(run_page(run))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["train"]["batch_size"], recipe["model"], recipe["data"] = 16, None, None
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert html(run_page(run)).count(tip) and "repeats the run" not in html(run_page(run))


def test_a_step_of_a_packed_run_has_as_many_samples_as_its_plan_over_its_steps(run: Path) -> None:
    """The batch size in its recipe counts packed rows."""

    def tips() -> list[str]:
        return re.findall(r'data-tip="(\w+: \d+%, optimizer steps \d+ to \d+)"', html(run_page(run)))

    before = tips()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["train"]["batch_size"] = 1
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for event in events:
        event.pop("batch_size", None)
    jsonl(run / "events.jsonl", events)
    assert before and tips() == before


def test_what_a_weight_of_the_graph_means_depends_on_how_it_was_measured(run: Path) -> None:
    assert "worth for the target" in section(html(run_page(run)), "order")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    jsonl(
        run / "events.jsonl",
        [event | ({"edges": "lookahead"} if "edges" in event else {}) for event in events],
    )
    text = section(html(run_page(run)), "order")
    assert (
        "changes the loss of another" in text
        and "of its loss" in text
        and "of the target&#x27;s loss" not in text
    )


@pytest.mark.parametrize(("losses", "said"), [((2.0, 2.5, 2.6), False), ((2.6, 2.0, 2.5), True)])
def test_training_that_never_helped_is_no_overfitting(run: Path, losses: Any, said: bool) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [
        {"step": step, "seconds": 1.0, "eval_loss": loss, "held_out_loss": loss}
        for step, loss in zip((0, 6, 12), losses, strict=True)
    ]
    jsonl(run / "metrics.jsonl", [line for line in lines if "loss" in line] + evaluated)
    assert ("a sign of overfitting" in html(run_page(run))) is said


def test_of_very_many_events_the_last_ones_are_shown_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert f"All {len(events)} events" in html(run_page(run))
    monkeypatch.setattr("gradwise.report.page.run.MOST_EVENTS", 4)
    text = html(run_page(run))
    assert f"The first and the last 2 of {len(events)} events" in text
    assert (
        "finished" in text.rpartition("of them deciding")[2] or f"step {events[-1]['step']}: finished" in text
    )


def test_without_text_no_sample_is_shown(finished: Path) -> None:
    texts = pyarrow.parquet.read_table(finished / "plan" / "picks-0.parquet")["text"].to_pylist()
    page = html(run_page(finished, text=False))
    assert not any(text[:12] in page for text in texts)
    assert "stands for" in page


def test_the_page_fetches_nothing(finished: Path) -> None:
    elements = Elements(html(run_page(finished)))
    assert set(elements.tags) <= TAGS and elements.tags.count("script") == 1
    addresses = [value for name, value in elements.attributes if name in ("src", "href", "srcset", "action")]
    assert all(value is not None and value.startswith(("#", "data:,")) for value in addresses)
    assert "url(" not in html(run_page(finished)) and "@import" not in html(run_page(finished))
    assert any(value and value.startswith("default-src 'none'") for _, value in elements.attributes)


# ---- what is missing ---------------------------------------------------------------------------------------


def _read_by_the_page(finished: Path) -> Iterator[str]:
    for path in sorted(path for path in finished.rglob("*") if path.is_file()):
        name = path.relative_to(finished).as_posix()
        if not name.startswith("checkpoints") and path.name not in (".gradwise.lock", "report.html"):
            yield name


def test_whatever_file_is_missing_or_cut_short_is_named_and_the_rest_is_shown(run: Path) -> None:
    names = list(_read_by_the_page(run))
    assert len(names) > 15
    for name in names:
        path = run / name
        content = path.read_bytes()
        for damage in (None, content[: len(content) // 2]):
            path.unlink() if damage is None else path.write_bytes(damage)
            page = run_page(run)
            assert any(Path(name).name in sentence for sentence in page.missing), (name, damage)
            assert len(page.sections) >= 6
        assert len(html(page)) > 20_000
        path.write_bytes(content)
    assert not run_page(run).missing


def test_values_of_any_type_are_shown_or_left_out(run: Path) -> None:
    """A file that parses, but holds other things than expected."""
    for name in ("events.jsonl", "metrics.jsonl"):
        lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
        for wrong in (None, "text", [], {}, -1e308):
            jsonl(
                run / name,
                [
                    {key: wrong if key not in ("event", "step") else value for key, value in line.items()}
                    for line in lines
                ],
            )
            assert html(run_page(run))
        jsonl(run / name, lines)
    for wrong in ("{}", "[]", "seed: 0", "seed: 0\ndata: 3\ntrain: [1]\nselect: {method: [2]}\nmodel: x"):
        (run / "recipe.yaml").write_text(wrong)
        (run / "environment.json").write_text(json.dumps({"data": wrong, "versions": 3, "model": []}))
        assert html(run_page(run))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(gw.RecipeError, match="holds no run and no comparison"):
        write_page(tmp_path)
    with pytest.raises(gw.RecipeError, match="is no folder"):
        write_page(tmp_path / "nothing")


# ---- hostile data ------------------------------------------------------------------------------------------


def _inert(page: str) -> None:
    elements = Elements(page)
    assert set(elements.tags) <= TAGS and elements.tags.count("script") == 1
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    assert "{{ 7 * 7 }}" in page and "w" * 1000 not in page
    page.encode("utf-8")


def test_hostile_text_is_shown_harmlessly(run: Path) -> None:
    for path in run.glob("plan/picks-*.parquet"):
        table = pyarrow.parquet.read_table(path).to_pylist()
        hostile = HOSTILE.replace("\udc80", "")  # which Parquet cannot hold
        rows = [row | {"text": hostile, "domain": hostile[:200], "why": hostile[:300]} for row in table]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    short = HOSTILE[:160]
    events.append({"event": "unpacked", "step": 1, "seconds": 0.0, "why": short})
    jsonl(run / "events.jsonl", [event | {"select": short, "unmeasured": short} for event in events])
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["name"] = "a/" + short
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    page = html(run_page(run))
    _inert(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert '<bdi dir="auto">' in page and "\\u202e" in page and "\u05e9\u05dc\u05d5\u05dd" in page
    longest = max(re.findall(r'<bdi dir="auto">([^<]*)', page), key=len)
    assert len(longest) < 3 * MOST_CHARACTERS


def test_hostile_names_in_a_comparison_are_shown_harmlessly(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for seed in range(3):
        for arm in ("full", "other"):
            folder.run(
                arm,
                seed,
                3.0 + seed / 10 + (arm == "full"),
                scores={HOSTILE[:90]: {"value": 1.0, "better": "lower", "samples": 1}},
            )
    (tmp_path / "runs" / "other" / "seed-2" / "failure.txt").write_text(HOSTILE[:400].replace("\udc80", ""))
    folder.comparison(
        ["full", "other"], notes=[HOSTILE[:200].replace("\x00", "").replace("\x1b", "").replace("\udc80", "")]
    )
    _inert(html(comparison_page(tmp_path)))


# ---- the file ----------------------------------------------------------------------------------------------


def test_the_file_replaces_an_earlier_report_and_nothing_else(run: Path) -> None:
    path = write_page(run)
    first = path.read_bytes()
    assert path == run / "report.html" and write_page(run).read_bytes() == first
    (run / ".gradwise.json").write_text("{")
    assert b".gradwise.json, which marks the folder" in write_page(run).read_bytes()
    path.write_text("<html>of the user</html>")
    with pytest.raises(gw.RecipeError, match="is no report of gradwise's and would be overwritten"):
        write_page(run)
    assert path.read_text() == "<html>of the user</html>"
    other = run.parent / "pages" / "one.html"
    assert write_page(run, other) == other and other.stat().st_size > 20_000


def test_no_file_of_the_run_is_replaced(run: Path) -> None:
    for name in ("metrics.jsonl", "recipe.yaml"):
        before = (run / name).read_bytes()
        with pytest.raises(gw.RecipeError, match="is no report of gradwise's and would be overwritten"):
            write_page(run, run / name)
        assert (run / name).read_bytes() == before


def test_a_report_that_cannot_be_written_is_a_warning(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").mkdir()
    write_at_end(run)
    assert re.search(
        r"Warning: the report could not be written \(.+\); `gradwise report", capsys.readouterr().out
    )


# ---- in a browser ------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

BEFORE = """<script>window.errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push(event.violatedDirective));
console.error = (...all) => errors.push(all.join(" "));</script>"""

AFTER = """<script>{
const figures = [...document.querySelectorAll("svg")];
const shown = figures.filter((each) => each.getBoundingClientRect().width > 100);
const colour = () => getComputedStyle(document.body).backgroundColor;
const [light, button] = [colour(), document.getElementById("theme")];
button.click();
const figure = shown.find((each) => each.querySelector("[data-tip]"));
figure.focus();
figure.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
const tip = document.getElementById("tip").textContent;
const table = document.querySelector("table"), column = COLUMN;
const cells = () => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.sort);
const heads = table.querySelectorAll("th button");
heads[column].click(); const up = cells(); heads[column].click();
document.title = JSON.stringify({
  errors, tip, up, down: cells(), figures: shown.length, themes: [light, colour()],
  fetched: performance.getEntriesByType("resource").map((each) => each.name),
  wide: document.documentElement.scrollWidth > innerWidth,
});
}</script>"""


def browsed(page: str, column: int, tmp_path: Path) -> dict[str, Any]:
    """What a browser makes of a page: figures on the screen, errors, requests, the tip that an arrow key
    shows, a column of the first table sorted both ways."""
    path = tmp_path / "browsed.html"
    path.write_text(
        page.replace("<head>", f"<head>{BEFORE}").replace(
            "</body>", AFTER.replace("COLUMN", str(column)) + "</body>"
        )
    )
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,900", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stderr[-2000:]
    return json.loads(unescape(title[1]))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_in_a_browser_figures_tables_and_themes_work_without_a_request(
    finished: Path, compared: Path, tmp_path: Path
) -> None:
    for page, column, figures in ((run_page(finished), 0, 9), (comparison_page(compared), 3, 4)):
        found = browsed(html(page), column, tmp_path)
        assert found["errors"] == [] and found["fetched"] == []
        assert found["figures"] >= figures and found["tip"] and not found["wide"]
        assert found["themes"][0] != found["themes"][1]
        numbers = [float(value) for value in found["up"] if value]
        assert len(numbers) > 2 and numbers == sorted(numbers)
        assert [float(value) for value in found["down"] if value] == numbers[::-1]
