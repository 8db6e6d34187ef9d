"""Hostile data: how many inputs are read, or refused in a sentence, without a traceback or a hang.

    python -m benchmarks.robustness.data          # a minute on one core

Every input is one file, read with the story model's tokenizer and the most tolerant settings. An input counts
as answered if it is read, or refused by a `DataError` or `RecipeError`, within 30 seconds, and if no control
character reaches the message raw.
"""

import datetime
import decimal
import itertools
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
from transformers import AutoTokenizer

from benchmarks.common.command_line import Script
from benchmarks.common.tables import Claim, Content, Page, number, of_kind, table
from gradwise.data import Allowed, Data, Source, load
from gradwise.demo import ASSETS
from gradwise.errors import DataError, RecipeError
from gradwise.text import CONTROL

PATIENCE = 30
TOLERANT = Allowed(cut=1, empty=1, duplicate=1, unreadable=1)
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
ASKED = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yes it is"}
SOUND = [{"messages": [ASKED, ANSWER]}, {"messages": [ASKED, {**ANSWER, "content": "no"}]}]

MESSAGE_KEYS = (
    "weight", "loss", "train", "training", "trainable", "ignore", "masked", "loss_mask", "mask", "do_train",
    "label_mask", "learn", "loss_weight", "train_on", "is_masked", "no_loss", "grad", "Weight", "prefix",
    "name", "tool_call_id", "date", "images", "audio", "video", "reasoning_content", "thinking",
    "tool_calls", "function_call", "refusal",
)  # fmt: skip
VALUES = (0, 1, True, False, None, 0.5, "false", [], {})
CONVERSATIONS = (
    None, 3, "x", [], [3], [None], [[]], {}, [{"role": 3}], [{"role": "user"}],
    [{"role": "bot", "content": "x"}],
    [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
    [ASKED, {"role": "assistant", "content": 5}],
    [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "a", "weight": 0}]}],
    *([ASKED, {**ANSWER, "tool_calls": calls}] for calls in ("[", [3], [{"function": 3}])),
)  # fmt: skip
TEMPLATES = (
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**10 }}", "{{ 10**10**10 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ raise_exception('no\x1b[2J') }}",
    "{{ messages[7].content }}", "{{ messages.foo() }}", "{% for", "{{ 1/0 }}", "{{ messages|random }}",
    "{{ lipsum() }}", "{{ strftime_now('%Y') }}" + TEMPLATE, "{{ ''.__class__ }}", "{% include 'x' %}",
    "{% import 'x' as y %}", "{% extends 'x' %}", "{{ ('%' ~ '9' * 9 ~ 'd') % 1 }}",
    "{{ '{:999999999}'.format(1) }}", "x", "{{ ", "no/such/file", "{{ messages|tojson(indent=99999999) }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "{{ now() }}",
    "{% for x in cycler(1, 2) %}{% endfor %}",
    "{% set l = [] %}{% set d = [l, l, l, l] %}{{ [d, d, d, d] | string * 100000000 }}",
)  # fmt: skip
TEXTS = (
    "\ud800 x", "a\udfff", "\x00", "\x1b[2J", "\u202e", "\ufeff", "", None, float("nan"), float("inf"), 3,
    True, [], {}, "a" * 20_000_000, "a " * 10_000_000, "é" * 5_000_000, " " * 20_000_000, "<s>" * 100_000,
)  # fmt: skip
WEIGHTS = (
    "1" + "0" * 400, "1e400", "-1", "0", "NaN", "Infinity", "true", '"x"', "null", "[]", '"1e400"', "1e308",
    "1e-320",
)  # fmt: skip
FILE_NAMES = (
    "a.jsonl", "a.json", "a.csv", "a.parquet", "a.txt", "a", "a.jsonl.gz", "a\x1b[2J.jsonl", "\u202e.jsonl",
    os.fsdecode(b"\xff.jsonl"), "a\n.jsonl",
)  # fmt: skip
TWO = b'{"text": "a b"}\n{"text": "c d"}\n'
CONTENTS = (
    b"", b"\n", TWO, b"\x00" * 50, b"\xff\xfe" + TWO, b"PK\x03\x04", b"PAR1" + b"x" * 50 + b"PAR1", TWO[:-9],
    b"[" + TWO.replace(b"\n", b",", 1) + b"]", b"[" * 100_000, b'{"text": ' * 50_000, b'{"a": "\xff"}\n',
    b'text\n"unclosed', b"text,text\n1,2\n", b"text\na\nb\n", b"{\n", b"1\n2\n",
)  # fmt: skip
COLUMNS = (
    ([b"a", b"b"], pa.binary()), ([1, 2], pa.int64()), ([1.5, float("nan")], pa.float64()),
    ([datetime.date(2020, 1, 1)] * 2, pa.date32()), ([datetime.datetime(2020, 1, 1)] * 2, pa.timestamp("ns")),
    ([decimal.Decimal("1.5")] * 2, pa.decimal128(5, 2)), ([["a"], ["b"]], pa.list_(pa.string())),
    ([None, None], pa.null()), (["x", "y"], pa.large_string()), ([True, False], pa.bool_()),
)  # fmt: skip


class Input(NamedTuple):
    """A file and the settings that it is read with."""

    write: Callable[[Path], Path]
    """Writes the file into a folder; returns its path."""
    settings: dict[str, Any]


