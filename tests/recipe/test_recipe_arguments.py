"""From a recipe's `train` section to the Trainer's arguments."""

from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from gradwise import Recipe, RecipeError, Train
from gradwise.recipe.yaml_text import parse
from gradwise.training.arguments import micro_batch, training_arguments

RENAMED = "activation_checkpointing" in {field.name for field in fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if RENAMED else "gradient_checkpointing"
"""The setting's name, which transformers 5.23 changed."""


def built(train: Train, **changes: Any) -> TrainingArguments:
    given = {"output_dir": Path("out"), "seed": 3, "ranks": 1, "validation": False, "bars": False}
    return training_arguments(train, **(given | changes))


class TestTrainingArguments:
    def test_aliases(self):
        made = built(Train(epochs=2.5, batch_size=32, learning_rate=3e-4, schedule="cosine"))
        assert (made.num_train_epochs, made.learning_rate, made.lr_scheduler_type, made.seed) == (
            2.5,
            3e-4,
            "cosine",
            3,
        )
        assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (8, 4)
        assert made.output_dir == "out"
        assert made.disable_tqdm

    def test_any_other_argument_reaches_the_trainer(self):
        given = {
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "warmup_steps": 7,
            "save_strategy": "no",
            "max_steps": 12,
            "optim": "sgd",
            "logging_steps": 3,
            "dataloader_num_workers": 2,
            "per_device_train_batch_size": 2,
            "report_to": "none",
            "gradient_checkpointing": True,
        }
        recipe = Recipe.from_dict({"train": given})
        made = built(recipe.train)
        assert (made.weight_decay, made.max_grad_norm, made.warmup_steps, made.max_steps) == (0.1, 0.5, 7, 12)
        assert (made.save_strategy, made.optim, made.logging_steps) == ("no", "sgd", 3)
        assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (2, 8)
        assert (made.dataloader_num_workers, made.report_to, made.gradient_checkpointing) == (2, [], True)

    def test_held_out_data_are_evaluated_by_default(self):
        assert (
            built(Train(), validation=True).eval_strategy,
            built(Train(), validation=True).eval_on_start,
        ) == ("epoch", True)
        silent = Train(arguments={"eval_strategy": "no", "eval_on_start": False})
        assert (
            built(silent, validation=True).eval_strategy,
            built(silent, validation=True).eval_on_start,
        ) == ("no", False)

    @pytest.mark.parametrize(
        "asked", [{"eval_strategy": "epoch"}, {"eval_strategy": "steps"}, {"eval_on_start": True}]
    )
    def test_evaluation_without_held_out_data_is_refused(self, asked: dict[str, Any]):
        with pytest.raises(RecipeError, match=r"asks for evaluation, but data\.validation is not given"):
            built(Train(arguments=asked))

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ({"fsdp": "full_shard"}, "train.fsdp needs GPUs"),
            ({"fp16": True, "use_cpu": True}, "train.fp16 needs a GPU"),
            ({"report_to": "neptune"}, "neptune is not installed; run: pip install neptune"),
            ({"use_liger_kernel": True}, "run: pip install liger-kernel"),
            ({"optim": "adamw_bnb_8bit"}, "train: .*bitsandbytes"),
            (
                {"optim": "galore_adamw", "optim_target_modules": "all-linear"},
                "needs the package galore_torch",
            ),
            ({"optim": "grokadamw"}, "grokadamw"),
            ({"optim": "sgd", "optim_args": "momentum=-1"}, "train: Invalid momentum value"),
            ({"optim": "sgd", "optim_args": "momentum=much"}, "train: could not convert"),
            ({"deepspeed": "nowhere.json"}, "train.deepspeed: cannot read nowhere.json: No such file"),
            ({"fsdp": "full_shard", "fsdp_config": "/"}, "train.fsdp_config: cannot read /: Is a directory"),
            (
                {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"offload": True}},
                f"train.{CHECKPOINTING}_kwargs.offload needs a GPU",
            ),
            ({"torch_compile_backend": "inductor", "bf16": True, "use_cpu": False}, "train: .*bf16"),
        ],
        ids=str,
    )
    def test_what_this_machine_lacks_or_the_trainer_refuses(self, given: dict[str, Any], reason: str):
        with pytest.raises(RecipeError, match=reason):
            built(Train(arguments=given))

    def test_configurations_of_deepspeed(self, tmp_path: Path):
        path = tmp_path / "zero.json"
        for text, reason in (
            ("{", "is not JSON"),
            ("[" * 5000, "is not JSON"),
            ("[]", r"must hold a JSON object; found \[\]"),
        ):
            path.write_text(text)
            with pytest.raises(RecipeError, match=rf"train\.deepspeed: .*zero\.json {reason}"):
                built(Train(arguments={"deepspeed": str(path)}))
        if find_spec("deepspeed") is None:
            path.write_text("{}")
            for given in (str(path), {"zero_optimization": {"stage": 1}}):
                with pytest.raises(RecipeError, match=r"^train\.deepspeed needs a package; run: pip install"):
                    built(Train(arguments={"deepspeed": given}))

    def test_configurations_are_found_beside_the_recipe(self, tmp_path: Path):
        (tmp_path / "recipe.yaml").write_text("train: {deepspeed: zero.json}")
        recipe = Recipe.load(tmp_path / "recipe.yaml", ["train.fsdp=full_shard", "train.fsdp_config=f.json"])
        assert recipe.train.arguments["deepspeed"] == str(tmp_path / "zero.json")
        assert recipe.train.arguments["fsdp_config"] == str(Path("f.json").absolute())


