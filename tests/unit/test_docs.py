"""The documentation says what the code says. Its shell blocks are executed by an acceptance test."""

import re
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from deployments.cli import app as cli
from deployments.upload_service.app import create_app
from tasks import errors
from tasks.settings import Settings
from tests.readme import CHECKOUT, README, between_markers, executed_block, settings_table

DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")])


def code(document: Path) -> str:
    """All that is set as code: fenced blocks and code spans."""
    text = document.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return "\n".join([*fenced, *spans])


def commands() -> set[str]:
    """`up`, `models pull`, …: every command that `kycflow` has, and the groups."""
    root = typer.main.get_command(cli)
    found = set()
    for name, command in getattr(root, "commands").items():  # noqa: B009  # Typer's type does not promise a group
        found.add(name)
        found |= {f"{name} {sub}" for sub in getattr(command, "commands", {})}
    return found


def test_settings_table_is_that_of_the_class() -> None:
    assert between_markers(README.read_text()) == settings_table(), "run: python -m tests.readme"


def test_settings_table_has_every_setting_with_a_meaning() -> None:
    rows = settings_table().splitlines()[2:]
    assert len(rows) == len(Settings.model_fields)
    assert not [row for row in rows if row.endswith("|  |")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_variables_exist(document: Path) -> None:
    ours = {f"KYCFLOW_{name.upper()}" for name in Settings.model_fields}
    shell_only = {"KYCFLOW_API", "KYCFLOW_TEST_POSTGRES_URL", "KYCFLOW_TEST_FUZZ_EXAMPLES"}
    assert set(re.findall(r"KYCFLOW_[A-Z0-9_]+", document.read_text())) <= ours | shell_only


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", code(document), re.MULTILINE)) <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_commands_exist(document: Path) -> None:
    known = commands()
    for name, sub in re.findall(r"^kycflow ([a-z]+)(?: ([a-z]+))?", code(document), re.MULTILINE):
        assert name in known, f"kycflow {name}"
        if sub and f"{name} {sub}" not in known:
            pytest.fail(f"kycflow {name} {sub}")


def test_readme_shows_the_two_commands_and_every_command_of_the_program() -> None:
    text = code(README)
    assert {"make demo", "make test"} <= set(re.findall(r"^make [a-z]+", text, re.MULTILINE))
    groups = {command.split()[0] for command in commands() if " " in command}
    leaves = {command for command in commands() if command not in groups}
    assert leaves <= set(
        re.findall(rf"^kycflow ({'|'.join(sorted(leaves, key=len, reverse=True))})", text, re.MULTILINE)
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_and_images_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = (document.parent / path) if path else document
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in headings}, (
                target
            )


def test_version_is_one() -> None:
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    deployments = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
    assert {deployment["version"] for deployment in deployments} == {version}
    assert f"## [{version}]" in (CHECKOUT / "CHANGELOG.md").read_text()


def test_named_api_paths_exist() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    shapes = {re.sub(r"\{[^}]+\}", "{}", path) for path in paths}
    text = README.read_text()
    named = re.findall(r'\$KYCFLOW_API(/[^"\s]*)"', text) + re.findall(r"`(?:GET|POST|PUT) (/sessions[^`]*)`", text)
    assert len(named) >= 6
    assert {re.sub(r"\$SESSION|\{[^}]+\}", "{}", path) for path in named} <= shapes


def test_named_deployment_exists() -> None:
    deployments = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
    entries = {
        f"{deployment['entrypoint'].split('.')[-1].replace('_', '-')}/{deployment['name']}"
        for deployment in deployments
    }
    named = re.findall(r"deployments/name/([a-z-]+/[a-z-]+)", README.read_text())
    assert named
    assert set(named) <= entries


def test_sweeps_interval_is_named_as_it_is() -> None:
    deployments = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
    (seconds,) = [s["interval"] for d in deployments if d["name"] == "sweep-sessions" for s in d["schedules"]]
    words = {60: "every minute", 600: "every ten minutes", 1800: "every half hour", 3600: "every hour"}
    for document in (README, CHECKOUT / "docs" / "architecture.md", CHECKOUT / "CHANGELOG.md"):
        assert {found for found in words.values() if found in document.read_text()} == {words[seconds]}, document.name


@pytest.mark.parametrize("name", ["upload-api", "foreign-upload"])
def test_executed_blocks_are_there_and_use_nothing_undeclared(name: str) -> None:
    block = executed_block(name)
    given = {"KYCFLOW_API", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "STORAGE", "ID_IMAGE", "SELFIE_VIDEO"}
    assigned = set(re.findall(r"^\s*([A-Z_]+)=", block, re.MULTILINE))
    assert set(re.findall(r"\$\{?([A-Z_]+)", block)) <= given | assigned


def test_architecture_has_the_error_tree_of_the_code() -> None:
    tree = (CHECKOUT / "docs" / "architecture.md").read_text().split("## Errors")[1].split("```")[1]
    named = set(re.findall(r"(?<![A-Za-z])[A-Z][a-z]+(?:[A-Z][a-z]+)+|Refused", tree))
    classes = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.KycflowError)
    }
    assert named == classes


def test_architecture_has_every_table() -> None:
    from tasks.database.tables import Base

    section = (CHECKOUT / "docs" / "architecture.md").read_text().split("## Tables")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)) == set(Base.metadata.tables)
