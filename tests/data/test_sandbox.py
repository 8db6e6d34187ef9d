"""Templates: the same text as transformers renders, and an end for those that have none."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from gradwise.data import sandbox
from gradwise.data.chat import DATE, ChatTemplate
from gradwise.data.messages import conversation
from gradwise.data.records import UnreadableError
from gradwise.data.sandbox import RunawayError, Sandbox
from gradwise.errors import DataError
from gradwise.evaluation.templates import Template

from .templates import MARKED, SHIFTING, UNMARKED

BOX = Sandbox()

GROWING = [
    "{% set ns.s = ns.s ~ ns.s %}",
    "{% set ns.s = ns.s + ns.s %}",
    "{% set ns.s = ns.s * 2 %}",
    "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}",
    "{% set ns.s = '%s%s' % (ns.s, ns.s) %}",
    "{% set ns.s = '{}{}'.format(ns.s, ns.s) %}",
    "{% set ns.s = ns.s.replace('a', 'aa') %}",
    "{% set ns.s = ns.s|replace('a', 'aa') %}",
    "{% set ns.s = ns.s.join([ns.s, ns.s]) %}",
    "{% set ns.s = [ns.s, ns.s]|join(ns.s) %}",
    "{% set ns.s = [ns.s, ns.s] %}",
    "{% set ns.s = (ns.s, ns.s) %}",
    "{% set ns.s = {'a': ns.s, 'b': ns.s} %}",
    "{% set ns.s = dict(a=ns.s, b=ns.s) %}",
    "{% set ns.s = namespace(a=ns.s, b=ns.s) %}",
]
_GROW = "{% set ns = namespace(s='a') %}{% for i in range(99) %}STEP{% endfor %}{{ ns.s }}"
_LOOPS = "{% for a in range(99999) %}BODY{% endfor %}"
BODIES = [
    "{% for b in range(99999) %}{% endfor %}",
    "y" * 9999,
    "{{ range(99999)|sum }}",
    "{{ range(99999)|map('string')|join }}",
    "{% for b in range(99999)|select('odd') %}{% endfor %}",
]
EXPRESSIONS = [
    "'a' * 10**10",
    "[1] * 10**9",
    "2**(10**9)",
    "'a'.center(10**10)",
    "'a'|center(width=10**10)",
    "'%9999999999d' % 1",
    "'%*d' % (10**10, 1)",
    "'{:9999999999d}'.format(1)",
    "'{:{}}'.format(1, 10**10)",
    "'a\tb'.expandtabs(10**10)",
    "'a\nb'|indent(10**10)",
    "[1]|batch(10**9, 'x')|list",
    "[1]|slice(10**9)|list",
    "{'a': 1}|tojson(indent=10**10)",
    "('a ' * 99999)|wordwrap(1, wrapstring='x' * 99999)",
]
ENDLESS = [
    *(_GROW.replace("STEP", step) for step in GROWING),
    *(_LOOPS.replace("BODY", body) for body in BODIES),
    *("{{ " + expression + " }}" for expression in EXPRESSIONS),
    "{% set ns = namespace(s=3) %}{% for i in range(99) %}{% set ns.s = ns.s * ns.s %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for a in [0] recursive %}{% if loop.depth < 4 %}{{ loop([0] * 999) }}{% endif %}{% endfor %}",
]


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "STEPS", 100_000)
    BOX.refill({})


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_without_an_end_is_stopped(template):
    """After the same number of steps on every machine, and before it takes gigabytes."""
    with pytest.raises(RunawayError, match="does not end: it was stopped after 100,000 steps"):
        BOX.from_string(template).render()


@pytest.mark.parametrize(
    "expression", ["lipsum()", "[1, 2]|random", "'a'.translate({97: 'b'})", "''.__class__.mro"]
)
def test_what_changes_from_time_to_time_or_leaves_the_sandbox_is_not_there(expression):
    with pytest.raises(Exception, match=r"undefined|No filter named|unsafe"):
        BOX.from_string("{{ " + expression + " }}").render()


def test_long_inputs_get_more_steps():
    compiled = BOX.from_string("{% for m in messages %}{% for c in m %}{{ c }}{% endfor %}{% endfor %}")
    messages = ["abc" * 100] * 1000
    BOX.refill({"messages": messages})
    assert compiled.render(messages=messages) == "".join(messages)


FEATURES = [
    MARKED,
    UNMARKED,
    SHIFTING,
    "{% set u = messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|map('trim')|list %}"
    "{{ u|join('\n') }}{{ u[-1:] }}{{ messages[1:]|length }}{{ messages|map(attribute='role')|join(',') }}",
    "{% set kept = [] %}{% for m in messages %}{% set kept = kept + [m] %}{{ kept|length }}{% endfor %}",
    "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.role %}{% endfor %}{{ ns }}",
    "{%- macro shown(m, tail='') -%}{{ m | tojson(indent=2) }}{{ tail }}{%- endmacro -%}"
    "{% for m in messages %}{{ shown(m, tail=loop.index) }}{{ loop.previtem if loop.previtem }}{% endfor %}",
    "{% for m in messages %}{% for k, v in m|items %}{{ k }}={{ v|tojson }}{{ ', ' if not loop.last }}"
    "{% endfor %}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}{{ strftime_now('%d %b %Y') }}",
    "{{ '%s-%d' % (messages[0].role, messages|length) }}{{ '{}:{}'.format(1, 'a') }}{{ 3 * 'ab' }}{{ 2**5 }}",
    "{{ (1, 2)[0] }}{{ dict(a=1) }}{{ {'a': [1, 2.5, none]}|tojson }}{% set x %}{{ messages }}{% endset %}",
    "{% set x %}b{% endset %}{{ x|upper }}{{ messages|batch(2)|list }}{{ messages[0].content|indent(2) }}",
    "{% for a in [[1, [2]], 3] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}{{ nothing }}",
]
TEXT = st.text(st.sampled_from("ab \n\t'\"{}<>é\u3042"), max_size=12).map(lambda text: text + ".")


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, min_size=2, max_size=5))
@pytest.mark.parametrize("template", FEATURES)
def test_the_text_is_what_transformers_renders(stories, template, texts):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", _Clock)
        theirs = stories.apply_chat_template(messages, chat_template=template, tokenize=False)
        asking = stories.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    ours = ChatTemplate(stories, template)
    assert ours.write(conversation(messages)).text == theirs
    assert ours.prompt(messages) == asking


class _Clock:
    @staticmethod
    def now() -> Any:
        return DATE


def test_a_date_is_the_same_every_day_and_is_noted(stories):
    template = ChatTemplate(stories, "{{ strftime_now('%Y-%m-%d %H:%M') }}{{ messages[0].content }}")
    chat = conversation([{"role": "user", "content": "a"}])
    assert template.write(chat).text == "2024-07-26 00:00a"
    assert template.notes == ["the chat template asks for today's date; it always gets 26 July 2024"]


@pytest.mark.parametrize(
    ("template", "kind", "problem"),
    [
        ("{{ raise_exception('no ' ~ messages[0].role) }}", UnreadableError, r"refuses it \(no user\)"),
        ("{{ 1 + 'a' }}", UnreadableError, "refuses it .unsupported operand"),
        ("{{ nothing.here }}", UnreadableError, "refuses it .'nothing' is undefined"),
        ("{{ 1 // 0 }}", UnreadableError, "refuses it .integer division"),
        ("{{ range(10**9) }}", UnreadableError, "refuses it .Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", UnreadableError, "calls itself without end"),
        ("{% include 'x' %}", UnreadableError, "refuses it"),
        (ENDLESS[0], DataError, r"data\.chat_template: the template does not end"),
        ("{% for %}", DataError, "not valid Jinja, line 1"),
        ("{% if x %}", DataError, "not valid Jinja, line 1"),
        ("{{ x|no_such_filter }}", DataError, "not valid Jinja, line 1: No filter named"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, DataError, "cannot be compiled"),
        ("{{ " + "(" * 5000 + " }}", DataError, "cannot be compiled"),
    ],
)
def test_a_template_that_fails_gives_one_sentence(stories, template, kind, problem):
    with pytest.raises(kind, match=problem) as error:
        ChatTemplate(stories, template).write(conversation([{"role": "user", "content": "a"}]))
    assert type(error.value) is kind


def test_templates_of_tasks_run_in_the_same_sandbox():
    with pytest.raises(DataError, match="does not end"):
        Template(ENDLESS[0], "key").text({"a": 1})
    with pytest.raises(DataError, match="does not end"):
        Template("{{ 'a' * 10**10 }}", "key").value({"a": 1})
    assert Template("{{ a ~ 'b' }}", "key").value({"a": 1}) == "1b"
