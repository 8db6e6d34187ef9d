"""Conversations: what the keys of a message mean, and which turns are learned.

    role                  system, developer, user, assistant, tool or function
    content               text, or a list of parts of the type `text`, which are joined
    tool_calls            goes to the chat template; arguments that are JSON text are decoded first
    function_call         the same, in its older form
    reasoning_content     goes to the chat template; also under the names `thinking` and `reasoning`
    weight, loss, train,  0 or false: this turn is not learned
      training, trainable
    ignore, masked        1 or true: this turn is not learned
    images, audio, ...    refused, since gradwise trains on text
    any other key         goes to the chat template

ShareGPT's `from` and `value` stand for role and content; human and gpt are the user and the assistant there.

A null is a key that is not there. Only the assistant's turns are learned, and of those only the ones that say
something. A key that sounds like a mask and is not in this list is refused, because trainers differ in what
such keys mean. `tools` beside the messages goes to the chat template too. What a chat template must write and
does not (tool calls, reasoning, tools) is refused as well; see `gradwise.data.chat`.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gradwise.data.records import UnreadableError, few

REASONING = ("reasoning_content", "thinking", "reasoning")
_SHAREGPT = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
_SPEAKERS = ("system", "developer", "user", "assistant", "tool", "function")
_LEARNED = ("weight", "loss", "train", "training", "trainable")
_NOT_LEARNED = ("ignore", "masked")
_MASK = re.compile("(^|_)(loss|masks?|masked|train|training|trainable|weights?|ignore|learn|grad)(_|$)")
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")


@dataclass(frozen=True)
class Chat:
    """A conversation as a chat template takes it. Messages before number `first` are a prompt; `unlearned`
    are numbers of messages whose own keys say that they are not learned."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    first: int = 0
    unlearned: frozenset[int] = frozenset()

    @cached_property
    def turns(self) -> list[int]:
        """Numbers of the messages to learn: the assistant's that say something."""
        return [
            number
            for number, message in enumerate(self.messages)
            if number >= self.first and number not in self.unlearned and _is_said(message)
        ]

    @property
    def blank(self) -> bool:
        """Whether there are turns of the assistant, and none of them is learned."""
        spoken = any(message["role"] == "assistant" for message in self.messages[self.first :])
        return spoken and not self.turns


def conversation(messages: object, tools: object = None) -> Chat:
    """A conversation to learn from all of the assistant's turns; raises UnreadableError."""
    turns, unlearned = _messages(messages, "messages")
    return Chat(turns, _tools(tools), 0, frozenset(unlearned))


def continued(prompt: object, completion: object, tools: object = None) -> Chat:
    """A conversation whose completion alone is learned; raises UnreadableError."""
    before, _ = _messages(prompt, "prompt")
    after, unlearned = _messages(completion, "completion")
    first = len(before)
    return Chat(before + after, _tools(tools), first, frozenset(first + number for number in unlearned))


def from_sharegpt(turns: Any, system: Any = None) -> list[Any]:
    """Messages of ShareGPT's turns; those that have roles already stay; raises UnreadableError."""
    items = _parsed(turns, "conversations")
    if not isinstance(items, list) or not items:
        raise UnreadableError("the field for conversations must hold a list of turns with `from` and `value`")
    messages = [_from_sharegpt(turn, number + 1) for number, turn in enumerate(items)]
    spoken = isinstance(system, str) and system.strip()
    return [{"role": "system", "content": system}, *messages] if spoken else messages


def _from_sharegpt(turn: Any, number: int) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    speaker, value = turn["from"], turn.get("value")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT:
        raise UnreadableError(
            f"turn {number} is from {str(speaker)[:40]!r}; known are {', '.join(_SHAREGPT)}"
        )
    rest = {key: item for key, item in turn.items() if key not in ("from", "value")}
    if speaker == "function_call":
        return {**rest, "role": "assistant", "tool_calls": [_parsed(value, f"the call in turn {number}")]}
    return {**rest, "role": _SHAREGPT[speaker], "content": value}


def _is_said(message: dict[str, Any]) -> bool:
    calls = message.get("tool_calls") or message.get("function_call") or message.get(REASONING[0])
    return message["role"] == "assistant" and bool(calls or message.get("content", "").strip())


def _messages(value: object, role: str) -> tuple[list[dict[str, Any]], list[int]]:
    items = _parsed(value, role)
    if not isinstance(items, list) or not items:
        raise UnreadableError(f"the field for {role} must hold a list of messages with `role` and `content`")
    messages, unlearned = [], []
    for number, item in enumerate(items):
        message = _message(item, number + 1)
        if not _learned(message, number + 1):
            unlearned.append(number)
        messages.append({key: value for key, value in message.items() if not _is_flag(key)})
    return messages, unlearned


