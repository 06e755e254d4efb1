"""What an operator may set: frozen models, unknown keys are errors, each field's description is its
documentation.

It knows YAML and nothing of models: a checkpoint is a string until someone loads it. There is one
spelling per setting and no environment layer beside it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from tokenreward.wire import NAME_PATTERN, path


class SettingsError(ValueError):
    """A configuration that cannot be served; the message names the setting."""


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScorerSettings(Frozen):
    """One named scorer on a deployment."""

    type: str = Field(
        description="A file of `tokenreward/scorers/`, or `package.module:Class` of your own."
    )
    name: str | None = Field(
        default=None, pattern=NAME_PATTERN, description="Unique in the config; default: the type."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Defaults for requests that do not set them."
    )

    @model_validator(mode="after")
    def _a_path_is_no_name(self) -> ScorerSettings:
        if self.name is None and re.fullmatch(NAME_PATTERN, self.type) is None:
            raise ValueError(f"`name` is required: requests could not use `{self.type}` as one")
        return self

    @property
    def served_name(self) -> str:
        """The name that requests use."""
        return self.name if self.name is not None else self.type

    @property
    def score_from(self) -> str | None:
        """The scorer that is asked for the score of items that have none; of the options, the one
        that the front reads."""
        named = self.options.get("score_from")
        return named if isinstance(named, str) else None


class DeploymentSettings(Frozen):
    """One checkpoint, held once, with every scorer that reads it."""

    name: str = Field(
        pattern=NAME_PATTERN, description="Route: the deployment answers at `/d/{name}`."
    )
    checkpoint: str = Field(
        min_length=1,
        description="Local folder, hub id, or `demo:base|sft|dpo|rm` for an embedded model.",
    )
    adapter: str | None = Field(
        default=None,
        min_length=1,
        description="PEFT LoRA adapter that is put on `checkpoint`: local folder or hub id.",
    )
    reference_checkpoint: str | None = Field(
        default=None,
        min_length=1,
        description="The model that `implicit` compares with, named as `checkpoint` is. Default: `checkpoint` without "
        "its `adapter`, for which the weights are held once.",
    )
    version: int = Field(
        default=1, ge=0, description="Version of the weights, stamped on every reply."
    )
    task: Literal["causal_lm", "reward_model"] = Field(description="How the checkpoint is loaded.")
    scorers: tuple[ScorerSettings, ...] = Field(
        min_length=1, description="The scorers served on this checkpoint."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Dtype of the trunk."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="`auto` takes a GPU if Ray grants one."
    )
    revision: str | None = Field(default=None, description="Hub revision.")
    adapter_revision: str | None = Field(default=None, description="Hub revision of `adapter`.")
    reference_revision: str | None = Field(
        default=None, description="Hub revision of `reference_checkpoint`."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that the checkpoint ships."
    )
    allow_pickle: bool = Field(default=False, description="Load `.bin` weights, which are pickles.")
    suffix_text: str | None = Field(
        default=None,
        description="Reward models: text read after the response; its last token is pooled.",
    )
    normalize_reward: bool | None = Field(
        default=None,
        description=(
            "Reward models: (value - mean) / std by config.json; default: as its "
            "`normalize_reward` says."
        ),
    )
    chat_template: str | None = Field(
        default=None, description="Jinja; replaces the tokenizer's own template."
    )
    max_sequence_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest prompt + response; default: what the model's positions allow.",
    )
    max_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens in one forward pass; default: 4096 on a CPU, 16384 on a GPU.",
    )
    max_batch_requests: int = Field(default=512, ge=1, description="Items in one forward pass.")
    max_queued_tokens: int = Field(
        default=1_000_000, ge=1, description="Tokens that may wait; past it: 503."
    )
    max_concurrent_requests: int = Field(
        default=1024, ge=1, description="Requests one replica holds at a time."
    )
    num_replicas: int = Field(default=1, ge=1, description="Replicas of this deployment.")
    num_cpus: float = Field(
        default=1, ge=0, description="CPUs that Ray reserves per replica; also its threads."
    )
    num_gpus: float = Field(
        default=0, ge=0, le=1, description="GPUs that Ray reserves per replica; one at most."
    )

    @model_validator(mode="after")
    def _a_reward_models_settings_need_one(self) -> DeploymentSettings:
        for name in ("suffix_text", "normalize_reward"):
            if getattr(self, name) is not None and self.task != "reward_model":
                raise ValueError(f"`{name}` has no effect with task `{self.task}`")
        return self

    @model_validator(mode="after")
    def _a_revision_is_of_something(self) -> DeploymentSettings:
        for name, of in (
            ("adapter_revision", "adapter"),
            ("reference_revision", "reference_checkpoint"),
        ):
            if getattr(self, name) is not None and getattr(self, of) is None:
                raise ValueError(f"`{name}` has no effect without `{of}`")
        return self

    @property
    def model(self) -> str:
        """The model's name in replies."""
        return self.checkpoint if self.adapter is None else f"{self.checkpoint} + {self.adapter}"

    @property
    def reference(self) -> str | None:
        """The name of what the model is compared with; None if there is nothing."""
        base = None if self.adapter is None else self.checkpoint
        return self.reference_checkpoint or base


