"""The KL penalty's three estimators (Schulman 2020, "Approximating KL divergence"), and whose
bounds they are held to.

d = log pi - log pi_ref per unit. k1 is unbiased and signed; k2 and k3 are never negative. Nothing
is bounded unless a `Clamp` says whose bounds: those of a trainer, for a run that has to agree with
it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Float64

Estimator = Literal["k1", "k2", "k3"]
Clamp = Literal["verl", "openrlhf"]

_MOST = 10.0
_MOST_EXPONENT = 20.0  # verl's, on -d


def estimate(
    difference: Float64[np.ndarray, " u"], estimator: Estimator, clamp: Clamp | None = None
) -> Float64[np.ndarray, " u"]:
    """k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d.

    `openrlhf`: d and k in float32, and every k in [-10, 10]. `verl`: k3 of a -d in [-20, 20],
    itself in [-10, 10].
    """
    if clamp == "openrlhf":
        difference = difference.astype(np.float32)
    if clamp == "verl":
        assert estimator == "k3"
        difference = np.clip(difference, -_MOST_EXPONENT, _MOST_EXPONENT)
    estimated = _formula(difference, estimator)
    return (
        estimated
        if clamp is None
        else np.asarray(np.clip(estimated, -_MOST, _MOST), dtype=np.float64)
    )


def _formula(difference: Float[np.ndarray, " u"], estimator: Estimator) -> Float[np.ndarray, " u"]:
    """In the dtype of `difference`."""
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    k3: Float[np.ndarray, " u"] = np.expm1(-difference) + difference
    return k3