# ruff: noqa: E501 (a table with one case to a line)
REFUSED = {
    # out of range
    "max_steps: 0": "input should be a number of steps; leave it out to train for train.epochs; found 0",
    "max_steps: -2": "found -2",
    "eval_strategy: steps, eval_steps: 0": "a whole number of steps, or a share of them between 0 and 1; found 0",
    "save_steps: -5": "a whole number of steps",
    "save_steps: 2.5": "a whole number of steps",
    "logging_steps: 0": "a whole number of steps",
    "warmup_steps: -1": "a whole number of steps",
    "warmup_steps: 1.5": "a whole number of steps",
    "max_grad_norm: -1": "greater than or equal to 0",
    "weight_decay: -0.1": "greater than or equal to 0",
    "adam_beta1: 1.0": "less than 1",
    "adam_beta2: -0.1": "greater than or equal to 0",
    "adam_epsilon: 0": "greater than 0",
    "label_smoothing_factor: 1": "less than 1",
    "neftune_noise_alpha: 0": "greater than 0",
    "per_device_train_batch_size: 0": "greater than or equal to 1",
    "per_device_eval_batch_size: 0": "greater than or equal to 1",
    "save_total_limit: 0": "greater than or equal to 1",
    "dataloader_num_workers: -1": "greater than or equal to 0",
    "eval_delay: -1": "greater than or equal to 0",
    "ddp_timeout: 0": "greater than or equal to 1",
    "log_level: loud": "input should be 'debug'",
    "include_num_input_tokens_seen: some": "include_num_input_tokens_seen: input should be",
    "dataloader_num_workers: 1, dataloader_multiprocessing_context: thread": "'fork', 'spawn' or 'forkserver'",
    # choices
    "eval_strategy: epochs": "unknown 'epochs'; did you mean 'epoch'?",
    "save_strategy: often": "unknown 'often'; known: best, epoch, no, steps",
    "optim: adamw_troch": "unknown 'adamw_troch'; did you mean 'adamw_torch'?",
    "debug: underflow": "unknown 'underflow'; did you mean 'underflow_overflow'?",
    "report_to: tensorbord": "names no tracker that is known: 'tensorbord'; did you mean 'tensorboard'?",
    "torch_compile_backend: inducter": "is unknown: 'inducter'; did you mean 'inductor'?",
    "torch_compile_backend: none": "is unknown: 'none'; known: aot",
    "torch_compile_mode: fast": "input should be 'default', 'reduce-overhead'",
    "report_to: [none, wandb]": "names no tracker that is known: 'none'",
    "report_to: null": "names no tracker that is known: None",
    "metric_for_best_model: accuracy": "is 'accuracy', which is not measured; known: eval_held_out_loss",
    # without effect
    "eval_steps: 5": "has no effect without eval_strategy: steps",
    "save_strategy: epoch, save_steps: 5": "has no effect without save_strategy: steps",
    "logging_strategy: epoch, logging_steps: 5": "has no effect without logging_strategy: steps",
    "eval_strategy: no, eval_delay: 3": "has no effect without evaluation",
    "optim: sgd, adam_beta1: 0.8": "has no effect without an Adam optimizer",
    "optim: adafactor, adam_epsilon: 1e-6": "has no effect without an Adam optimizer",
    "optim_target_modules: [q_proj]": "has no effect without a GaLore or APOLLO optimizer",
    "optim_args: momentum=0.9": "adamw_torch takes no 'momentum'; it takes none",
    "optim: sgd, optim_args: momentun=0.9": "sgd takes no 'momentun'; did you mean 'momentum'?",
    "optim: sgd, optim_args: momentum": "is a list such as a=1,b=2; found 'momentum'",
    f"{CHECKPOINTING}_kwargs: {{offload: true}}": f"has no effect without {CHECKPOINTING}",
    "liger_kernel_config: {rope: true}": "has no effect without use_liger_kernel",
    "fsdp_config: {}": "has no effect without fsdp",
    "dataloader_prefetch_factor: 4": "has no effect without dataloader_num_workers",
    "hub_model_id: me/x": "has no effect without push_to_hub",
    "greater_is_better: true": "has no effect without load_best_model_at_end",
    "schedule: constant, warmup_steps: 5": "has no effect, since schedule: constant does not warm up",
    "eval_accumulation_steps: 4": "cannot be set here: evaluation measures the loss alone",
    "bf16_full_eval: true": "cannot be set here: evaluation computes in the precision of training",
    "save_on_each_node: true": "cannot be set here: all nodes share one run directory",
    "early_stopping: 3": "to stop early, set train.early_stopping_patience",
    "early_stopping_patience: 2, label_smoothing_factor: 0.1": "label_smoothing_factor leaves unknown",
    "early_stopping_patience: 0": "early_stopping_patience: input should be greater than or equal to 1",
    "early_stopping_patience: 2, eval_strategy: no": "needs evaluations and checkpoints; leave eval_strategy out",
    "early_stopping_patience: 2, load_best_model_at_end: false": "leave load_best_model_at_end out",
    # together
    "bf16: true, fp16: true": "and train.fp16 exclude each other",
    "load_best_model_at_end: true, save_strategy: no": "needs checkpoints; set save_strategy",
    "save_strategy: best": "is best, and nothing says by what",
    "metric_for_best_model: held_out_loss, label_smoothing_factor: 0.1": "label_smoothing_factor leaves unknown",
    "push_to_hub: true": "needs hub_model_id",
    "push_to_hub: true, hub_model_id: a/b%": "hub_model_id is 'a/b%', which is no name of a repository",
    "hub_private_repo: true": "has no effect without push_to_hub",
    "trackio_space_id: x": "has no effect without report_to: trackio",
    "report_to: [wandb], project: x": "has no effect without report_to: trackio",
    "gradient_checkpointing: true, gradient_checkpointing_kwargs: {early: true}": "has no key 'early'; did you mean 'early_stop'?",
    f"{CHECKPOINTING}: true, {CHECKPOINTING}_kwargs: {{every_n_layers: 0}}": f"{CHECKPOINTING}_kwargs.every_n_layers: input should be greater than or equal to 1; found 0",
    f"{CHECKPOINTING}: true, {CHECKPOINTING}_kwargs: {{use_reentrant: maybe}}": "use_reentrant: input should be a valid boolean",
    f"{CHECKPOINTING}: true, {CHECKPOINTING}_kwargs: {{use_reentrant: true, debug: true}}": "keys that use_reentrant: true does not take",
    # schedules
    "lr_scheduler_kwargs: {num_cycles: 2}": "linear takes no 'num_cycles'; it takes none",
    "schedule: cosine, lr_scheduler_kwargs: {num_cycle: 2}": "takes no 'num_cycle'; did you mean 'num_cycles'?",
    "schedule: constant, lr_scheduler_kwargs: {power: 2}": "constant takes no 'power'",
    "schedule: cosine, lr_scheduler_kwargs: {num_cycles: many}": "cosine cannot follow {'num_cycles': 'many'}",
    "schedule: wsd, lr_scheduler_kwargs: {decay_type: steep}": "wsd cannot follow {'decay_type': 'steep'}",
    "schedule: warmup_stable_decay": "needs train.lr_scheduler_kwargs.num_decay_steps; give it",
    "schedule: polynomial, lr_scheduler_kwargs: {lr_end: 1}": "polynomial cannot follow",
    "schedule: cosine_with_min_lr": "cosine_with_min_lr cannot follow {}",
    "schedule: reduce_lr_on_plateau, lr_scheduler_kwargs: {factor: 2}": "cannot follow {'factor': 2}",
    "schedule: reduce_lr_on_plateau, lr_scheduler_kwargs: {patiense: 2}": "did you mean 'patience'?",
    "lr_scheduler_kwargs: a.json": "input should be a valid dictionary",
}