class Settings(Frozen):
    """The whole service."""

    deployments: tuple[DeploymentSettings, ...] = Field(
        min_length=1, description="One entry per checkpoint."
    )
    host: str = Field(default="127.0.0.1", description="Address that HTTP listens on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port that HTTP listens on.")
    api_keys_file: Path | None = Field(
        default=None,
        description=(
            "File with one key per line; every route but /healthz and /readyz then wants one."
        ),
    )
    max_body_bytes: int = Field(
        default=16 * 2**20, ge=1, description="Largest request body; past it: 413."
    )
    max_request_items: int = Field(
        default=4096, ge=1, description="Most items in one request; past it: 413."
    )
    request_timeout_s: float = Field(
        default=300.0,
        gt=0,
        allow_inf_nan=False,
        description="Deadline of a request that names none.",
    )
    gateway_num_cpus: float = Field(
        default=0.1, ge=0, description="CPUs that Ray reserves for the gateway."
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Settings:
        _refuse_twice("deployments", [deployment.name for deployment in self.deployments])
        _refuse_twice(
            "scorers", [scorer.served_name for d in self.deployments for scorer in d.scorers]
        )
        return self

    @model_validator(mode="after")
    def _scores_come_from_scorers_that_have_their_own(self) -> Settings:
        scorers = {scorer.served_name: scorer for d in self.deployments for scorer in d.scorers}
        for name, scorer in scorers.items():
            source = scorer.score_from
            if source is None:
                continue
            where = f"`scorers`: `{name}`: the option `score_from` names `{source}`"
            if source not in scorers:
                raise ValueError(f"{where}; there are {', '.join(scorers)}")
            if scorers[source].score_from is not None:
                raise ValueError(
                    f"{where}, which takes its own score from `{scorers[source].score_from}`"
                )
        return self

    def api_keys(self) -> tuple[SecretStr, ...]:
        """The accepted keys; empty if the service is open. Raises SettingsError."""
        return read_api_keys(self.api_keys_file)


def read_api_keys(file: Path | str | None) -> tuple[SecretStr, ...]:
    """The keys in a file, one per line; empty without a file. Raises SettingsError, also for a key
    that a caller's header cannot carry: it would never match."""
    if file is None:
        return ()
    try:
        lines = (
            Path(file).read_text(encoding="utf-8-sig").splitlines()
        )  # some editors put a mark in front
    except OSError as error:
        raise SettingsError(f"`api_keys_file`: cannot read {file}: {error.strerror}") from None
    except UnicodeError:
        raise SettingsError(f"`api_keys_file`: {file} is not UTF-8 text") from None
    keys = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    for number, key in keys.items():
        if not all(
            "!" <= character <= "~" for character in key
        ):  # the message does not quote it: it ends up in logs
            message = "a key is printable ASCII without white space"
            raise SettingsError(f"`api_keys_file`: {file}, line {number}: {message}")
    if not keys:
        raise SettingsError(f"`api_keys_file`: {file} holds no key")
    return tuple(SecretStr(key) for key in keys.values())


def load_settings(file: Path) -> Settings:
    """Settings from one YAML file; relative paths in it are relative to it. Raises
    SettingsError."""
    import yaml  # the server's dependency: a client that imports this module does not need it

    class OnceEach(yaml.SafeLoader):
        """PyYAML lets a key that stands twice win silently; here it is an error."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"`{key.value}` is set twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=OnceEach)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeError:
        raise SettingsError(f"{file} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{file} must hold a mapping with `deployments`")
    try:
        return parse_settings(_with_absolute_paths(content, file.resolve().parent))
    except SettingsError as error:
        raise SettingsError(
            "\n".join(f"{file}: {line}" for line in str(error).splitlines())
        ) from None


def parse_settings(content: dict[str, Any]) -> Settings:
    """Settings from plain objects. Raises SettingsError, one line per setting that is wrong."""
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        wrong_inside = {
            problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))
        }
        lines = [
            _line(path(problem["loc"]), problem["type"], problem["msg"])
            for problem in problems
            if problem["type"] != "too_short"
            or problem["loc"] not in wrong_inside  # it counts valid entries only
        ]
        raise SettingsError("\n".join(lines)) from None


def demo_settings() -> Settings:
    """The embedded demo: a language model, a DPO model with its reference, and a reward model;
    eight scorer types."""
    lm_scorers = [
        {"type": "endogenous"},
        {"type": "endogenous", "name": "logprob", "options": {"form": "logprob"}},
        {"type": "entropy"},
        {"type": "treg"},
        {"type": "generation_attention", "options": {"score_from": "reward_model"}},
    ]
    rm_scorers = [
        {"type": "reward_model"},
        {"type": "attention_dense"},
        {"type": "process", "options": {"layout": "skywork"}},
    ]
    return parse_settings(
        {
            "deployments": [
                {
                    "name": "sft",
                    "checkpoint": "demo:sft",
                    "task": "causal_lm",
                    "scorers": lm_scorers,
                },
                {
                    "name": "dpo",
                    "checkpoint": "demo:dpo",
                    "reference_checkpoint": "demo:sft",
                    "task": "causal_lm",
                    "scorers": [{"type": "implicit"}],
                },
                {
                    "name": "rm",
                    "checkpoint": "demo:rm",
                    "task": "reward_model",
                    "scorers": rm_scorers,
                },
            ]
        }
    )


def _with_absolute_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A checkpoint that is a folder beside the config, or a key file, keeps its meaning wherever it
    is read."""
    keys = content.get("api_keys_file")
    if isinstance(keys, str):
        content = {**content, "api_keys_file": str(folder / keys)}
    deployments = content.get("deployments")
    if not isinstance(deployments, list):
        return content
    return {
        **content,
        "deployments": [_with_absolute_folders(entry, folder) for entry in deployments],
    }


def _with_absolute_folders(entry: object, folder: Path) -> object:
    if not isinstance(entry, dict):
        return entry
    given = {name: entry.get(name) for name in ("checkpoint", "adapter", "reference_checkpoint")}
    paths = {name: folder / path for name, path in given.items() if isinstance(path, str) and path}
    return {**entry, **{name: str(path) for name, path in paths.items() if path.is_dir()}}


def _refuse_twice(field: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"`{field}`: the name `{name}` is used {names.count(name)} times; names are unique"
            )


def _line(where: str, kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"unknown setting `{where}`"
    if kind == "missing":
        return f"`{where}` is required"
    return f"`{where}`: {message}" if where else message.removeprefix("Value error, ")
