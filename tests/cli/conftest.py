"""Commands as a user gives them, and a small project to give them in."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.small_project import Command, Project, Server, Start


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Start]:
    """Starts `python -m gradwise ARGUMENTS` in the test's folder; what a failed test leaves is killed."""
    started: list[Command] = []

    def start(*arguments: str | Path, cwd: Path = tmp_path, **options: Any) -> Command:
        started.append(server.start(cwd, *arguments, **options))
        return started[-1]

    yield start
    for command in started:
        if command.code is None:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(command.pid, signal.SIGKILL)
            command.wait()


@pytest.fixture
def gradwise(start: Start) -> Start:
    """Runs `python -m gradwise ARGUMENTS` to its end."""
    return lambda *arguments, **options: start(*arguments, **options).wait()


@pytest.fixture
def project(tmp_path: Path, stories: Path) -> Project:
    return Project.make(tmp_path, stories)
