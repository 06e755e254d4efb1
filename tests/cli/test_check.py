"""`tokenreward check`: what it says of a good config, a wrong one, and a checkpoint that cannot be
served."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenreward.cli import main


def config(folder: Path, checkpoint: Path, **changes: str) -> str:
    lines = {
        "name": "lm",
        "checkpoint": str(checkpoint),
        "task": "causal_lm",
        "scorers": "[{type: endogenous}]",
        **changes,
    }
    file = folder / "config.yaml"
    body = "\n    ".join(f"{name}: {value}" for name, value in lines.items())
    file.write_text(f"deployments:\n  - {body}\n")
    return str(file)


def test_a_good_config_is_probed_and_its_scorers_are_named(
    tmp_path: Path, language_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--config", config(tmp_path, language_model)]) == 0
    output = capsys.readouterr().out
    assert "packed layout: differs from the model's own forward" in output
    assert "lm: serves endogenous (endogenous), credits values, last, uniform, discount" in output


def test_settings_only_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["check", "--settings-only", "--config", config(tmp_path, tmp_path / "nowhere")]) == 0
    )
    assert "all valid" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown setting `deployments[0].colour`"),
        ({"scorers": "[{type: endogenus}]"}, "no scorer type `endogenus`"),
        (
            {"scorers": "[{type: reward_model}]"},
            "type `reward_model` reads a reward_model, this is a causal_lm",
        ),
        ({"scorers": "[{type: endogenous, options: {alpa: 1}}]"}, "`options.alpa`: unknown option"),
        ({"task": "reward_model", "scorers": "[{type: reward_model}]"}, "holds no value head"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    tmp_path: Path,
    language_model: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    message: str,
) -> None:
    assert main(["check", "--config", config(tmp_path, language_model, **changes)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("more", [[], ["--settings-only"]])
def test_settings_of_every_scorer_are_looked_at_and_not_called_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    file = Path(config(tmp_path, tmp_path / "nowhere", scorers="[{type: endogenus}]"))
    second = (
        "\n  - {name: b, checkpoint: x, task: causal_lm, scorers: [{type: treg, options: {a: 1}}]}"
    )
    file.write_text(file.read_text().rstrip() + second + "\n")
    assert main(["check", "--config", str(file), *more]) == 1
    output = capsys.readouterr()
    assert "valid" not in output.out
    assert "no scorer type `endogenus`" in output.err
    assert "`options.a`: unknown option" in output.err


def test_every_deployment_is_looked_at_where_one_does_not_fit_its_checkpoint(
    tmp_path: Path, language_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only its tokenizer tells that `yes` is no single token."""
    scorers = "[{type: generative, options: {'yes': [not a single token]}}]"
    file = Path(config(tmp_path, language_model, scorers=scorers))
    good = "task: causal_lm, scorers: [{type: endogenous}]"
    second = f"\n  - {{name: good, checkpoint: {language_model}, {good}}}\n"
    file.write_text(file.read_text().rstrip() + second)
    assert main(["check", "--config", str(file)]) == 1
    output = capsys.readouterr()
    assert "good: serves endogenous" in output.out
    assert output.err.startswith("error: deployment `lm`, scorer `generative`: ")