def message_keys() -> Iterator[Input]:
    for key, value in itertools.product(MESSAGE_KEYS, VALUES):
        yield _records([{"messages": [ASKED, {**ANSWER, key: value}, ASKED, ANSWER]}, *SOUND])


def conversations() -> Iterator[Input]:
    for messages in CONVERSATIONS:
        yield _records([{"messages": messages}, *SOUND])


def templates() -> Iterator[Input]:
    for template, loss_on in itertools.product(TEMPLATES, ("completion", "all")):
        yield _records(SOUND, chat_template=template, loss_on=loss_on)


def texts() -> Iterator[Input]:
    sound = [{"text": "Once upon a time."}, {"text": "The end of it."}]
    for value in TEXTS:
        yield _records([{"text": value}, *sound])
        if isinstance(value, str) and len(value) > 99:
            continue
        pair = {"prompt": "a", "completion": "b"}
        yield _records([{**pair, "completion": value}, {**pair, "prompt": value}, pair])
        yield _records([{"text": "x", "domain": value}, *sound])
        yield _records([{"messages": [ASKED, {**ANSWER, "content": value}]}, *SOUND])
        yield _records([{"text": "x", str(value): 1}, *sound])


def weights() -> Iterator[Input]:
    for weight in WEIGHTS:
        lines = '{"text": "a b", "w": %s}\n{"text": "c d", "w": 1}\n{"text": "c e", "w": 1}\n' % weight  # noqa: UP031
        yield _file(lines.encode(), fields={"weight": "w"})


def files() -> Iterator[Input]:
    for name, content in itertools.product(FILE_NAMES, CONTENTS):
        yield _file(content, name)


def parquet_columns() -> Iterator[Input]:
    broken = pa.array([b"ok one", b"\xff\xfe", b"ok two"], pa.binary()).view(pa.string())
    yield _table(broken)
    for values, kind in COLUMNS:
        yield _table(pa.array(values, kind))


KINDS: dict[str, Callable[[], Iterator[Input]]] = {
    "keys of a message": message_keys,
    "malformed conversations": conversations,
    "chat templates": templates,
    "texts, as text, prompt, completion, domain, message and key": texts,
    "weights": weights,
    "names and contents of files": files,
    "Parquet columns": parquet_columns,
}


def _file(content: bytes, name: str = "a.jsonl", **settings: Any) -> Input:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return Input(write, settings)


def _records(rows: list[Any], **settings: Any) -> Input:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return _file(lines.encode("utf-8", "surrogatepass"), **settings)


def _table(column: pa.Array) -> Input:
    def write(folder: Path) -> Path:
        pyarrow.parquet.write_table(pa.table({"text": column}), folder / "a.parquet")
        return folder / "a.parquet"

    return Input(write, {})


def outcome(case: Input, tokenizer: Any) -> str:
    """'read', 'refused', or what went wrong."""
    fields = case.settings.get("fields", {})
    data_settings = {key: value for key, value in case.settings.items() if key != "fields"}
    settings: dict[str, Any] = {"allow": TOLERANT, "chat_template": TEMPLATE} | data_settings
    with tempfile.TemporaryDirectory() as folder:
        path = case.write(Path(folder))
        signal.alarm(PATIENCE)
        try:
            data = Data(train=Source(str(path), fields=fields), **settings)
            result, text = "read", str(load(data, "train", tokenizer, progress=False).report)
        except (DataError, RecipeError) as error:
            result, text = "refused", str(error)
        except BaseException as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            signal.alarm(0)
    return "a control character in the message" if CONTROL.search(text) else result


def measure(kind: str) -> dict[str, Any]:
    """All inputs of a kind: how many were read, were refused, and failed."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "stories260K")
    outcomes, slowest = [], 0.0
    for case in KINDS[kind]():
        start = time.perf_counter()
        outcomes.append(outcome(case, tokenizer))
        slowest = max(slowest, time.perf_counter() - start)
    failed = [each for each in outcomes if each not in ("read", "refused")]
    return {
        "tried": len(outcomes),
        "read": outcomes.count("read"),
        "refused": outcomes.count("refused"),
        "failed": failed,
        "slowest_seconds": round(slowest, 2),
    }


def page(content: Content) -> Page:
    entries = of_kind(content, "data")
    rows = [
        [kind, *(str(entry[name]) for name in ("tried", "read", "refused")), str(len(entry["failed"])),
         number(entry["slowest_seconds"], 1)]
        for kind, entry in entries.items()
    ]  # fmt: skip
    tried = sum(entry["tried"] for entry in entries.values())
    failed = sum(len(entry["failed"]) for entry in entries.values())
    return Page(
        sections=[table(["input", "tried", "read", "refused", "failed", "slowest (s)"], rows)],
        claims=[Claim("Hostile data that are read or refused in a sentence", f"{tried - failed} of {tried}")],
    )


SCRIPT = Script(__doc__, "robustness-data")


def _expired(*_: Any) -> None:
    raise TimeoutError(f"not answered within {PATIENCE} seconds")


def main() -> None:
    _, result = SCRIPT.start()
    signal.signal(signal.SIGALRM, _expired)
    for kind in KINDS:
        result.once(f"data/{kind}", lambda kind=kind: measure(kind))


if __name__ == "__main__":
    main()
