"""A further rank: obeys rank 0, which runs the job, and computes its share of every network call."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import gc
import logging
import pickle
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from sampler.guidance import network_output
from service.catalog.model_entry import ModelEntry
from worker.child.ranks.one_process import OneProcess
from worker.child.ranks.orders import (
    BeginCaching,
    BeginJob,
    Connect,
    EndCaching,
    FreeMemory,
    Load,
    NetworkCall,
    NetworkName,
    Order,
    Place,
    Prepare,
    StepsDone,
    UseLoras,
)
from worker.child.ranks.packing import unpacked
from worker.child.ranks.process_group import join
from worker.networks.caching import StepDone, caching
from worker.networks.loading import AnyModels, Models, TransformerModels
from worker.networks.sparse_control import ControlledNetwork, controlled
from worker.networks.video_transformers.sequence_parallel import split_sequences

log = logging.getLogger("ivmix.child")


class RankFailed(RuntimeError):
    """A rank had an exception that cannot travel."""


@dataclass(frozen=True)
class PreparedCall:
    """A network with what all its calls of one kind have in common; the input is received into `x`."""

    network: Any
    x: Tensor
    arguments: dict[str, Any]
    returns: bool

    def output(self, timestep: float) -> Tensor:
        return network_output(self.network(self.x, timestep, **self.arguments), self.x).contiguous()


class Follower:
    """
    Args:
        connection: this rank's end of its pipe.
        store: descriptor for the process group.
        place: which rank this is.
    """

    models: AnyModels

    def __init__(self, connection: Connection, store: int, place: Place) -> None:
        self._connection, self._store, self._place = connection, store, place
        self._device = torch.device(place.device)
        self._networks: dict[NetworkName, Any] = {}
        self._prepared: dict[int, PreparedCall] = {}
        self._caching, self._step_done = ExitStack(), cast(StepDone, None)

    def serve(self) -> None:
        """Obey until rank 0 closes the pipe."""
        while True:
            try:
                order: Order = self._connection.recv()
            except (EOFError, OSError):
                return
            try:
                if isinstance(order, NetworkCall):  # whatever happens: rank 0 sends it
                    dist.recv(self._prepared[order.number].x, 0)
                found = self._obey(order)
            except Exception as e:
                log.exception("rank %d on %s failed", self._place.rank, self._device)
                self._connection.send(_portable(e, self._device))
            else:
                self._reply(found)
                del found

    def _reply(self, output: Tensor | None) -> None:
        """Offer the output before saying so: gloo's threads can stall for milliseconds if both ranks begin at once."""
        offer = None if output is None else dist.isend(output, 0)
        self._connection.send(None)
        if offer is not None:
            offer.wait()

    def _obey(self, order: Order) -> Tensor | None:
        match order:
            case Load():
                self._load(order.entry)
            case Connect():
                self._connect(order.per_unit)
            case UseLoras():
                self.models.loras.use(order.loras)
            case BeginJob():
                self._begin_job(order)
            case Prepare():
                arguments: dict[str, Any] = unpacked(order.arguments, self._device)
                x = torch.empty(*order.shape, dtype=order.dtype, device=self._device)
                self._prepared[order.number] = PreparedCall(self._networks[order.network], x, arguments, order.returns)
            case NetworkCall():
                call = self._prepared[order.number]
                output = call.output(order.timestep)
                return output if call.returns else None
            case BeginCaching():
                self._step_done = self._caching.enter_context(caching(self.models, order.generation))
            case StepsDone():
                self._step_done(order.steps)
            case EndCaching():
                self._caching.close()
            case FreeMemory():
                gc.collect()
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
        return None

    def _load(self, entry: ModelEntry) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        self.models = OneProcess(self._device).load(entry)
        self.models.vae.to("meta")  # rank 0 encodes and decodes
        if isinstance(self.models, TransformerModels):  # the others' text encoders may have LoRAs
            self.models.text.encoder.to("meta")

    def _connect(self, per_unit: int) -> None:
        join(self._place.rank, self._place.ranks, self._device, self._store)
        if isinstance(self.models, TransformerModels) and per_unit > 1:
            split_sequences(self.models.transformers, per_unit, self._device)

    def _begin_job(self, order: BeginJob) -> None:
        self._prepared.clear()
        models = self.models
        if isinstance(models, TransformerModels):
            self._networks = {"image": models.network, "video": models.network}
            return
        models.text_kv_cache.clear()
        self._networks = {"image": models.optimised_image_unet, "video": self._video_network(models, order)}

    def _video_network(self, models: Models, order: BeginJob) -> Any:
        first_frame = None if order.first_frame is None else unpacked(order.first_frame, self._device)
        network = controlled(models.optimised_video_unet, models.optimised_sparse_control, first_frame)
        if isinstance(network, ControlledNetwork):
            network.levels_kept = order.levels_kept
        return network


def _portable(e: Exception, device: torch.device) -> Exception:
    """The exception as rank 0 can raise it."""
    if isinstance(e, torch.OutOfMemoryError):
        return torch.OutOfMemoryError(f"{device}: {e}")
    try:
        pickle.loads(pickle.dumps(e))  # noqa: S301  # our own bytes: an exception may need other arguments than it has
    except Exception:
        return RankFailed(f"{device}: {type(e).__name__}: {e}")
    return e
