"""`benchmarks/small_data.py`: parts that share nothing, whatever the records."""

import importlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

small_data: Any = importlib.import_module("small_data")

PARTS = small_data.Parts(pretrain=6, pretrain_check=2, tune=4, rates=2, check=3)
short = st.builds(lambda n: {"question": f"q{n}", "answer": "short"}, st.integers(0, 40))
long = st.builds(lambda n: {"question": f"Q{n}", "answer": "x" * small_data.LARGEST}, st.integers(0, 40))


@given(st.lists(short | long, max_size=60))
def test_no_question_is_dealt_twice_and_fine_tuning_is_short(records: list[dict[str, str]]) -> None:
    dealt = small_data.deal(records, PARTS)
    asked = [record["question"].lower() for part in dealt.values() for record in part]
    assert len(asked) == len(set(asked))
    assert all(len(part) <= getattr(PARTS, name) for name, part in dealt.items())
    for part in ("check", "rates", "tune"):
        assert all(sum(map(len, record.values())) <= small_data.LARGEST for record in dealt[part])


def test_chunks_hold_every_line_once() -> None:
    text = "".join(f"line {number}: {'word ' * (number % 30)}\n" for number in range(300))
    pieces = [piece["text"] for piece in small_data.chunks(text)]
    assert "\n".join(pieces).split() == text.split()
    assert max(map(len, pieces)) <= small_data.CHUNK
    assert min(map(len, pieces[:-1])) > small_data.CHUNK - 200
