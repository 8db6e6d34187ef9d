"""Commands as a user gives them, and a small project to give them in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.small_project import Project, Server, Start


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Start:
    """Starts `python -m gradwise ARGUMENTS` in the test's folder."""
    return lambda *arguments, cwd=tmp_path: server.start(cwd, *arguments)


@pytest.fixture
def gradwise(start: Start) -> Start:
    """Runs `python -m gradwise ARGUMENTS` to its end."""
    return lambda *arguments, **options: start(*arguments, **options).wait()


@pytest.fixture
def project(tmp_path: Path, stories: Path) -> Project:
    return Project.make(tmp_path, stories)
