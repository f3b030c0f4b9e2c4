"""The help of the command line: two screens for each command, options that say what they are, the right classes."""

import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from shell import cli

from diffusion_pl.__main__ import COMMANDS, main
from diffusion_pl.commands.completion import all_parsers
from diffusion_pl.runtime import help
from diffusion_pl.runtime.help_pages import PAGES, TRAINER
from diffusion_pl.runtime.upstream.jsonargparse import options_of, set_help

#: Words that a help text does not begin with: articles, verbs, and others that are no nouns or adjectives.
NOT_NOUNS = (
    "A An The Whether If How What Which When Where Of For From To In On As With Also Must May None Let Read Write Use "
    "Set Show Print Make Makes Wraps Keep Keeps Take Takes Stop Compile Enable Disable Supports Give Put Draw Draws "
    "Measure Compute Fill Convert"
)
#: Options that everyone changes.
COMMON = (
    "config run ckpt_path init_from trainer.max_steps trainer.devices trainer.precision model.optimizer.lr data "
    "data.batch_size ema guard doctor print_config help-all"
)


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ArgumentParser]:
    with chdir(tmp_path_factory.mktemp("help")):
        return all_parsers()


def test_each_command_has_a_page() -> None:
    assert set(PAGES) == set(COMMANDS)


def test_page_of_the_command_line_lists_all_commands() -> None:
    page = (Path(__file__).parents[1] / "docs/pages/commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE)[: len(COMMANDS)] == list(COMMANDS.items())


def test_main_help_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_command_fits_two_screens(parsers: dict[str, ArgumentParser], command: str) -> None:
    text = parsers[command].format_help()
    lines = text.splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(f"usage: python -m diffusion_pl {command}")
    assert "__main__" not in text
    examples = [line for line in lines if line.startswith(f"  python -m diffusion_pl {command} ")]
    assert 1 <= len(examples) <= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_name_options_that_exist(parsers: dict[str, ArgumentParser], command: str) -> None:
    known = {option.name for option in options_of(parsers[command])}
    for example in PAGES[command].examples:
        for option in re.findall(r"--[\w.-]+", example):
            assert option in known or any(option.startswith(f"{name}.") for name in known), option


def test_fit_help_begins_with_common_options(parsers: dict[str, ArgumentParser]) -> None:
    text = parsers["fit"].format_help()
    for name in COMMON.split():
        assert re.search(rf"(^|[|]| )-*{name}\b", text, re.MULTILINE), name
    places = [text.index(f"\n  --{name} ") for name in ("config", "ckpt_path", "trainer.max_steps", "data")]
    assert places == sorted(places)
    assert "--data.help Folder" in text
    assert re.search(r"last\b.*\bauto\b", text[text.index("--ckpt_path PATH") :], re.DOTALL)


def all_options(parsers: dict[str, ArgumentParser]) -> Iterator[tuple[str, str, Any]]:
    """Name, text and option of all options of all commands; those that several commands share come once."""
    seen = set()
    for command, parser in parsers.items():
        set_help(parser, PAGES[command].texts)
        types = {option.name[2:]: option.kind for option in options_of(parser)}
        for option in options_of(parser):
            if option.is_class_help or (option.name, option.help) in seen:
                continue
            seen.add((option.name, option.help))
            yield f"{command} {option.name}", help.describe(option, types, listed=False), option


def test_each_option_says_what_it_is_and_its_default(parsers: dict[str, ArgumentParser]) -> None:
    for name, text, option in all_options(parsers):
        first = re.match(r"[\w'-]+", text)
        assert first is not None, name
        assert first[0][0].isupper() or first[0][0].isdigit(), (name, text)
        assert first[0] not in NOT_NOUNS.split(), (name, text)
        assert len(text) > 8, (name, text)
        sections = ("--config", "--ema", "--saver", "--guard", "--doctor", "--model", "--trainer")
        if option.takes_value and option.name not in sections:
            assert "default" in text.lower() or "(required)" in text, (name, text)


def test_replaced_texts_are_of_options_that_exist(parsers: dict[str, ArgumentParser]) -> None:
    names = {option.name[2:] for parser in parsers.values() for option in options_of(parser)}
    assert set(TRAINER) <= names


@pytest.mark.parametrize("command", ["fit", "sample", "import"])
def test_help_all_lists_every_option(
    parsers: dict[str, ArgumentParser], capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with pytest.raises(SystemExit) as end:
        parsers[command].parse_args(["--help-all"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert max(map(len, text.splitlines())) <= 100
    for option in options_of(parsers[command]):
        assert option.is_class_help or option.name in text, option.name
    assert not re.search(r"\b(from|data)_\b", text)


def test_classes_of_network_are_networks(parsers: dict[str, ArgumentParser]) -> None:
    option = next(option for option in options_of(parsers["fit"]) if option.name == "--model.network")
    text = help.describe(option, {"model.network": option.kind})
    names = set(text.partition("Classes: ")[2].partition(". Options")[0].split(", "))
    assert {"MLP", "UNet", "DiT"} <= names
    assert len(names) < 10
    from diffusion_pl import networks

    assert all(hasattr(networks, name) for name in names)


def test_help_of_a_class_lists_its_options(tmp_path: Path) -> None:
    done = cli(tmp_path, "fit", "--data.help", "Folder")
    assert done.code == 0
    assert "--data.path TEXT" in done.out
    assert "--data.horizontal_flip true|false" in done.out
    assert "(default: 32)" in done.out
    assert "__main__" not in done.out


def test_completion_without_shtab_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_pl.commands.completion.find_spec", lambda name: None)
    assert "diffusion_pl[completion]" in cli(tmp_path, "completion", "bash").error


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_script_names_commands_and_options(tmp_path: Path, shell: str) -> None:
    pytest.importorskip("shtab")
    done = cli(tmp_path, "completion", shell)
    assert done.code == 0, done.err
    for word in (*COMMANDS, "--trainer.max_steps", "--ckpt_path", "--help-all"):
        assert word.lstrip("-") in done.out, word
    assert "data_" not in re.findall(r"--data_?(?=[\s'\".=])", done.out)
    if shell == "bash":
        assert complete(tmp_path, done.out, "ev") == ["evaluate"]
        assert "--trainer.max_steps" in complete(tmp_path, done.out, "fit", "--trainer.max")
        assert complete(tmp_path, done.out, "fit", "--model.schedule", "Cos") == ["Cosine", "CosineBetas"]


def complete(folder: Path, script: str, *words: str) -> list[str]:
    """What bash offers for the last word of a command line of diffusion_pl."""
    import shlex
    import subprocess

    (folder / "script.sh").write_text(script)
    line = ["diffusion_pl", *words]
    code = f"""source {folder}/script.sh
COMP_WORDS=({shlex.join(line)}); COMP_CWORD={len(line) - 1}; COMP_TYPE=9
function=$(complete -p diffusion_pl | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    return sorted(word.strip() for word in done.stdout.split() if word)
