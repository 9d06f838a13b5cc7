"""What is released: the wheel that is built from the sdist, its dependencies, and the repository behind it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sparsebench

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sparsebench"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINKED = ("adapters", "suites", "reports")
LIMIT = 10 * 2**20
"""Bytes of all files of the repository."""


def files_below(folder: Path) -> set[str]:
    """Paths of all files in a folder and in the folders that it links to, caches left out."""
    found = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {str(Path(here, name).relative_to(folder)) for name in names if not name.endswith(".pyc")}
    return found


@pytest.fixture(scope="module")
def repository() -> list[Path]:
    """Files that git has; links are not among them."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel in it; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    scripts = folder / Path(sys.executable).parent.name
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(built[1])], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def outside(command: list[str], folder: Path) -> str:
    """Standard output of a command that runs away from the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_wheel_holds_the_package_and_nothing_beside_it(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[1]).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"sparsebench", f"sparsebench-{sparsebench.__version__}.dist-info"}


def test_the_wheel_holds_every_file_of_the_package(built: tuple[Path, Path]) -> None:
    inside = {
        n.removeprefix("sparsebench/") for n in zipfile.ZipFile(built[1]).namelist() if n.startswith("sparsebench/")
    }
    wanted = files_below(PACKAGE)
    assert inside == wanted
    for folder in LINKED:
        assert any(name.startswith(f"{folder}/") for name in inside)
    assert {"suites/quickstart.yaml", "suites/tasks/facts-short.yaml", "py.typed"} <= inside


def test_every_folder_with_code_is_a_package() -> None:
    files = files_below(PACKAGE)
    for folder in {str(Path(name).parent) for name in files if name.endswith(".py")}:
        assert str(Path(folder, "__init__.py")) in files, f"{folder} has no __init__.py"


def test_templates_and_assets_are_in_the_wheel(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    for folder in ("templates", "assets"):
        there = {path.name for path in (ROOT / "leaderboard" / folder).rglob("*") if path.is_file()}
        assert there
        assert there <= {Path(name).name for name in names if f"/reports/{folder}/" in name}


def test_the_sdist_holds_what_its_tests_read(built: tuple[Path, Path]) -> None:
    names = {name.partition("/")[2] for name in tarfile.open(built[0]).getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "constraints.txt", "quickstart"}
    assert wanted <= names
    assert "docs/architecture.md" in names
    assert "tests/test_packaging.py" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".git/", ".venv", "results"))]


def test_the_wheel_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    listed = outside([str(installed / "sparsebench"), "list", "adapters"], tmp_path)
    assert "wanda" in listed
    assert "quickstart" in outside([str(installed / "sparsebench"), "list", "suites"], tmp_path)
    code = "import sys, sparsebench.adapters as a; a.cards(); print(a.__file__); print(*sys.modules)"
    file, modules = outside([str(installed / "python"), "-c", code], tmp_path).splitlines()
    assert Path(file).is_relative_to(installed.parent)
    assert not set(LINKED) & set(modules.split())


def test_bare_names_are_not_imported_here() -> None:
    assert not set(LINKED) & set(sys.modules)


def test_the_folders_of_the_package_are_relative_links() -> None:
    for name in LINKED:
        link = PACKAGE / name
        if not link.is_symlink():
            pytest.skip("an unpacked sdist has folders instead")
        assert os.readlink(link) == f"../../{name}"
        assert (ROOT / name).is_dir()


def test_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    assert sparsebench.__version__ == version
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == version
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version


def test_the_citation_is_valid() -> None:
    from cffconvert.cli.create_citation import create_citation

    create_citation(str(ROOT / "CITATION.cff"), None).validate()


def test_the_license_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def requirements() -> list[Requirement]:
    """All that the project asks for: to run, as extras, to develop."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    groups = PROJECT["dependency-groups"].values()
    texts = [*PROJECT["project"]["dependencies"], *(text for each in (*extras, *groups) for text in each)]
    return [Requirement(text) for text in texts]


def constraints() -> dict[str, str]:
    """Tested versions by canonical name."""
    pins = [
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    for pin in pins:
        assert re.fullmatch(r"==[^+*]+", str(pin.specifier)), f"{pin}: one version, without a local part"
        assert pin.url is None
    names = [canonicalize_name(pin.name) for pin in pins]
    assert names == sorted(set(names))
    return {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}


def test_every_requirement_has_a_tested_version_that_it_admits() -> None:
    pinned = constraints()
    for requirement in requirements():
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} does not admit the tested {version}"


def test_what_is_imported_is_required_and_the_other_way_round() -> None:
    imported = set()
    for name in files_below(PACKAGE):
        if name.endswith(".py"):
            for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    imported.add(node.module.partition(".")[0])
    imported -= {"sparsebench", *sys.stdlib_module_names}
    distributions = packages_distributions()
    needed = {canonicalize_name(distributions[module][0]) for module in imported if module in distributions}
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    optional = {canonicalize_name(r.name) for r in requirements()} - declared
    assert needed - declared <= optional, "imported and not required"
    assert not declared - needed, "required and not imported"


def test_the_repository_is_small(repository: list[Path]) -> None:
    assert sum(path.stat().st_size for path in repository) < LIMIT


def pip_sources() -> set[str]:
    """Hosts and folders that pip on this machine takes packages from."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    config = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values = [
        value for key, value in re.findall(r"^(\S+)='(.*)'$", config, re.MULTILINE) if re.search("index|links", key)
    ]
    values += [os.environ.get(name, "") for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")]
    places = {urlsplit(word).hostname or urlsplit(word).path for value in values for word in value.split()}
    return {place for place in places if len(place) > 4 and place not in ("localhost", "127.0.0.1")}


def test_no_file_names_a_registry_or_a_folder_of_somebodys_machine(repository: list[Path]) -> None:
    homes = "|".join(("home", "root", "Users", "work", "opt", "mnt"))
    path = re.compile(rf"(?<![\w.~$}}/)-])/(?:{homes})/(?!me/)\w")
    hosts = [r"pypi[.]org", r"pythonhosted[.]org", r"pytorch[.]org/whl", *map(re.escape, pip_sources())]
    host = re.compile("|".join(hosts))
    for file in repository:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for pattern in (path, host):
            found = pattern.search(text)
            assert found is None, f"{file.relative_to(ROOT)} names {found[0] if found else ''}"
