"""The KL penalty's three estimators (Schulman 2020, "Approximating KL divergence").

    k1 = d      k2 = d^2 / 2      k3 = exp(-d) - 1 + d      d = log pi - log pi_ref, per unit

k1 is unbiased and signed; k2 and k3 are never negative. Nothing is bounded by default. A `Clamp`
names a trainer whose bounds are applied, for a run that has to agree with that trainer. This module
knows no requests and no masks.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Float64

Estimator = Literal["k1", "k2", "k3"]
Clamp = Literal["verl", "openrlhf"]

_MAX_ESTIMATE = 10.0  # verl's and OpenRLHF's
_MAX_EXPONENT = 20.0  # verl's, on -d


def estimate(
    difference: Float64[np.ndarray, " u"], estimator: Estimator, clamp: Clamp | None = None
) -> Float64[np.ndarray, " u"]:
    """The estimate of each unit.

    Args:
        difference: d, nats.
        estimator: Which formula.
        clamp: `openrlhf`: d and k in float32, and every k in [-10, 10]. `verl`, for k3 alone: -d
            in [-20, 20], and k3 in [-10, 10].
    """
    if clamp == "openrlhf":
        difference = difference.astype(np.float32)
    if clamp == "verl":
        assert estimator == "k3"
        difference = np.clip(difference, -_MAX_EXPONENT, _MAX_EXPONENT)
    estimates = _formula(difference, estimator)
    if clamp is None:
        return estimates
    return np.asarray(np.clip(estimates, -_MAX_ESTIMATE, _MAX_ESTIMATE), dtype=np.float64)


def _formula(difference: Float[np.ndarray, " u"], estimator: Estimator) -> Float[np.ndarray, " u"]:
    """In the dtype of `difference`."""
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    # expm1 keeps the digits that exp(-d) - 1 would lose near d = 0.
    k3: Float[np.ndarray, " u"] = np.expm1(-difference) + difference
    return k3
