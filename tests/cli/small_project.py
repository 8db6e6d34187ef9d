"""What the command-line tests handle: a command under way, and a folder to give commands in."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass
class Command:
    """A command that was started; `wait` for its end."""

    pid: int
    out: Path
    err: Path
    server: "Server"
    code: int | None = None

    def wait(self) -> "Command":
        self.code = self.server.answer()["code"]
        return self

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.err.read_text()


class Server:
    """Starts commands, one at a time, off a process that has done the imports already; see `warm.py`."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("warm.py")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.started = 0

    def start(
        self, folder: Path, *arguments: str | Path, group: bool = False, **streams: Path | None
    ) -> Command:
        """`python -m gradwise ARGUMENTS` in a folder, in a process group of its own where asked for.

        Its output goes to hidden files there, or where `out` and `err` say: a path, or None to close it.
        """
        self.started += 1
        out, err = (folder / f".{stream}{self.started}" for stream in ("out", "err"))
        for path in (out, err):
            path.touch()
        paths = {"out": out, "err": err} | streams
        request = {"argv": [str(a) for a in arguments], "cwd": str(folder), "group": group} | {
            name: None if path is None else str(path) for name, path in paths.items()
        }
        assert self.process.stdin
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return Command(self.answer()["pid"], out, err, self)

    def answer(self) -> dict[str, int]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


Start = Callable[..., Command]


@dataclass
class Project:
    """A folder with a recipe that trains in about a second; tests change what they are about."""

    folder: Path
    recipe: dict[str, Any]

    @classmethod
    def make(cls, folder: Path, stories: Path) -> "Project":
        """Two epochs of three steps over real text, with a little held out."""
        project = cls(
            folder,
            {
                "model": {"name": str(stories)},
                "data": {
                    "train": "train.jsonl",
                    "validation": "held_out.jsonl",
                    "max_length": 64,
                    "allow": {"cut": 1},
                },
                "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1},
                "layers": {"method": "grass", "active": 2, "period": 2, "probe": 1},
            },
        )
        for name, count, source in (("train", 24, "plays_train"), ("held_out", 4, "plays_held_out")):
            lines = (stories.parent / f"{source}.jsonl").read_text().splitlines()[:count]
            project.records(f"{name}.jsonl", lines)
        return project

    @property
    def path(self) -> Path:
        """The recipe, written as it stands now."""
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.recipe))
        return path

    def records(self, name: str, lines: list[Any]) -> None:
        """Write records, one object to a line; strings as they are."""
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (self.folder / name).write_text("".join(text + "\n" for text in texts))