TAKEN = [
    "max_steps: -1",
    "warmup_steps: 0",
    "warmup_steps: 0.1",
    "warmup_steps: 20",
    "save_steps: 0.25",
    "max_grad_norm: 0",
    "save_total_limit: null",
    "optim: sgd, optim_args: 'momentum=0.9, nesterov=true'",
    "optim: schedule_free_sgd, optim_args: r=0.5",
    "optim: paged_ademamix_8bit, optim_args: 'alpha=4,t_alpha=100'",
    "schedule: constant_with_warmup, warmup_steps: 3",
    "schedule: cosine, lr_scheduler_kwargs: {num_cycles: 0.4}",
    "schedule: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr_rate: 0.1}",
    "schedule: wsd, lr_scheduler_kwargs: {min_lr_ratio: 0.1, warmup_type: cosine}",
    "schedule: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 4}",
    "fsdp: true, fsdp_config: {version: 2}",
    "schedule: inverse_sqrt, lr_scheduler_kwargs: {timescale: 100}",
    "schedule: reduce_lr_on_plateau, lr_scheduler_kwargs: {patience: 2}",
    "metric_for_best_model: held_out_loss, load_best_model_at_end: true",
    "save_strategy: best, metric_for_best_model: eval_loss",
    "push_to_hub: true, hub_model_id: me/x, hub_strategy: end",
    "report_to: [wandb, tensorboard]",
    "report_to: all",
    "report_to: all, project: x",
    f"{CHECKPOINTING}: true, {CHECKPOINTING}_kwargs: {{use_reentrant: false, every_n_layers: 2}}",
    "debug: ''",
    "run_name: x",
    "torch_compile_backend: aot_eager",
    "early_stopping_patience: 3",
]


