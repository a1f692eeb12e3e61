"""Commands as people write them: only words that are files become other words."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpipe_cluster.spec import commands

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
NAMES = st.text(
    st.characters(codec="ascii", categories=["L", "N", "P", "Zs"], exclude_characters="/'=\0"), min_size=1
)


@given(TEXTS)
def test_a_command_without_files_is_run_as_it_is_written(text: str) -> None:
    if not commands.is_closed(text):
        return
    found = commands.argv(text, lambda word: None)
    assert found == ["/bin/sh", "-c", text] or found == shlex.split(text)


@given(NAMES, st.sampled_from(["cat {}", "cat < /dev/null {} | cat", "A=1 cat -n {}", "cat --x={} && true"]))
def test_a_file_is_found_whatever_it_is_called(name: str, command: str) -> None:
    if commands.inside(name) != name:
        return  # an option, or no name
    run = command.format(shlex.quote(name) if shlex.quote(name) != name else name)
    found = commands.argv(run, lambda word: "/copy/of it" if word == name else None)
    words = shlex.split(found[2]) if found[0] == "/bin/sh" else found
    assert any(word.removeprefix("--x=") == "/copy/of it" for word in words)
    assert commands.argv(["cat", name], lambda word: "/copy" if word == name else None) == ["cat", "/copy"]


@pytest.mark.parametrize("into", [">", ">>", "2>", "2> ", "> "])
def test_what_is_written_is_no_input(into: str, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("old")
    run = f"echo new {into}out.txt"
    assert commands.travelling(run, [], tmp_path) == []
    found = commands.argv(run, lambda word: "/copy" if word == "out.txt" else None)
    subprocess.run(found, cwd=tmp_path, check=True, capture_output=True)
    assert not Path("/copy").exists()


@pytest.mark.parametrize("word", ["", "-x", "/etc/passwd", "~/x", "..", "../x", "a/../../x", "."])
def test_what_is_not_inside(word: str) -> None:
    assert commands.inside(word) is None


def test_a_circle_of_imports_and_a_broken_module_end(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import b")
    (tmp_path / "b.py").write_text("import a, c")
    (tmp_path / "c.py").write_text("this is no Python")
    assert commands.travelling("python a.py", [], tmp_path) == ["a.py", "b.py", "c.py"]
