"""Models and tokenizers by recipe: whole, or a sentence that says what is wrong with them."""

import json
import random
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from gradwise import Adapter, Model, Recipe, RecipeError
from gradwise.recipe import SignalSettings
from gradwise.run.model import (
    check_length,
    load_model,
    load_saved_model,
    load_tokenizer,
    pinned,
    resolved_revision,
)
from gradwise.run.model_files import damage, sampled_digest
from tests.conftest import same_weights

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(stories: Path, tmp_path: Path) -> Path:
    """A copy of the story model that tests may damage."""
    shutil.copytree(stories, tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        path.chmod(0o644)
    return tmp_path / "model"


@pytest.fixture
def adapter(story_model: Callable[[], Any], folder: Path, tmp_path: Path) -> Path:
    """A saved adapter over the copy, whose matrices are all random."""
    model = load_model(Model(name=str(folder)), Adapter(options={"r": 2, "init_lora_weights": False}))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change_weights(path: Path, change: Change) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard(folder: Path) -> None:
    """Save the weights of a model in four files and an index."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")


def load_both(folder: Path, **settings: Any) -> Any:
    load_tokenizer(Model(name=str(folder), **settings))
    return load_model(Model(name=str(folder), **settings))


class TestWhole:
    @pytest.mark.parametrize(
        ("dtype", "found"),
        [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", torch.float32)],
    )
    def test_type_of_the_weights(self, stories: Path, dtype: Any, found: torch.dtype):
        assert {p.dtype for p in load_model(Model(name=str(stories), dtype=dtype)).parameters()} == {found}

    def test_attention(self, stories: Path):
        assert load_model(Model(name=str(stories), attention="eager")).config._attn_implementation == "eager"

    @pytest.mark.parametrize("adapted", [False, True])
    def test_positions(self, stories: Path, adapted: bool):
        model = load_model(Model(name=str(stories)), Adapter(options={"r": 2}) if adapted else None)
        check_length(model, 512)
        with pytest.raises(RecipeError, match=r"data\.max_length is 513, but the model has only 512"):
            check_length(model, 513)

    def test_in_several_files(self, folder: Path, story_model: Callable[[], Any]):
        shard(folder)
        assert len(list(folder.glob("model-*.safetensors"))) == 4
        assert damage(folder) is None
        assert same_weights(load_both(folder), story_model())

    @pytest.mark.parametrize("there", ["embeddings", "head", "both"])
    def test_tied_weights(self, folder: Path, story_model: Callable[[], Any], there: str):
        def change(weights: dict[str, Any]) -> None:
            embeddings = weights.pop("model.embed_tokens.weight")
            if there != "head":
                weights["model.embed_tokens.weight"] = embeddings
            if there != "embeddings":
                weights["lm_head.weight"] = embeddings.clone()

        change_weights(folder / "model.safetensors", change)
        messages: list[str] = []
        assert same_weights(load_model(Model(name=str(folder)), tell=messages.append), story_model())
        assert not messages

    def test_an_adapter_learns_on(self, adapter: Path, folder: Path):
        loaded = load_model(Model(name=str(adapter)))
        for name, values in load_file(adapter / "adapter_model.safetensors").items():
            part = loaded.get_parameter(name.replace(".weight", ".default.weight"))
            assert part.requires_grad and torch.equal(part, values)
        assert sum(p.requires_grad for p in loaded.parameters()) == 70
        again = load_saved_model(Model(name=str(folder)), adapter)
        assert same_weights(loaded, again)
        with pytest.raises(RecipeError, match="is an adapter, which `adapter` would put another one on"):
            load_model(Model(name=str(adapter)), Adapter())

    def test_generation_settings_that_contradict_each_other(self, folder: Path, tmp_path: Path):
        change_json(folder / "generation_config.json", do_sample=False, temperature=0.6, top_p=0.9)
        messages: list[str] = []
        model = load_model(Model(name=str(folder)), tell=messages.append)
        assert len(messages) == 1 and "generation settings temperature, top_p have no effect" in messages[0]
        model.generation_config.max_new_tokens = 7
        model.save_pretrained(tmp_path / "saved")
        saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
        assert saved["do_sample"] is False and saved["max_new_tokens"] == 7 and "top_p" not in saved


def renamed(weights: dict[str, Any]) -> None:
    for name in list(weights):
        weights[f"transformer.{name}"] = weights.pop(name)


class TestWeights:
    """What has no values would be random."""

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (
                lambda weights: weights.pop("model.norm.weight"),
                r"lacks 1 weight that LlamaForCausalLM needs .* \(model\.norm\.weight\)",
            ),
            (renamed, r"lacks 48 weights .* it has 47 weights without a place instead: transformer\.model"),
            (lambda weights: weights.clear(), "the 0 weights beside it hold far less"),
            (
                lambda weights: weights.update({"model.norm.weight": torch.ones(3)}),
                r"1 weight of .* shape .* \(first: model\.norm\.weight is 3, needed is 64\)",
            ),
        ],
        ids=["one missing", "renamed", "empty", "another shape"],
    )
    def test_refused(self, folder: Path, change: Change, sentence: str):
        change_weights(folder / "model.safetensors", change)
        with pytest.raises(RecipeError, match=sentence):
            load_model(Model(name=str(folder)))

    @pytest.mark.parametrize(
        ("config", "sentence"),
        [
            ({"tie_word_embeddings": False}, r"lacks 1 weight .* \(lm_head\.weight\)"),
            ({"num_hidden_layers": 6}, r"lacks 9 weights .* \(model\.layers\.5"),
            ({"attention_bias": True}, "lacks 20 weights"),
            ({"intermediate_size": 100}, "15 weights of .* is 64 x 172, needed is 64 x 100"),
            ({"num_hidden_layers": 10**9}, "describes 1,000,000,000 layers"),
            ({"vocab_size": 10**9}, "and 1,000,000,000 tokens, but the 47 weights beside it"),
        ],
    )
    def test_a_configuration_that_asks_for_others(self, folder: Path, config: dict[str, Any], sentence: str):
        change_json(folder / "config.json", **config)
        with pytest.raises(RecipeError, match=sentence):
            load_model(Model(name=str(folder)))

    def test_without_a_head(self, tiny_llama: Callable[..., LlamaForCausalLM], tmp_path: Path):
        tiny_llama(layers=1, tie_word_embeddings=False).model.save_pretrained(tmp_path)
        with pytest.raises(RecipeError, match=r"lacks 1 weight .*\(lm_head\.weight\)"):
            load_model(Model(name=str(tmp_path)))
        tiny_llama(layers=1, tie_word_embeddings=True).model.save_pretrained(tmp_path)
        load_model(Model(name=str(tmp_path)))  # the embeddings are its head

    def test_unused_ones_are_named(self, folder: Path, story_model: Callable[[], Any]):
        change_weights(folder / "model.safetensors", lambda weights: weights.update(extra=torch.ones(2)))
        messages: list[str] = []
        assert same_weights(load_model(Model(name=str(folder)), tell=messages.append), story_model())
        assert len(messages) == 1 and "1 weight of" in messages[0] and "(extra); left out" in messages[0]

    def test_of_an_adapter(self, adapter: Path):
        file = adapter / "adapter_model.safetensors"
        first = sorted(load_file(file))[0]
        change_weights(file, lambda weights: weights.update({"more": weights.pop(first)}))
        with pytest.raises(RecipeError, match=r"lacks 1 weight that the adapter needs .* instead: .*more"):
            load_model(Model(name=str(adapter)))
        change_weights(file, lambda weights: weights.update({first: torch.ones(5, 5)}))
        with pytest.raises(RecipeError, match=r"transformers cannot load the adapter in .*size mismatch"):
            load_model(Model(name=str(adapter)))
        change_json(adapter / "adapter_config.json", base_model_name_or_path="/no/such/folder")
        with pytest.raises(RecipeError, match="there is no folder /no/such/folder"):
            load_model(Model(name=str(adapter)))

    def test_of_the_model_under_an_adapter(self, adapter: Path, folder: Path):
        change_weights(folder / "model.safetensors", lambda weights: weights.pop("model.norm.weight"))
        with pytest.raises(RecipeError, match=r"lacks 1 weight .* \(model\.norm\.weight\)"):
            load_model(Model(name=str(adapter)))


def cut(part: float) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def header(text: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(struct.pack("<Q", len(text)) + text)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "deleted": Path.unlink,
    "folder": as_folder,
    "dangling link": dangling,
    "empty": cut(0),
    "cut": cut(0.5),
    "cut near the end": cut(0.98),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(500)),
    "not an object": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "header": header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'),
}
HARMLESS = {
    ("generation_config.json", "deleted"),
    ("tokenizer_config.json", "deleted"),
}
"""Files that a model need not have."""


class TestDamage:
    @pytest.mark.parametrize("how", DAMAGES)
    def test_every_file(self, folder: Path, how: str):
        """The sentence names the file."""
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            DAMAGES[how](path)
            if (path.name, how) in HARMLESS:
                load_both(folder)
            else:
                with pytest.raises(RecipeError) as found:
                    load_both(folder)
                assert path.name in str(found.value) or "tokenizer" in path.name, str(found.value)
                assert str(folder) in str(found.value)
            if path.is_dir():
                path.rmdir()
            path.unlink(missing_ok=True)
            path.write_bytes(content)
        assert damage(folder) is None

    @pytest.mark.parametrize("how", DAMAGES)
    def test_every_shard(self, folder: Path, how: str):
        shard(folder)
        for name in ("model.safetensors.index.json", "model-00002-of-00004.safetensors"):
            content = (folder / name).read_bytes()
            DAMAGES[how](folder / name)
            found = damage(folder)
            # Without an index, the weights would be in a single file.
            missing = (name, how) == ("model.safetensors.index.json", "deleted")
            assert found is not None and str(folder / ("model.safetensors" if missing else name)) in found
            with pytest.raises(RecipeError):
                load_model(Model(name=str(folder)))
            if (folder / name).is_dir():
                (folder / name).rmdir()
            (folder / name).unlink(missing_ok=True)
            (folder / name).write_bytes(content)

    @pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, {"a": ["b"]}, {"a": "other.safetensors"}])
    def test_an_index_that_names_no_files_there(self, folder: Path, weight_map: Any):
        shard(folder)
        change_json(folder / "model.safetensors.index.json", weight_map=weight_map)
        with pytest.raises(RecipeError, match=r"model\.safetensors\.index\.json"):
            load_model(Model(name=str(folder)))

    @pytest.mark.parametrize("how", DAMAGES)
    def test_every_file_of_an_adapter(self, adapter: Path, how: str):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            content = (adapter / name).read_bytes()
            DAMAGES[how](adapter / name)
            with pytest.raises(RecipeError, match=r"config\.json" if name.endswith("json") else name):
                load_model(Model(name=str(adapter)))
            if (adapter / name).is_dir():
                (adapter / name).rmdir()
            (adapter / name).unlink(missing_ok=True)
            (adapter / name).write_bytes(content)

    @pytest.mark.parametrize(
        ("config", "sentence"),
        [
            ({"model_type": "no-such-type"}, "model type `no-such-type`"),
            ({"model_type": []}, "unhashable"),
            ({"model_type": "bert"}, "BertLMHeadModel"),
            ({"vocab_size": "many"}, "'vocab_size' expected int"),
            ({"vocab_size": -5}, "negative dimension -5"),
            ({"hidden_size": None}, "'hidden_size' expected int"),
            ({"hidden_size": 63}, "not a multiple"),
            ({"num_attention_heads": 0}, "modulo by zero"),
            ({"pad_token_id": 512}, "Padding_idx must be within num_embeddings"),
            ({"hidden_act": "no_such_activation"}, "no_such_activation"),
            ({"attention_dropout": 1.5}, "attention_dropout in .* must be from 0 to 1; found 1.5"),
            ({"transformers_weights": "../other.safetensors"}, r"other\.safetensors"),
        ],
    )
    def test_values_in_the_configuration(self, folder: Path, config: dict[str, Any], sentence: str):
        change_json(folder / "config.json", **config)
        with pytest.raises(RecipeError, match=sentence) as found:
            load_both(folder)
        assert "\n" not in str(found.value) and str(folder) in str(found.value)

    @pytest.mark.parametrize(
        ("name", "values", "sentence"),
        [
            ("tokenizer_config.json", {"eos_token": 3}, "eos_token has to be"),
            ("tokenizer_config.json", {"model_max_length": "long"}, "not supported between"),
            ("generation_config.json", {"max_new_tokens": -1}, "`max_new_tokens` must be greater than 0"),
        ],
    )
    def test_values_in_other_files(self, folder: Path, name: str, values: dict[str, Any], sentence: str):
        change_json(folder / name, **values)
        with pytest.raises(RecipeError, match=sentence):
            load_both(folder)

    def test_pickled_weights_are_not_read(self, folder: Path):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(RecipeError, match=r"pickled weights only \(pytorch_model\.bin\)"):
            load_tokenizer(Model(name=str(folder)))

    def test_a_model_and_an_adapter_in_one_folder(self, adapter: Path, folder: Path):
        (adapter / "config.json").write_text((folder / "config.json").read_text())
        with pytest.raises(RecipeError, match="holds a model and an adapter"):
            load_model(Model(name=str(adapter)))

    def test_no_tokenizer(self, folder: Path):
        for path in folder.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(RecipeError, match="transformers cannot load the tokenizer in"):
            load_tokenizer(Model(name=str(folder)))


class TestPlace:
    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"name": "/no/such/folder"}, "there is no folder /no/such/folder"),
            ({"name": "../nothing"}, "there is no folder"),
            ({"name": "x" * 5000}, "there is no folder"),
            ({"name": "a/b/c"}, "there is no folder a/b/c"),
            ({"name": ""}, "there is no folder"),
            (
                {"name": "someone/some-model"},
                "there is no folder someone/some-model here, the hub's cache does not hold",
            ),
            ({"revision": "main"}, r"model\.revision is for hub names"),
            ({"attention": "no_such"}, r"model\.attention: unknown implementation 'no_such'"),
            (
                {"attention": "flex_attention"},
                r"model\.attention: flex_attention has no backward pass on a CPU",
            ),
            ({"attention": "flash_attention_2"}, r"model\.attention"),
            ({"attention": "someone/no-such-kernel"}, r"model\.attention"),
            ({"gguf_file": "none.gguf"}, r"there is no file .*none\.gguf \(GGUF files there: none\)"),
        ],
    )
    def test_refused(self, stories: Path, settings: dict[str, Any], sentence: str):
        named: dict[str, Any] = {"name": str(stories)} | settings
        with pytest.raises(RecipeError, match=sentence):
            load_model(Model(**named))

    def test_the_libraries_speak_as_before(self, folder: Path, capfd: pytest.CaptureFixture[str]):
        from transformers.utils import logging

        before = logging.get_verbosity()
        change_weights(folder / "model.safetensors", renamed)
        with pytest.raises(RecipeError):
            load_model(Model(name=str(folder)))
        assert logging.get_verbosity() == before
        assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A hub at this machine that answers everything alike: with `code` and `error`."""
    answer: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer["code"])
            if answer["error"]:
                self.send_header("X-Error-Code", answer["error"])
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield answer
    server.shutdown()


