"""Tokenising: the labels spell the completion and nothing else, whatever the tokenizer."""

import json
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from gradwise.data.formats import Chat, Pair, Text
from gradwise.data.records import UnreadableError
from gradwise.data.tokenise import Tokeniser, Tokens
from gradwise.errors import DataError

from .templates import MARKED, SHIFTING, UNMARKED

LONG = 100_000


def tokens(tokenizer, sample, max_length: int = LONG, **given) -> Tokens:
    (found,) = Tokeniser(tokenizer, max_length, **given)([sample])
    assert isinstance(found, Tokens), found
    return found


def spelled(tokenizer, ids) -> str:
    return tokenizer.decode([int(token) for token in ids if token >= 0])


def pair(prompt: str, completion: str) -> Pair:
    return Pair(prompt, completion, ask=prompt)


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


def test_labels_of_gsm8k_spell_the_answers(tokenizer, shared):
    lines = (shared / "gsm8k" / "test.jsonl").read_text().splitlines()[:60]
    records = [json.loads(line) for line in lines]
    pairs = [pair(f"{record['question']}\n", record["answer"]) for record in records]
    for asked, found in zip(pairs, Tokeniser(tokenizer, LONG)(pairs), strict=True):
        assert isinstance(found, Tokens)
        assert spelled(tokenizer, found.labels) == asked.completion + tokenizer.eos_token
        assert spelled(tokenizer, found.ids) == asked.prompt + asked.completion + tokenizer.eos_token
        assert ((found.labels == found.ids) | (found.labels == -100)).all()


def test_whole_text_is_tokenised_at_once(tokenizer):
    """Joined apart, prompt and completion would give tokens the model does not meet in use."""
    found = tokens(tokenizer, pair("The answer is", " forty-two."))
    joint = tokenizer("The answer is forty-two.")["input_ids"]
    assert found.ids.tolist()[: len(joint)] == joint


def test_a_token_across_the_border_belongs_to_the_completion(stories):
    text, ids = "Once upon a time", stories("Once upon a time", return_offsets_mapping=True)
    start, end = max(ids["offset_mapping"], key=lambda span: span[1] - span[0])
    assert end - start > 2
    found = tokens(stories, pair(text[: start + 2], text[start + 2 :]))
    assert spelled(stories, found.labels).strip() == text[start:].strip() + "</s>"


@pytest.mark.parametrize("completion", [" a\n\n", "  a", "\n\n \n", "a \n", "\t"])
def test_white_space_of_the_completion_is_learned(trimming, completion):
    """Its tokens have empty offsets, just after their character."""
    found = tokens(trimming, pair("Q:", completion))
    assert spelled(trimming, found.labels) == completion + "<|eos|>"


PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=0x24F), max_size=30)


@settings(max_examples=80, deadline=None)
@given(PRINTABLE, PRINTABLE.filter(str.strip))
def test_labels_hold_the_completion_and_at_most_one_token_more(trimming, prompt, completion):
    """What is masked decodes to a beginning of the prompt, what is learned to an end of the text."""
    found = tokens(trimming, pair(prompt, completion))
    learned = found.labels != -100
    assert (np.diff(learned.astype(int)) >= 0).all()
    raw = trimming.backend_tokenizer.decoder
    pieces = trimming.convert_ids_to_tokens(found.ids[learned][:-1].tolist())
    masked = trimming.convert_ids_to_tokens(found.ids[~learned].tolist())
    assert (prompt + completion).endswith(raw.decode(pieces[1:])) or "\ufffd" in raw.decode(pieces[1:])
    assert len(raw.decode(masked)) <= len(prompt)
    assert len(raw.decode(pieces)) >= len(completion)


@pytest.mark.filterwarnings("ignore:This sequence already has")
def test_the_end_token_is_there_once_and_learned(tokenizer):
    end = tokenizer.eos_token
    for sample in (Text("hi"), Text(f"hi{end}"), pair("a", "b"), pair("a", f"b{end}")):
        found = tokens(tokenizer, sample)
        assert found.ids.tolist().count(tokenizer.eos_token_id) == 1
        assert found.labels[-1] == tokenizer.eos_token_id