class TestRules:
    @pytest.mark.parametrize(("text", "reason"), REFUSED.items(), ids=REFUSED)
    def test_what_would_be_ignored_or_fail_late_is_refused_when_it_is_read(self, text: str, reason: str):
        with pytest.raises(RecipeError, match=r"recipe: (unknown key )?train\.") as caught:
            Recipe.from_dict({"train": parse("{" + text + "}", "here")})
        assert reason in str(caught.value)
        assert not str(caught.value).endswith(("..", "?."))

    @pytest.mark.parametrize("text", TAKEN)
    def test_what_means_something_is_not(self, text: str):
        Recipe.from_dict({"train": parse("{" + text + "}", "here")})

    @pytest.mark.skipif(RENAMED, reason="the installed transformers has the setting")
    def test_a_setting_of_later_versions_is_refused_with_the_older_name(self):
        for name in ("checkpointing", "checkpointing_kwargs"):
            with pytest.raises(RecipeError, match=rf"5\.23 on; set train\.gradient_{name}\.$"):
                Recipe.from_dict({"train": {f"activation_{name}": None}})

    def test_evaluation_settings_need_held_out_data(self):
        with pytest.raises(RecipeError, match=r"data\.validation is not given"):
            built(Train(early_stopping_patience=2))
        for asked in ({"per_device_eval_batch_size": 2}, {"metric_for_best_model": "held_out_loss"}):
            with pytest.raises(RecipeError, match=r"data\.validation is not given"):
                built(Train(arguments=asked))
            built(Train(arguments=asked), validation=True)

    @pytest.mark.parametrize(
        ("asked", "steps"),
        [({}, 10), ({"logging_steps": 4}, 4), ({"eval_steps": 3}, 3), ({"save_steps": 10}, 10),
         ({"eval_steps": 3, "save_strategy": "steps"}, 3)],
    )  # fmt: skip
    def test_early_stopping_saves_at_every_evaluation(self, asked: dict[str, Any], steps: int):
        arguments = {"eval_strategy": "steps", **asked}
        made = built(Train(early_stopping_patience=2, arguments=arguments), validation=True)
        assert (made.eval_steps, made.save_steps, made.save_strategy) == (steps, steps, "steps")
        for other in ({"save_steps": 2 * steps}, {"save_steps": 2 * steps, "save_strategy": "steps"}):
            changed = Train(early_stopping_patience=2, arguments=arguments | other)
            with pytest.raises(
                RecipeError, match=f"save_steps is {2 * steps}, .* every {steps} steps; leave"
            ):
                built(changed, validation=True)
        best = {"eval_strategy": "steps", "save_strategy": "best", "metric_for_best_model": "held_out_loss"}
        kept = built(Train(early_stopping_patience=2, arguments=best), validation=True)
        assert kept.save_strategy == "best"

    @given(st.integers(1, 4096), st.integers(1, 16), st.none() | st.integers(1, 64))
    def test_micro_batches_make_up_the_batch(self, batch_size: int, ranks: int, asked: int | None):
        if batch_size % ranks or (asked and (batch_size // ranks) % asked):
            with pytest.raises(RecipeError, match=rf"train\.batch_size is {batch_size}, which"):
                micro_batch(batch_size, ranks, asked)
            return
        size = micro_batch(batch_size, ranks, asked)
        assert batch_size % (size * ranks) == 0
        divisors = [d for d in range(1, 9) if (batch_size // ranks) % d == 0]
        assert size == (asked or max(divisors))

    def test_the_batch_is_global(self):
        made = built(Train(batch_size=64), ranks=4)
        assert made.per_device_train_batch_size * made.gradient_accumulation_steps * 4 == 64