@pytest.mark.parametrize(
    ("code", "error", "sentence"),
    [
        (403, "GatedRepo", "someone/model is gated; ask for access"),
        (401, "GatedRepo", "someone/model is gated; ask for access"),
        (401, "RepoNotFound", "no such model on the hub, or it is private"),
        (404, "RepoNotFound", "there is no folder someone/model here and no such model on the hub"),
        (404, "RevisionNotFound", "someone/model on the hub has no revision v9"),
        (404, "EntryNotFound", "transformers cannot load the configuration of someone/model"),
        (403, None, "the hub refuses to give someone/model"),
    ],
)
def test_what_the_hub_answers(hub: dict[str, Any], code: int, error: str | None, sentence: str):
    hub.update(code=code, error=error)
    settings = Model(name="someone/model", revision="v9")
    for load in (resolved_revision, load_tokenizer, load_model):
        with pytest.raises(RecipeError) as found:
            load(settings)
        if load is not load_model or error != "EntryNotFound":
            assert sentence in str(found.value)


def test_the_digest_of_a_model_tells_trained_weights_and_settings(folder: Path) -> None:
    before = sampled_digest(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    assert sampled_digest(folder) == before
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 1.001 for name, value in weights.items()}, folder / "model.safetensors")
    trained = sampled_digest(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    assert len({before, trained, sampled_digest(folder)}) == 3


@pytest.mark.parametrize("place", [0, 2**21 + 5, 5 * 2**20 - 1])
def test_blocks_are_taken_from_all_over_a_large_file(tmp_path: Path, place: int) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(5 * 2**20)
    before = sampled_digest(tmp_path)
    with path.open("r+b") as file:
        # As wide as the distance between two blocks.
        file.seek(max(0, place - 5 * 2**16))
        file.write(b"1" * 5 * 2**16)
    assert path.stat().st_size == 5 * 2**20 and sampled_digest(tmp_path) != before


def test_commits_that_were_begun_with_hold() -> None:
    """A branch that moved since would make the same command another recipe. No network is asked for them."""
    begun = Recipe(
        model=Model(name="me/mine", revision="abc"),
        signals=SignalSettings(model=Model(name="me/small", revision="def")),
    )
    again = Recipe(model=Model(name="me/mine"), signals=SignalSettings(model=Model(name="me/small")))
    assert pinned(again, begun, proxy=True) == begun
    unused = pinned(again, begun, proxy=False).signals.model
    assert unused == Model(name="me/small")
    stated = Recipe(model=Model(name="me/mine", revision="main"))
    assert pinned(stated, begun, proxy=True) == stated
    with pytest.raises(RecipeError, match="someone/other-model"):
        pinned(Recipe(model=Model(name="someone/other-model")), begun, proxy=True)


def test_folders_have_no_commits(folder: Path) -> None:
    recipe = Recipe(model=Model(name=str(folder)))
    assert pinned(recipe, None, proxy=True) == recipe
