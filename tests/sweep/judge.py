"""One architecture: a tiny random model, saved, loaded and probed as any checkpoint is. Its numbers
are compared with those of its own forward in float64.

The truth is transformers' eager forward of each row alone. It owes nothing to how the service runs
rows. It knows no command line.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fakes import tiny
from sweep.configs import WHY_NOT_BUILT, tiny_config
from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused, load_checkpoint
from tokenreward.contract import Needs, Outputs, Row, RowRequest, Task
from tokenreward.forward.layout import Layout
from tokenreward.forward.probe import choose_layout
from tokenreward.forward.two_way import choose_two_way_layout
from tokenreward.settings import DeploymentSettings

TOLERANCE = 1e-5  # of what exact float32 paths differ by, times max(1, largest number)
OWN_ROUNDING = 3.0  # a layout may be so many times as far off as the model's own float32 forward is
_LENGTHS = (5, 40, 70, 23)
_FIRST_TOKEN, _LAST_TOKEN = 8, 290
_LOUD = 0.15  # standard deviation of the weights


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an architecture.

    Attributes:
        name: Its `model_type`.
        outcome: The layout that serves it, "refused", "not built", "WRONG" or "CRASH".
        difference: The largest difference from the truth, over max(1, largest number); None if
            nothing was served.
        reason: Why, in one line; empty where nothing is to be said.
    """

    name: str
    outcome: str
    difference: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        figure = "" if self.difference is None else f"{self.difference:.1e}"
        return f"{self.name:28}{self.outcome:11}{figure:9}{self.reason[:300]}".rstrip()


def build(name: str, task: Task, **fields: Any) -> Any:
    """A random model whose every part changes the result. Raises what transformers raises."""
    labels = {"num_labels": 1} if task == "reward_model" else {}
    config = tiny_config(name, **labels, **fields)
    if task == "causal_lm" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM if task == "causal_lm" else AutoModelForSequenceClassification
    model = auto.from_config(config).eval().requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "conv" not in parameter_name and "A_log" not in parameter_name:
            parameter.normal_(std=_LOUD)
    return model


def judge(name: str, task: Task, folder: Path) -> Verdict:
    """Builds, saves, loads and judges one architecture.

    Args:
        name: Its `model_type`.
        task: What it is served as.
        folder: Where the checkpoint is saved.
    """
    try:
        random_model = build(name, task)
        random_model.save_pretrained(folder)
        copy.deepcopy(tiny.tokenizer()).save_pretrained(folder)
        # As transformers reads it back: it sets the row of the padding to zero, for one.
        model = type(random_model).from_pretrained(folder).eval()
        rows = random_rows(model)
        own = [own_numbers(model, row, task) for row in rows]
    except Exception as error:
        return Verdict(name, "not built", reason=WHY_NOT_BUILT.get(name) or _line(error))
    settings = DeploymentSettings(
        name="sweep", checkpoint=str(folder), task=task, scorers=[{"type": "constant"}]
    )
    try:
        checkpoint = load_checkpoint(settings)
        layout, note = _probed(checkpoint)
        outputs = layout.run([RowRequest(row, _needs(task)) for row in rows])
        return compare(name, task, layout, (own, exact_numbers(model, rows, task)), outputs, note)
    except CheckpointRefused as error:
        reason = str(error).replace(f"`{folder}` ", "")
        return Verdict(name, "refused" if len(reason) < 600 else "WRONG", reason=reason)
    except Exception as error:
        return Verdict(name, "CRASH", reason=_line(error))