def test_an_end_token_the_tokenizer_adds_is_learned(trimming):
    """It stands for no characters, so its offsets say nothing."""
    adding = deepcopy(trimming)
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|eos|>", special_tokens=[("<|eos|>", adding.eos_token_id)]
    )
    found, plain = tokens(adding, pair("a", "b")), tokens(trimming, pair("a", "b"))
    assert adding("a")["input_ids"][-1] == adding.eos_token_id
    assert (found.ids.tolist(), found.labels.tolist()) == (plain.ids.tolist(), plain.labels.tolist())


def test_the_begin_token_is_the_tokenizers_affair(stories):
    begins = stories.bos_token_id
    assert tokens(stories, Text("hi")).ids[0] != begins
    assert tokens(stories, Text("<s>hi")).ids[0] == begins


def test_loss_on_all_and_texts_learn_every_token(tokenizer):
    for found in (tokens(tokenizer, Text("hello")), tokens(tokenizer, pair("hel", "lo"), loss_on="all")):
        assert (found.labels == found.ids).all()
        assert found.learned == len(found.ids) - 1


def test_the_end_is_cut_and_said_to_be(tokenizer):
    whole = tokens(tokenizer, pair("Question: why? ", "because."))
    exact = tokens(tokenizer, pair("Question: why? ", "because."), max_length=len(whole.ids))
    short = tokens(tokenizer, pair("Question: why? ", "because."), max_length=len(whole.ids) - 1)
    assert (whole.cut, exact.cut, short.cut) == (False, False, True)
    assert short.ids.tolist() == whole.ids[:-1].tolist()
    assert short.labels.tolist() == whole.labels[:-1].tolist()


def test_the_first_token_never_counts_as_learned(slow):
    found = tokens(slow, Text("a"), max_length=1)
    assert len(found.ids) == 1
    assert found.learned == 0


def test_half_a_surrogate_pair_is_unreadable_and_the_rest_of_the_batch_is_not(stories):
    good, bad, last = Tokeniser(stories, LONG)([Text("a"), Text("\ud800"), pair("b", "c")])
    assert isinstance(bad, UnreadableError)
    assert isinstance(good, Tokens)
    assert isinstance(last, Tokens)
    assert spelled(stories, last.labels) == "c</s>"


TURNS = [
    {"role": "system", "content": "Be brief."},
    user("One?"),
    assistant("Yes, one."),
    user("Two?\n"),
    assistant(" Two  "),
]


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_every_turn_of_the_assistant_is_learned_to_its_end_and_nothing_else(tokenizer, template):
    found = tokens(tokenizer, Chat(TURNS), chat_template=template)
    text = tokenizer.apply_chat_template(TURNS, chat_template=UNMARKED, tokenize=False)
    assert spelled(tokenizer, found.labels) == "Yes, one.<|end|>\n Two  <|end|>\n"
    assert spelled(tokenizer, found.ids) == text
    runs = np.flatnonzero(np.diff((found.labels != -100).astype(int), prepend=0) == 1)
    assert len(runs) == 2


def test_marks_and_prefixes_agree(tokenizer):
    one, other = (tokens(tokenizer, Chat(TURNS), chat_template=t) for t in (MARKED, UNMARKED))
    assert one.ids.tolist() == other.ids.tolist()
    assert one.labels.tolist() == other.labels.tolist()


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_of_a_conversational_prompt_nothing_is_learned(tokenizer, template):
    found = tokens(tokenizer, Chat(TURNS, first=3), chat_template=template)
    assert spelled(tokenizer, found.labels).lstrip() == "Two  <|end|>\n"


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_pairs_become_two_turns(tokenizer, template):
    sample = Pair("### laid out", "Yes.", ask="One?")
    found = tokens(tokenizer, sample, template="chat", chat_template=template)
    assert spelled(tokenizer, found.ids) == "<|user|>\nOne?<|end|>\n<|assistant|>\nYes.<|end|>\n"
    assert spelled(tokenizer, found.labels) == "Yes.<|end|>\n"


