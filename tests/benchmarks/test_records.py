"""Parts of real data share nothing, whatever the records."""

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common import records
from benchmarks.common.records import LARGEST, Parts

PARTS = Parts(pretrain=6, pretrain_check=2, tune=4, rates=2, check=3)
short = st.builds(lambda n: {"question": f"q{n}", "answer": "short"}, st.integers(0, 40))
long = st.builds(lambda n: {"question": f"Q{n}", "answer": "x" * LARGEST}, st.integers(0, 40))


@given(st.lists(short | long, max_size=60))
def test_no_question_is_in_two_parts_and_fine_tuning_is_short(drawn: list[dict[str, str]]) -> None:
    dealt = records.deal(drawn, PARTS)
    questions = [record["question"].lower() for part in dealt.values() for record in part]
    assert len(questions) == len(set(questions))
    assert all(len(part) <= getattr(PARTS, name) for name, part in dealt.items())
    for part in ("check", "rates", "tune"):
        assert all(sum(map(len, record.values())) <= LARGEST for record in dealt[part])


def test_chunks_hold_every_line_once() -> None:
    text = "".join(f"line {number}: {'word ' * (number % 30)}\n" for number in range(300))
    pieces = [piece["text"] for piece in records.chunks(text)]
    assert "\n".join(pieces).split() == text.split()
    assert max(map(len, pieces)) <= records.CHUNK
    assert min(map(len, pieces[:-1])) > records.CHUNK - 200