def _message(value: object, number: int) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        description = few(list(value)) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise UnreadableError(
            f"message {number} has no `role`; an object with `role` and `content` is needed, found: "
            f"{description}"
        )
    message = {key: item for key, item in value.items() if item is not None}
    if message["role"] not in _SPEAKERS:
        raise UnreadableError(
            f"message {number} has the role {message['role'][:40]!r}; known are {', '.join(_SPEAKERS)}"
        )
    if media := [key for key in _MEDIA if message.pop(key, None)]:
        raise UnreadableError(f"message {number} has `{media[0]}`; gradwise trains on text alone")
    message = _with_calls(_with_reasoning(message, number), number)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(_part(part, number) for part in content)
    elif not isinstance(content, str) and not (content is None and _is_said(message)):
        raise UnreadableError(f"message {number} has no text in `content`")
    return message


def _part(part: object, number: int) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        if masks := [key for key, item in part.items() if item is not None and _MASK.search(key)]:
            raise UnreadableError(f"message {number} has `{masks[0]}` in a part of its content; {_INSTEAD}")
        return part["text"]
    raise UnreadableError(f"message {number} has content other than text")


def _with_reasoning(message: dict[str, Any], number: int) -> dict[str, Any]:
    """A message whose reasoning stands under both names by which chat templates read it."""
    texts = [message.pop(key) for key in REASONING if key in message]
    if any(not isinstance(text, str) for text in texts):
        raise UnreadableError(f"message {number} has reasoning that is not text")
    text = next((text for text in texts if text.strip()), None)
    return message if text is None else {**message, "thinking": text, "reasoning_content": text}


def _with_calls(message: dict[str, Any], number: int) -> dict[str, Any]:
    calls = _parsed(message.pop("tool_calls", None), "tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise UnreadableError(f"message {number} has tool calls that are not a list")
    if calls:
        message["tool_calls"] = [_call(call, number) for call in calls]
    if call := message.pop("function_call", None):
        message["function_call"] = _call(call, number)
    return message


def _call(call: Any, number: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise UnreadableError(f"message {number} has a tool call that is not an object")
    raw_arguments = function.get("arguments")
    if not isinstance(raw_arguments, str):
        return call
    # Many templates write arguments with `tojson`, which would put a JSON text into quotes once more.
    arguments = (
        _parsed(raw_arguments.strip() or "{}", f"the arguments of a tool call in message {number}") or {}
    )
    if not isinstance(arguments, dict):
        raise UnreadableError(f"message {number} has arguments of a tool call that are not an object")
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


_INSTEAD = "mark turns that are not learned with `weight: 0`"


def _is_flag(key: str) -> bool:
    return key in _LEARNED or key in _NOT_LEARNED


def _learned(message: dict[str, Any], number: int) -> bool:
    """Whether a message's own keys let it be learned; raises UnreadableError where that is not clear."""
    unknown = [key for key in message if _MASK.search(key.lower()) and not _is_flag(key)]
    if unknown:
        raise UnreadableError(
            f"message {number} has `{unknown[0]}`, which gradwise does not know; {_INSTEAD}"
        )
    flags = {key: message[key] for key in message if _is_flag(key)}
    for key, value in flags.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise UnreadableError(f"message {number} has `{key}` other than 0, 1, true or false")
    learned = {bool(value) == (key in _LEARNED) for key, value in flags.items()}
    if len(learned) > 1:
        raise UnreadableError(f"message {number} has keys that contradict each other: {', '.join(flags)}")
    if True in learned and message["role"] != "assistant":
        raise UnreadableError(
            f"message {number} of the role {message['role']} asks to be learned with `{next(iter(flags))}`; "
            "only the assistant's turns are, or everything with data.loss_on: all"
        )
    return False not in learned


def _tools(value: object) -> list[Any] | None:
    tools = _parsed(value or None, "tools")
    if tools is not None and not isinstance(tools, list):
        raise UnreadableError(f"the field for tools holds a {type(tools).__name__}; a list is needed")
    return [_tool(tool) for tool in tools] if tools else None


def _tool(value: object) -> dict[str, Any]:
    tool = _parsed(value, "tools")
    if not isinstance(tool, dict):
        raise UnreadableError(f"the field for tools lists a {type(tool).__name__}; objects are needed")
    function = tool.get("function", tool)
    if not isinstance(function, dict) or not isinstance(function.get("parameters"), str):
        return tool
    function = {**function, "parameters": _parsed(function["parameters"], "the parameters of a tool")}
    return {**tool, "function": function} if "function" in tool else function


def _parsed(value: object, role: str) -> Any:
    """The value of a JSON text, which some tables have in place of lists and objects; others unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        subject = f"the field for {role} holds" if " " not in role else f"{role} hold"
        raise UnreadableError(f"{subject} text that is not JSON") from None
