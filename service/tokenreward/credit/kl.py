"""The KL penalty's three estimators (Schulman 2020, "Approximating KL divergence"), unclamped.

d = log pi - log pi_ref per unit. k1 is unbiased and signed; k2 and k3 are never negative.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float64


def estimate(difference: Float64[np.ndarray, " u"], estimator: Literal["k1", "k2", "k3"]) -> Float64[np.ndarray, " u"]:
    """k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d."""
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    k3: Float64[np.ndarray, " u"] = np.expm1(-difference) + difference
    return k3
