"""Loads the model and the tokenizer that a recipe names, whole or not at all.

transformers gives missing weights random values and says so in a log. Here every weight must be in the files.
What goes wrong while loading comes out as one sentence; this is the place for all such sentences.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from gradwise.errors import RecipeError
from gradwise.ranks import say_first
from gradwise.recipe import Adapter, Model, Recipe
from gradwise.run.model_errors import explained
from gradwise.run.model_files import ADAPTER, CONFIG, damage, local_folder, read_json, stored
from gradwise.signals.request import QUANTITIES

Tell = Callable[[str], None]


def load_tokenizer(settings: Model) -> Any:
    """The model's tokenizer; raises RecipeError if there is none, or if the model's files are damaged."""
    _check_place(settings)
    if settings.gguf_file is None and _base_of_adapter(settings) is None:
        configuration(settings)  # which the tokenizer's class is chosen by
    with _loading(settings, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(settings.name, **_where(settings))
        tokenizer("some words")  # settings of the wrong type show only now
    return tokenizer


def load_model(settings: Model, adapter: Adapter | None = None, *, tell: Tell = say_first) -> Any:
    """The model in the requested dtype, with its adapter if there is one.

    Weights are read from safetensors only (or from the named GGUF file): pickled ones could run code. A model
    folder that holds an adapter of PEFT gives the adapter's base model with this adapter, which learns on.

    Args:
        settings: the recipe's `model`.
        adapter: the recipe's `adapter`.
        tell: gets warnings: weights in the files that the model has no place for, for example.

    Raises:
        RecipeError: there is no such model, it is not a causal language model, or a weight is missing or has
            another shape.
    """
    base = _base_of_adapter(settings)
    if base is not None and adapter is not None:
        raise RecipeError(
            f"model.name: {settings.name} is an adapter, which `adapter` would put another one on; leave "
            "`adapter` out to train this one further."
        )
    model = _load_whole(base or settings, tell)
    if base is not None:
        return _with_saved_adapter(model, settings, tell)
    if adapter is not None:
        from gradwise.training.adapter import with_adapter

        model = with_adapter(model, adapter.method, adapter.options, tell)
    return model


def load_saved_model(settings: Model, folder: Path, *, tell: Tell = say_first) -> Any:
    """The model that a run of these settings saved; an adapter is put on the model it was trained over."""
    saved = replace(settings, name=str(folder), revision=None)
    if _base_of_adapter(saved) is None:
        return load_model(replace(saved, gguf_file=None), tell=tell)
    model = _load_whole(_base_of_adapter(settings) or settings, tell)
    return _with_saved_adapter(model, saved, tell)


def resolved_revision(settings: Model) -> str | None:
    """The commit that a hub name stands for, or None for a local folder."""
    if local_folder(settings.name) is not None:
        return None
    _check_place(settings)
    return getattr(configuration(settings), "_commit_hash", None)


def measures(recipe: Recipe) -> bool:
    """Whether samples are measured before the first step, by `signals.model` where there is one."""
    return bool((recipe.select.needs | recipe.order.needs) & set(QUANTITIES))


def pinned(recipe: Recipe, before: Recipe | None, *, proxy: bool) -> Recipe:
    """A recipe that names commits where it left them open.

    Args:
        recipe: whose models have hub names or lie in folders.
        before: what was begun with it, whose commits hold where it names the same models.
        proxy: whether `signals.model` will be used, and needs a commit.
    """

    def commit(settings: Model | None, earlier: Model | None) -> Model | None:
        if settings is None or settings.revision is not None:
            return settings
        if earlier is not None and earlier.name == settings.name:
            return replace(settings, revision=earlier.revision)
        return replace(settings, revision=resolved_revision(settings))

    signals = recipe.signals
    measuring = signals.model
    if proxy:
        measuring = commit(measuring, None if before is None else before.signals.model)
    return replace(
        recipe,
        model=commit(recipe.model, None if before is None else before.model),
        signals=replace(signals, model=measuring),
    )


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Refuse sequences longer than the model has positions for; raises RecipeError."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and max_length > positions:
        raise RecipeError(
            f"data.max_length is {max_length}, but the model has only {positions} positions; "
            "give at most that."
        )


def configuration(settings: Model) -> Any:
    """The model's configuration; no weights are read."""
    with _loading(settings, "configuration"):
        return AutoConfig.from_pretrained(settings.name, **_where(settings))


