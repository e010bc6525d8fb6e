"""The public model loader: `load("demo")` returns the networks of one model."""

from worker.networks.loading import IncompatibleModels, Models, TransformerModels, default_device, load

__all__ = ["IncompatibleModels", "Models", "TransformerModels", "default_device", "load"]