def compare(
    name: str,
    task: Task,
    layout: Layout,
    truths: tuple[list[np.ndarray], list[np.ndarray]],
    outputs: list[Outputs],
    note: str,
) -> Verdict:
    """Whether outputs are the truth, to rounding.

    Args:
        name: The architecture.
        task: What it is served as.
        layout: The layout that gave the outputs.
        truths: The model's own numbers of each row, in float32 and in float64.
        outputs: What the layout gives of the rows.
        note: What else is to be said of the layout.
    """
    difference, bound = 0.0, 0.0
    for own, exact, row in zip(*truths, outputs, strict=True):
        ours = _numbers(row, task)
        if ours.shape != exact.shape:
            ours = np.full_like(exact, np.nan)
        scale = max(1.0, float(np.abs(exact).max()))
        own_difference = float(np.abs(own - exact).max()) / scale
        own_bound = max(TOLERANCE, OWN_ROUNDING * own_difference)
        row_difference = float(np.nan_to_num(np.abs(ours - exact), nan=np.inf).max()) / scale
        if row_difference / own_bound >= difference / (bound or 1.0):
            difference, bound = row_difference, own_bound
    if difference > bound:
        return Verdict(name, "WRONG", difference, f"{layout.name}, bound {bound:.1e}; {note}")
    return Verdict(name, layout.name, difference, note)


def random_rows(model: Any) -> list[Row]:
    """Rows of random tokens, without pad tokens; with EOS at the end of an encoder-decoder's."""
    generator, rows = np.random.default_rng(1), []
    for length in _LENGTHS:
        ids = generator.integers(_FIRST_TOKEN, _LAST_TOKEN, size=length)
        if getattr(model.config, "is_encoder_decoder", False):
            ids[-1] = model.config.get_text_config().eos_token_id
        rows.append(Row(ids, 2, length))
    return rows


@torch.inference_mode()
def own_numbers(model: Any, row: Row, task: Task) -> np.ndarray:
    """log pi of the row's tokens from its start, or the score of the row, by the model's own
    call."""
    # A classifier is not asked for no cache: some pass it on twice.
    options = {"use_cache": False} if task == "causal_lm" else {}
    logits = model(input_ids=torch.from_numpy(row.ids)[None], **options).logits[0]
    if task == "reward_model":
        return np.asarray(logits.reshape(-1)[-1:].numpy(), dtype=np.float64)
    log_probs = logits[row.start - 1 : -1].double().log_softmax(-1)
    targets = torch.from_numpy(row.ids)[row.start :, None]
    return np.asarray(log_probs.gather(1, targets)[:, 0].numpy())


def exact_numbers(model: Any, rows: list[Row], task: Task) -> list[np.ndarray]:
    """The same in float64 and eager attention, or the default one where eager gives NaN in float64;
    in float32 where a model's own code knows no other.

    The model is changed.
    """
    own, default = copy.deepcopy(model), model.config._attn_implementation
    for implementation in ("eager", default):
        try:
            if any("experts" in parameter_name for parameter_name, _ in model.named_parameters()):
                model.set_experts_implementation("eager")  # the fast ones know no float64
            model.set_attn_implementation(implementation)
            model.double()
            numbers = [own_numbers(model, row, task) for row in rows]
        except Exception:
            break
        if all(np.isfinite(of_row).all() for of_row in numbers):
            return numbers
    return [own_numbers(own, row, task) for row in rows]


def _needs(task: Task) -> Needs:
    return Needs(frozenset({1.0})) if task == "causal_lm" else Needs(pooled=True)


def _probed(checkpoint: Checkpoint) -> tuple[Layout, str]:
    """The layout that the probe chooses, and a note; without attention if that is refused."""
    notes: list[str] = []
    choose: Any = choose_two_way_layout if checkpoint.is_classifier else choose_layout
    needs = _needs(checkpoint.task)
    if checkpoint.task == "reward_model" and not checkpoint.is_classifier:
        needs = needs | Needs(values=True)
    try:
        layout: Layout = choose(
            checkpoint, needs | Needs(attention=frozenset({"last"})), say=notes.append
        )
    except CheckpointRefused as error:
        layout = choose(checkpoint, needs, say=notes.append)
        return layout, f"attention scorers refused: {_line(error)}"
    return layout, layout.reason or ""


def _numbers(outputs: Outputs, task: Task) -> np.ndarray:
    if task == "reward_model":
        return np.asarray([outputs.pooled], dtype=np.float64)
    assert outputs.chosen is not None
    chosen = outputs.chosen.astype(np.float64)
    return np.asarray(chosen - outputs.lse[1.0][: len(chosen)])


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"
