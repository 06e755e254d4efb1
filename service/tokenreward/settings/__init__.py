"""The settings of a service: frozen models, in which an unknown key is an error and the description
of a field is its documentation.

It reads no files and knows nothing of models: a checkpoint is a string until someone loads it.
`config.py` makes these objects from YAML. Each setting has one spelling, and no environment
variable overrides it.
"""

from tokenreward.settings.autoscaling import AutoscalingSettings
from tokenreward.settings.deployment import DeploymentSettings, HeadSettings, ScorerSettings
from tokenreward.settings.service import ProtocolSettings, Settings, SettingsError

__all__ = [
    "AutoscalingSettings",
    "DeploymentSettings",
    "HeadSettings",
    "ProtocolSettings",
    "ScorerSettings",
    "Settings",
    "SettingsError",
]