def test_texts_pass_by_the_template_and_a_batch_keeps_its_order(stories):
    samples = [Text("one"), pair("a", "b"), Text("two"), pair("c", "d")]
    found = Tokeniser(stories, LONG, template="chat", chat_template=MARKED)(samples)
    labels = [spelled(stories, item.labels) for item in found if isinstance(item, Tokens)]
    assert labels == ["one</s>", "b<|end|>\n", "two</s>", "d<|end|>\n"]


def test_the_tokenizers_own_template_serves_and_is_left_alone(stories, monkeypatch):
    monkeypatch.setattr(stories, "chat_template", MARKED)
    assert spelled(stories, tokens(stories, Chat(TURNS)).labels).startswith("Yes, one.")
    tokens(stories, Chat(TURNS), chat_template=UNMARKED)
    assert stories.chat_template == MARKED


def test_tools_reach_the_template(stories):
    template = "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}" + UNMARKED
    found = tokens(stories, Chat(TURNS[1:3], tools=[{"name": "clock"}]), chat_template=template)
    assert spelled(stories, found.ids).startswith("[clock]<|user|>")


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_all_is_learned(stories):
    with pytest.raises(DataError, match=r"cannot be located; give one with \{% generation %\}.*loss_on: all"):
        tokens(stories, Chat(TURNS), chat_template=SHIFTING)
    found = tokens(stories, Chat(TURNS), chat_template=SHIFTING, loss_on="all")
    assert (found.labels == found.ids).all()


def test_without_a_template_the_error_says_what_to_do(stories):
    with pytest.raises(DataError, match=r"no chat template: take .* data\.chat_template"):
        tokens(stories, Chat(TURNS))


def test_a_template_that_is_not_jinja_is_refused(stories):
    with pytest.raises(DataError, match="not valid Jinja, line 1"):
        tokens(stories, Chat(TURNS), chat_template="{% for %}")


def test_a_conversation_the_template_refuses_is_unreadable(stories):
    template = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + UNMARKED
    long, short = Tokeniser(stories, LONG, chat_template=template)([Chat(TURNS), Chat(TURNS[1:3])])
    assert isinstance(long, UnreadableError)
    assert "too long" in str(long)
    assert isinstance(short, Tokens)


def test_starting_with_the_assistant_needs_marks(stories):
    opening = Chat([assistant("Hello."), user("Hi.")])
    (refused,) = Tokeniser(stories, LONG, chat_template=UNMARKED)([opening])
    assert isinstance(refused, UnreadableError)
    assert spelled(stories, tokens(stories, opening, chat_template=MARKED).labels) == "Hello.<|end|>\n"


def test_a_conversation_without_the_assistant_teaches_nothing(stories):
    assert tokens(stories, Chat([user("Hi.")]), chat_template=UNMARKED).learned == 0


def test_why_the_mask_of_transformers_is_not_used(trimming):
    """If this fails, transformers marks turns that end in white space rightly, and our own way can go."""
    turns = [user("One?"), assistant("Yes."), user("Two?"), assistant("No.")]
    template = MARKED.replace("<|end|>\n{% endgeneration %}", "<|end|> {% endgeneration %}")
    theirs = trimming.apply_chat_template(
        turns, chat_template=template, return_assistant_tokens_mask=True, return_dict=True
    )
    ours = tokens(trimming, Chat(turns), chat_template=template).labels != -100
    assert spelled(trimming, theirs["input_ids"]).count("<|user|>") == 2
    assert theirs["assistant_masks"] != ours.astype(int).tolist()
    assert spelled(trimming, np.array(theirs["input_ids"])[ours]) == "Yes.<|end|> No.<|end|> "
