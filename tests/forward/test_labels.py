"""Raw logits of labels, in both layouts: those of whole logits in float64, and, alone, without a
pass over the vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fakes import oracle, tiny
from tokenreward.contract import Needs, Outputs, RowRequest
from tokenreward.forward.language_head import LanguageHead
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.plain import PlainLayout

LAYOUTS = {"packed": PackedLayout, "plain": PlainLayout}
# A plain head, a soft-cap, a bias, a scale.
ARCHITECTURES = ("llama", "gemma2", "phi", "granite")
ALONE, WITH_LSE = Needs(labels=frozenset({7, 200})), Needs(frozenset({1.0}), labels=frozenset({9}))


def layout(name: str, model: Any) -> Any:
    return LAYOUTS[name](tiny.checkpoint(model))


def assert_labels(outputs: Outputs, request: RowRequest, exact: Any) -> None:
    """At the positions that predict the response, and at the one after it."""
    row, needs = request
    z = oracle.logits(exact, row.ids)[row.start - 1 : row.stop]
    bound = 1e-5 * max(1.0, float(np.abs(z).max()))
    assert outputs.logits.keys() == needs.labels
    for label, numbers in outputs.logits.items():
        assert numbers.shape == (row.stop - row.start + 1,)
        assert np.abs(numbers - z[:, label]).max() <= bound
    assert outputs.lse.keys() == needs.temperatures
    chosen = z[np.arange(len(z) - 1), row.ids[row.start : row.stop]]
    assert np.abs(outputs.chosen - chosen).max() <= bound
    if needs.temperatures:
        assert np.abs(outputs.lse[1.0] - oracle.logsumexp(z)).max() <= bound


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labels_alone_are_exact_and_meet_no_vocabulary(
    architecture: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(architecture)
    exact, run = oracle.double(model), layout(name, model).run
    monkeypatch.setattr(LanguageHead, "normalisers", lambda *a: pytest.fail("over the vocabulary"))
    monkeypatch.setattr(torch, "logsumexp", lambda *a, **k: pytest.fail("over the vocabulary"))
    requests = tiny.work(ALONE)
    for request, outputs in zip(requests, run(requests), strict=True):
        assert_labels(outputs, request, exact)


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_with_labels_alone_and_others_each_get_what_they_want(name: str, prune: bool) -> None:
    model = tiny.model("llama")
    exact, served = oracle.double(model), layout(name, model)
    if name == "packed":
        served.prune_last_layer(prune)
    wanted = (ALONE, WITH_LSE, replace(ALONE, labels=frozenset({3})))
    requests = [
        RowRequest(row, needs) for (row, _), needs in zip(tiny.work(ALONE), wanted, strict=True)
    ]
    for some in (requests, requests[::-1], requests[::2]):
        for request, outputs in zip(some, served.run(some), strict=True):
            assert_labels(outputs, request, exact)
