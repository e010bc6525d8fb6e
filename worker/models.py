"""The public model loader: `load("demo")` returns the networks of one model."""

from worker.networks.models import IncompatibleModels, Models, default_device, load

__all__ = ["IncompatibleModels", "Models", "default_device", "load"]
