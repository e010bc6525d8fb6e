"""The public model loader: `load("demo")` returns the networks of one model."""

from worker.networks.loading import IncompatibleModels, default_device, load
from worker.networks.models import Models

__all__ = ["IncompatibleModels", "Models", "default_device", "load"]