def _load_whole(settings: Model, tell: Tell) -> Any:
    extra: dict[str, Any] = {"dtype": settings.dtype, "output_loading_info": True}
    # Or an error would come that does not name the weights.
    extra["ignore_mismatched_sizes"] = True
    if settings.attention:
        extra["attn_implementation"] = settings.attention
    if settings.gguf_file is None:
        extra["use_safetensors"] = True
    _check_place(settings)
    _check_configuration(settings)
    with _loading(settings, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(settings.name, **_where(settings), **extra)
    model, report = loaded
    if getattr(model, "_hf_peft_config_loaded", False):
        raise RecipeError(
            f"model.name: {settings.name} on the hub is an adapter; give a local copy of it: "
            f"hf download {settings.name} --local-dir FOLDER."
        )
    _check_weights(settings, type(model).__name__, report, tell)
    _check_attention(settings, model)
    if settings.gguf_file is not None:
        model = _unquantised(model)
    _drop_ineffective(model, tell)
    return model


def _check_configuration(settings: Model) -> None:
    """Refuse what would take all memory while loading, or fail in the first step."""
    if settings.gguf_file is not None or (folder := local_folder(settings.name)) is None:
        return
    config = configuration(settings).get_text_config()
    for name, value in vars(config).items():
        if "dropout" in name and isinstance(value, int | float) and not 0 <= value <= 1:
            raise RecipeError(f"model.name: {name} in {folder / CONFIG} must be from 0 to 1; found {value}.")
    weights, size = stored(folder)
    layers, tokens, width = (
        getattr(config, name, None) or 0 for name in ("num_hidden_layers", "vocab_size", "hidden_size")
    )
    # A config.json with a digit too many would take all memory before transformers finds that the weights do
    # not fit.
    if layers > weights or tokens * width > 8 * size:
        raise RecipeError(
            f"model.name: {folder / CONFIG} describes {layers:,} layers and {tokens:,} tokens, but the "
            f"{weights:,} weights beside it hold far less; give the files that belong together."
        )


def _check_weights(settings: Model, kind: str, report: dict[str, Any], tell: Tell) -> None:
    """Refuse weights that are missing or of another shape, which would be random; name unused ones."""
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if mismatched := sorted(report["mismatched_keys"]):
        name, actual, expected = mismatched[0]
        raise RecipeError(
            f"model.name: {_count(mismatched)} of {settings.name} without the shape that {kind} needs "
            f"(first: {name} is {_shape(actual)}, needed is {_shape(expected)}); give the weights and the "
            "config.json that belong together."
        )
    if missing:
        others = f"; it has {_count(unused)} without a place instead: {_few(unused)}" if unused else ""
        raise RecipeError(
            f"model.name: {settings.name} lacks {_count(missing)} that {kind} needs and that would be random "
            f"({_few(missing)}{others}); give a complete causal language model."
        )
    if unused:
        tell(
            f"Warning: {_count(unused)} of {settings.name} without a place in {kind} "
            f"({_few(unused)}); left out."
        )


def _count(weights: list[Any]) -> str:
    return f"{len(weights):,} weight{'s' if len(weights) > 1 else ''}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(str(size) for size in sizes)


def _check_attention(settings: Model, model: PreTrainedModel) -> None:
    if settings.attention == "flex_attention" and not torch.accelerator.is_available():
        raise RecipeError("model.attention: flex_attention has no backward pass on a CPU; give sdpa.")
    used = getattr(model.config, "_attn_implementation", None)
    if settings.attention and used != settings.attention:
        raise RecipeError(
            f"model.attention is {settings.attention}, but transformers would use {used} for this model "
            "here; give that one, or install what the other needs."
        )


def _drop_ineffective(model: object, tell: Tell) -> None:
    """Unset generation settings that contradict others; transformers refuses to save them.

    They have no effect: with `do_sample: false`, for example, `temperature` has none. So the saved model
    generates as the one that was loaded.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError as error:
        names = re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE)
        usual = GenerationConfig()
        for name in names:
            setattr(settings, name, getattr(usual, name))
        if names:
            tell(
                f"Warning: the model's generation settings {_few(names)} have no effect as it is set up; "
                "transformers does not save such, and the saved model is without them."
            )


def _base_of_adapter(settings: Model) -> Model | None:
    """The model under an adapter in a local folder; None if the name stands for a model."""
    folder = local_folder(settings.name)
    if folder is None or not (folder / ADAPTER).exists():
        return None
    _check_place(settings)
    config = read_json(folder / ADAPTER)
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise RecipeError(
            f"model.name: {folder / ADAPTER} does not name its base model (base_model_name_or_path)."
        )
    return replace(settings, name=base, revision=config.get("revision"))


def _with_saved_adapter(base: PreTrainedModel, settings: Model, tell: Tell) -> Any:
    try:
        from peft import PeftModel
    except ImportError:
        raise RecipeError(
            f"model.name: {settings.name} is an adapter, which needs the package peft; run: pip install "
            "'gradwise[lora]'."
        ) from None
    with _loading(settings, "adapter"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missing is checked below
        model = PeftModel.from_pretrained(base, settings.name, is_trainable=True)
        # Again, since only this reports what was missing.
        report = model.load_adapter(settings.name, "default", is_trainable=True)
    # Missing weights would be random, and PEFT only warns of them.
    mismatches = {"missing_keys": report.missing_keys, "unexpected_keys": report.unexpected_keys}
    _check_weights(settings, "the adapter", mismatches | {"mismatched_keys": []}, tell)
    return model


@contextmanager
def _loading(settings: Model, what: str) -> Iterator[None]:
    """Explain what goes wrong, and keep transformers quiet."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it reports as a warning, we check
    try:
        with explained(settings, what):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _check_place(settings: Model) -> None:
    """Refuse a name that stands for neither a sound folder nor, by its form, for a model on the hub."""
    name = settings.name
    if (folder := local_folder(name)) is not None:
        if settings.revision is not None:
            raise RecipeError(f"model.revision is for hub names, and {name} is a local folder; leave it out.")
        problem = _gguf_problem(settings) if settings.gguf_file is not None else damage(folder)
        if problem is not None:
            raise RecipeError(f"model.name: {problem}")
    elif not re.fullmatch(r"\w[\w.-]{0,95}(/[\w.-]{1,95})?", name):
        raise RecipeError(f"model.name: there is no folder {name}; give a model's folder or a hub name.")


def _gguf_problem(settings: Model) -> str | None:
    path = Path(settings.name) / str(settings.gguf_file)
    if path.is_file():
        return None
    there = sorted(entry.name for entry in path.parent.glob("*.gguf")) if path.parent.is_dir() else []
    return f"there is no file {path} (GGUF files there: {_few(there) or 'none'})."


def _where(settings: Model) -> dict[str, Any]:
    where: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.revision and Path(settings.name).exists():
        raise RecipeError(
            f"model.revision is for models on the hub, and {settings.name} is a local folder; leave it out."
        )
    if settings.revision:
        where["revision"] = settings.revision
    if settings.gguf_file:
        # By its whole path: a file of that name in the working directory would come first.
        path = Path(settings.name).absolute() / settings.gguf_file
        where["gguf_file"] = str(path) if path.is_file() else settings.gguf_file
    return where


def _unquantised(model: PreTrainedModel) -> PreTrainedModel:
    """A fresh model with the same weights, without the traces of the file format they came in."""
    config = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    )
    # Without storage of its own: the weights are assigned, not copied.
    with torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():
        parent, _, leaf = name.rpartition(".")
        fresh.get_submodule(parent).register_buffer(leaf, buffer, persistent=False)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh
