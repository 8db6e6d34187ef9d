"""Text from anywhere, made fit to be shown: no control characters, no secrets, no longer than a message."""

import re

CONTROL = re.compile(
    # C0 and C1 controls but for tab and line feed, marks that separate lines or reverse text, surrogates.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

SECRET = (
    r"(?:(?:hub|hf|auth|access|api|bearer|refresh|session|secret)_?token|password|passwd|secret|signature"
    r"|(?:api|access|secret|private)_?key|credentials?)"
)
"""What names of secrets end in, as a regular expression."""

_SECRETS = (
    (re.compile(r"(?<![\w+.-])([a-zA-Z][\w+.-]*://)[^/\s@]+@"), r"\1***@"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), "***"),
    (re.compile(rf"(?i)(?<![\w.-])((?:[\w.-]*[_.-])?{SECRET}|token)(=|: ?)[^\s&*]+"), r"\1\2***"),
)
"""Credentials in addresses, tokens of the hub, values of keys that name a secret; and their masks."""


def clean(text: str) -> str:
    r"""Text with control characters spelled out and secrets masked, so that data, keys and file names cannot
    steer a terminal.

    >>> clean("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return CONTROL.sub(
        lambda match: match.group().encode("unicode_escape", "surrogatepass").decode(), masked(text)
    )


def shown(value: object, most: int = 100) -> str:
    """A value as messages show it: its repr, cut short, with credentials masked."""
    try:
        text = repr(value[: most + 1] if isinstance(value, str) else value)
    except (ValueError, RecursionError):  # more digits than Python prints, a list inside itself
        text = f"a large {type(value).__name__}"
    return clipped(masked(" ".join(text.split())), most)  # arrays are shown in several lines


def clipped(text: str, most: int = 100) -> str:
    """Text cut to a length that messages can bear.

    >>> clipped("a" * 20, most=6)
    'aaa...'
    """
    return text if len(text) <= most else text[: most - 3] + "..."


def one_line(error: object, most: int = 300) -> str:
    r"""What an exception says, on one line and without a stop at its end; its class where it says nothing.

    >>> one_line(ValueError("no\n  number."), most=8), one_line(KeyError())
    ('no nu...', 'KeyError')
    """
    return clipped(" ".join(str(error).split()).rstrip(": ."), most) or type(error).__name__


def described(error: BaseException, most: int = 300) -> str:
    """An exception's class and what it says, as `one_line`."""
    return one_line(f"{type(error).__name__}: {error}", most)


def masked(text: str) -> str:
    """Text without the secrets that can be recognised in it.

    >>> masked("https://me:pass@host/x --set train.hub_token=abcdef max_new_tokens=5")
    'https://***@host/x --set train.hub_token=*** max_new_tokens=5'
    """
    for form, instead in _SECRETS:
        text = form.sub(instead, text)
    return text
