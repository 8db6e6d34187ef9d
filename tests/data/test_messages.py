"""Conversations: every key of a message is obeyed or refused; none is dropped in silence."""

from typing import Any

import pytest

from gradwise.data.formats import Chat
from gradwise.data.messages import continued, conversation, from_sharegpt
from gradwise.data.records import UnreadableError
from gradwise.data.tokenise import Tokeniser, Tokens

from .templates import MARKED, UNMARKED

ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


def saying(**keys: Any) -> Chat:
    """Two turns of the assistant, the second with these keys."""
    return conversation([ASK, {"role": "assistant", "content": "first"}, ASK, SAY | keys])


def learned(tokenizer: Any, chat: Chat, template: str, **settings: Any) -> str:
    (found,) = Tokeniser(tokenizer, 1000, chat_template=template, **settings)([chat])
    assert isinstance(found, Tokens), found
    return tokenizer.decode([int(token) for token in found.labels if token >= 0])


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
@pytest.mark.parametrize(
    ("keys", "is_learned"),
    [
        *[
            ({key: value}, True)
            for key in ("weight", "loss", "train", "training")
            for value in (1, True, 1.0)
        ],
        *[({key: value}, False) for key in ("weight", "loss", "train", "trainable") for value in (0, False)],
        *[({key: value}, not value) for key in ("ignore", "masked") for value in (0, 1, True, False)],
        ({"weight": None, "loss": None}, True),
        ({"weight": 0, "train": False, "masked": True}, False),
        ({"name": "bot", "id": 7, "timestamp": "now", "refusal": None}, True),
    ],
)
def test_a_turn_says_whether_it_is_learned(stories, template, keys, is_learned):
    labels = learned(stories, saying(**keys), template)
    assert labels == "first<|end|>\n" + ("hello<|end|>\n" if is_learned else "")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"weight": 0.5}, "message 4 has `weight` other than 0, 1, true or false"),
        ({"train": "no"}, "message 4 has `train` other than"),
        ({"weight": float("inf")}, "message 4 has `weight` other than"),
        ({"weight": 1, "ignore": True}, "message 4 has keys that contradict each other: weight, ignore"),
        *[
            ({key: 0}, f"message 4 has `{key}`, which gradwise does not know; mark turns")
            for key in (
                "mask",
                "loss_mask",
                "Loss_Weight",
                "weights",
                "train_detail",
                "ignore_loss",
                "no_grad",
            )
        ],
        ({"images": ["x.png"]}, "message 4 has `images`; gradwise trains on text alone"),
        ({"content": [{"type": "image"}]}, "message 4 has content other than text"),
        ({"content": [{"type": "text", "text": "a", "mask": 1}]}, "`mask` in a part of its content"),
        ({"content": {"text": "a"}}, "message 4 has no text in `content`"),
        ({"reasoning_content": ["a"]}, "message 4 has reasoning that is not text"),
        ({"tool_calls": {"name": "f"}}, "message 4 has tool calls that are not a list"),
        ({"tool_calls": ["f"]}, "message 4 has a tool call that is not an object"),
        ({"tool_calls": "{"}, "the field for tool_calls holds text that is not JSON"),
        (
            {"tool_calls": [{"name": "f", "arguments": "{"}]},
            "arguments of a tool call in message 4 hold text",
        ),
        ({"function_call": {"name": "f", "arguments": "[1]"}}, "message 4 has arguments .* not an object"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(keys, problem):
    with pytest.raises(UnreadableError, match=problem):
        saying(**keys)


def test_only_the_assistant_can_be_learned(stories):
    with pytest.raises(UnreadableError, match="message 1 of the role user asks to be learned with `loss`"):
        conversation([ASK | {"loss": True}, SAY])
    assert conversation([ASK | {"loss": False}, SAY]).turns == [1]
    (refused,) = Tokeniser(stories, 99, chat_template=MARKED, loss_on="all")([saying(weight=0)])
    assert "message 4 says that it is not learned, but data.loss_on is `all`" in str(refused)


def test_flags_of_a_prompt_and_of_a_completion_count_from_its_start():
    chat = continued([ASK, SAY, ASK], [SAY | {"weight": 0}, ASK, SAY])
    assert (chat.first, chat.unlearned, chat.turns) == (3, {3}, [5])
    assert continued([ASK], [SAY | {"weight": 0}]).blank


def test_arguments_and_schemas_as_json_text_are_decoded():
    for call in ({"name": "f", "arguments": '{"a": [1, NaN]}'}, {"name": "f", "arguments": {"a": [1, None]}}):
        (found,) = saying(content=None, tool_calls=[{"type": "function", "function": call}]).messages[3][
            "tool_calls"
        ]
        assert found == {"type": "function", "function": {"name": "f", "arguments": {"a": [1, None]}}}
    assert saying(content=None, function_call={"name": "f", "arguments": " "}).messages[3][
        "function_call"
    ] == {
        "name": "f",
        "arguments": {},
    }
    schema = {"name": "f", "parameters": {"type": "object"}}
    for tools in ([schema], '[{"name": "f", "parameters": "{\\"type\\": \\"object\\"}"}]'):
        assert conversation([ASK, SAY], tools).tools == [schema]
    with pytest.raises(UnreadableError, match="lists a int; objects are needed"):
        conversation([ASK, SAY], [1])


def test_reasoning_reaches_the_template_under_every_name(stories):
    template = "{% for m in messages %}{{ m.role }}{{ m.KEY or '' }}{{ m.content }}{% endfor %}"
    for given in ("reasoning_content", "thinking", "reasoning"):
        chat = conversation([ASK, SAY | {given: "hm"}])
        for read in ("reasoning_content", "thinking"):
            assert "hm" in learned(stories, chat, template.replace("KEY", read), loss_on="all")


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        (
            saying(tool_calls=[{"name": "f"}]),
            "message 4 has `tool_calls`, which the chat template does not write",
        ),
        (saying(function_call={"name": "f"}), "message 4 has `function_call`, which"),
        (saying(thinking="hm"), "message 4 has `reasoning_content`, which"),
        (conversation([ASK, SAY], [{"name": "f"}]), "it has tools, which the chat template does not write"),
    ],
)
def test_what_a_template_would_drop_is_refused(stories, chat, problem):
    (refused,) = Tokeniser(stories, 99, chat_template=UNMARKED)([chat])
    assert isinstance(refused, UnreadableError)
    assert problem in str(refused)


def test_what_a_template_leaves_out_is_noted(stories):
    tokenise = Tokeniser(stories, 99, chat_template=UNMARKED.replace("m.content", "m.content.split('|')[0]"))
    tokenise([saying(id=1, name="bot"), conversation([ASK, {"role": "assistant", "content": "a|b"}])])
    assert tokenise.chat.notes == [
        "keys of messages that the chat template does not write: id, name",
        "turns of the assistant that the chat template does not write word for word: 1",
    ]


def test_marks_without_a_turn_each_are_distinguished_by_the_prompt(stories):
    marked = "{% generation %}{{ m.content }}"
    twice = MARKED.replace(marked, marked + "{% endgeneration %}\n{% generation %}")
    assert learned(stories, saying(), twice) == "first<|end|>\nhello<|end|>\n"
    assert learned(stories, saying(weight=0), twice) == "first<|end|>\n"


@pytest.mark.parametrize("speaker", [["human"], {"a": 1}, None, 1])
def test_a_speaker_is_a_word(speaker):
    with pytest.raises(UnreadableError, match=r"turn 1 is from .*; known are"):
        from_sharegpt([{"from": speaker, "value": "hi"}, {"from": "gpt", "value": "x"}])
