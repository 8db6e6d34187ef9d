"""The page of what needs a GPU says of each bar whether it is met, not met, or not yet measured."""

from typing import Any

from benchmarks import results
from benchmarks.gpu import page as gpu
from benchmarks.gpu.run import pieces

MACHINE = {"device": "one GPU", "torch": "2.11", "badam": None}


def piece(measured: Any = None, output: str = "", outcome: str = "done") -> dict[str, Any]:
    return {"outcome": outcome, "measured": measured, "output": output, "machine": MACHINE}


def trained(peak: float, seconds: float, estimated: float | None, passes: float | None) -> dict[str, Any]:
    measured = {"peak": peak * 1e9, "step_seconds": seconds, "tokens_per_second": 4096 / seconds}
    estimated_bytes = None if estimated is None else estimated * 1e9
    return piece({**measured, "estimated": estimated_bytes, "forward_passes": passes})


def verdicts(kit: dict[str, Any]) -> dict[str, tuple[str, str]]:
    rows = (each.row(kit) for each in (*gpu.BARS, *gpu.TESTS))
    return {text: (number, verdict) for text, _, _, number, verdict in rows}


def test_every_piece_that_is_named_exists_and_every_piece_of_the_kit_is_named() -> None:
    existing = pieces()
    named = {piece for bar in gpu.BARS for piece in bar.pieces} | {tests.piece for tests in gpu.TESTS}
    assert named <= existing.keys()
    assert {name for name in existing if name.startswith("tests-")} <= named


def test_bars_are_judged_by_what_was_measured() -> None:
    kit = {
        "training-7b-1024-full": trained(51.0, 1.0, 50.0, 4.0),
        "training-7b-1024-grass-keep": trained(40.0, 0.5, 50.0, 2.2),
        "training-7b-1024-grass-offload": trained(18.0, 0.53, 18.5, 3.2),
        "training-7b-1024-grass-stateless": trained(17.95, 0.5, None, None),
        "training-7b-1024-lora": piece(outcome="failed", output="no memory"),
        "tests-training-test_gpu": piece(output="...\n== 8 passed, 1 skipped in 3.21s ==\n"),
        "tests-numerics-test_knn_gpu": piece(output="== 2 skipped in 0.21s ==\n"),
    }
    found = verdicts(kit)
    peak = "GRASS, LLaMA-7B shape, bfloat16, 4 x 1,024: peak memory"
    assert found[peak] == ("18.00 GB", "met")
    assert found["Offload: peak above that of the same run without optimizer state"] == ("0.050 GB", "met")
    step = "Offload: step time over that with state on the device, length "
    assert found[step + "1,024"] == ("1.060", "not met") and found[step + "512"] == ("-", "not yet run")
    memory, time = (
        "`gradwise estimate`: peak memory, ",
        "`gradwise estimate`: ratio to the time of full training, ",
    )
    assert found[memory + "full"] == ("2.0%", "met")
    assert found[memory + "grass-keep"] == ("25.0%", "not met")
    assert found[memory + "lora"] == ("-", "failed")
    assert found[time + "grass-keep"] == ("10.0%", "met")
    assert found[time + "grass-offload"] == ("50.9%", "not met")
    passed = [found[tests.text] for tests in gpu.TESTS if tests.piece in kit]
    assert passed == [("8 passed, 1 skipped in 3.21s", "met"), ("2 skipped in 0.21s", "not yet run")]
    text = "\n\n".join(gpu.page(kit).sections)
    assert "4 of 33 run" in text and "| `training-7b-1024-full` | 51.00 | 1.000 | 4,096 |" in text
    assert gpu.origin(kit).endswith("\n- device one GPU, torch 2.11")


def test_without_results_nothing_is_claimed() -> None:
    assert {verdict for _, verdict in verdicts({}).values()} == {"not yet run"}
    assert [claim.verdict for claim in gpu.page({}).claims] == ["not yet run"]


def session(processor: str, transformers: str) -> dict[str, Any]:
    machine = {"processor": processor, "processors": 2, "memory_gib": 8, "platform": "Linux", "threads": 1}
    return {
        "date": "now", "command": "python x", "revision": "abc", "changed_source": [], "source_digest": "d",
        "machine": machine, "versions": {"transformers": transformers},
    }  # fmt: skip


def test_pages_name_the_machine_of_each_session_where_they_differ() -> None:
    entries = {"a": {"session": 0, "load_average": 1.0}, "b": {"session": 1, "load_average": 3.0}}
    amd, intel = session("AMD", "5.17"), session("Intel", "5.17")
    alike = results.origin({"sessions": [amd, amd, intel], "entries": entries})
    assert "- AMD, 2 cores, 8 GiB, Linux; load average 1.0 to 3.0" in alike and "Intel" not in alike
    differ = results.origin({"sessions": [amd, intel], "entries": entries}).splitlines()
    assert differ[4].endswith("1 thread, machine 1") and differ[5].endswith("1 thread, machine 2")
    assert differ[6] == "- machine 1: AMD, 2 cores, 8 GiB, Linux; transformers 5.17"
    assert differ[7].startswith("- machine 2: Intel")
    versions = results.origin({"sessions": [amd, session("AMD", "5.23")], "entries": entries})
    assert "machine 2: AMD, 2 cores, 8 GiB, Linux; transformers 5.23" in versions
