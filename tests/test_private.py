"""A Ray of our own: its token is its user's alone, and nothing of it listens to other machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gemel_ray.environment import ensure_private_token


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".ray" / "auth_token"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_token_is_made_for_its_user_alone_and_kept(token: Path) -> None:
    ensure_private_token()
    made = token.read_text()
    assert len(made) == 64
    assert (mode(token), mode(token.parent)) == (0o600, 0o700)
    assert [file.name for file in token.parent.iterdir()] == ["auth_token"]
    ensure_private_token()
    assert token.read_text() == made


def test_a_token_that_ray_has_written_for_everybody_is_closed(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("word")
    token.chmod(0o644)
    ensure_private_token()
    assert (token.read_text(), mode(token)) == ("word", 0o600)


def test_a_token_of_the_environment_needs_no_file(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "word")
    ensure_private_token()
    assert not token.parent.exists()


def test_a_ray_that_is_started_here_has_the_loopback_s_address(token: Path) -> None:
    """Which Ray then gives to all that it starts; asked in a process that has not imported ray yet."""
    program = "from gemel_ray.environment import before_ray; before_ray('local'); "
    program += "from ray._private import services; print(services.get_node_ip_address())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() in ("127.0.0.1", "::1")
