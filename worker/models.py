"""The public loader: `load("demo")` returns the networks of one model. Implementation in worker/networks/models.py."""

from worker.networks.models import IncompatibleModels, Models, default_device, load

__all__ = ["IncompatibleModels", "Models", "default_device", "load"]
