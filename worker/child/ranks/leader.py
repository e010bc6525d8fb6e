"""Rank 0's side of several processes that compute each network call together: one per GPU, or on a CPU for tests.

Rank 0 runs the job as a single process would. Its denoisers call `SplitNetwork`s, which send every rank its share of
the input and put the results together; what makes the inputs knows nothing of ranks. If a rank ends, rank 0 does too.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor

from sampler import ImageDenoiser, InvalidSetting, VideoDenoiser
from sampler.guidance import network_output
from service.catalog.model_entry import ModelEntry
from service.jobs.lora_choice import LoraUse
from service.jobs.model import Generation
from service.settings import LogFormat
from worker.child.ranks.launch import launch
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
from worker.child.ranks.packing import packed
from worker.child.ranks.process_group import join, leave
from worker.child.ranks.shares import Share, shares
from worker.networks.caching import StepDone, caching
from worker.networks.loading import AnyModels, TransformerModels
from worker.networks.network_classes import Network
from worker.networks.sparse_control import ControlledNetwork
from worker.networks.video_transformers.sequence_parallel import split_sequences

log = logging.getLogger("ivmix.child")

EXIT_GRACE_S = 10.0

Texts = tuple[Tensor, ...]  # one per CFG branch, (B, tokens, dim)
Arguments = Mapping[str, Any]


class RankLost(RuntimeError):
    """A rank has ended, or does not answer as it should: the ranks cannot work together any more."""


@dataclass(frozen=True)
class Rank:
    """A further rank, as rank 0 sees it."""

    number: int
    connection: Connection
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class Prepared:
    """Calls of one network with the same texts and arguments: who computes what."""

    number: int
    own: Share
    texts: Texts
    arguments: Arguments
    others: tuple[Share, ...]
    kept: tuple[object, ...]  # reserves the ids that it is found by


def _end_process() -> None:
    os._exit(71)


class Ranks(OneProcess):
    """This process and others. A context manager; leaving it ends the others.

    Args:
        devices: one per rank; the first is this process's.
        per_unit: ranks that compute one call together, each a part of its tokens (families with sequence parallelism).
        on_loss: called in a thread when another rank has ended, and when one does not answer.
    """

    def __init__(
        self,
        devices: Sequence[torch.device],
        *,
        per_unit: int = 1,
        log_format: LogFormat = "auto",
        on_loss: Callable[[], None] = _end_process,
    ) -> None:
        super().__init__(devices[0])
        self.count, self.per_unit = len(devices), per_unit
        self.fingerprint = f"\n{self.count} ranks"  # smaller calls round differently
        self._on_loss, self._is_closing = on_loss, False
        self._store = os.fdopen(os.memfd_create("ivmix-ranks"), "wb")
        self._others: list[Rank] = []
        self._prepared: dict[tuple[object, ...], Prepared] = {}
        for number, device in enumerate(devices[1:], 1):
            rank = Rank(number, *launch(self._store.fileno()))
            self._others.append(rank)
            rank.connection.send(Place(number, self.count, str(device), log_format))
            threading.Thread(target=self._watch, args=(rank,), name=f"rank-{number}-watch", daemon=True).start()

    @property
    def pids(self) -> list[int]:
        """Process ids of the others."""
        return [rank.process.pid for rank in self._others]

    def load(self, entry: ModelEntry) -> AnyModels:
        """Also raises what another rank's loading raised."""
        threads = entry.cpu_threads or max(1, torch.get_num_threads() // self.count)
        entry = entry.model_copy(update={"cpu_threads": threads})
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        with self._together(Load(entry)):
            models = super().load(entry)
        with self._together(Connect(self.per_unit)):
            join(0, self.count, self.device, self._store.fileno())
            if isinstance(models, TransformerModels) and self.per_unit > 1:
                split_sequences(models.transformers, self.per_unit, self.device)
        return models

    def use_loras(self, models: AnyModels, loras: Sequence[LoraUse]) -> None:
        with self._together(UseLoras(tuple(loras))):
            super().use_loras(models, loras)

    @contextmanager
    def caching(self, models: AnyModels, generation: Generation, *, off: bool) -> Generator[StepDone]:
        """Raises InvalidSetting if ranks share the tokens of a call: each would decide by its own what to leave out."""
        if generation.cache is None or off:
            with caching(models, generation, off=off) as step_done:
                yield step_done
            return
        if self.per_unit > 1:
            raise InvalidSetting(f"cache.name={generation.cache.name}: not with {self.count} GPUs; leave it out")
        with ExitStack() as stack:
            with self._together(BeginCaching(generation)):
                step_done = stack.enter_context(caching(models, generation))
            stack.callback(self._all, EndCaching())

            def all_step_done(steps: int) -> bool:
                self._all(StepsDone(steps))
                return step_done(steps)

            yield all_step_done

    def free_others(self) -> None:
        self._all(FreeMemory())

    def split(self, image: ImageDenoiser, video: VideoDenoiser) -> None:
        """Each rank gets one branch of guidance at most, so there is no need to call for one after the other."""
        controlled, order = video.unet, BeginJob()
        if isinstance(controlled, ControlledNetwork):
            order = BeginJob(packed(controlled.first_frame), controlled.levels_kept)
        self._prepared.clear()
        self._all(order)
        image.unet, video.unet = SplitNetwork(self, "image", image.unet), SplitNetwork(self, "video", video.unet)
        image.sequential_cfg = video.sequential_cfg = False

    def call(
        self, name: NetworkName, network: Network, x: Tensor, timestep: float, texts: Texts, arguments: Arguments
    ) -> Tensor:
        """What the network returns for x (N, ...), of which every rank computes a part."""
        prepared = self._prepare(name, x, texts, arguments)
        others = [(self._others[share.rank - 1], share) for share in prepared.others]
        for rank, share in others:
            self._send(rank, NetworkCall(prepared.number, timestep))
            self._transfer(dist.send, x[share.rows].contiguous(), rank)
        own, output, failure = prepared.own, x.new_empty(x.shape), None
        try:
            seen = x[own.rows]
            found = network(seen, timestep, encoder_hidden_states=prepared.texts, **prepared.arguments)
            found = network_output(found, seen)
            output = found.new_empty(x.shape)
            output[own.rows] = found
        except Exception as e:
            failure = e
        failures = [failure]
        for rank, share in others:
            failures.append(self._reply(rank))
            if share.returns and failures[-1] is None:
                self._transfer(dist.recv, output[share.rows], rank)
        self._raise_first(failures)
        return output

    def _prepare(self, name: NetworkName, x: Tensor, texts: Texts, arguments: Arguments) -> Prepared:
        """Texts and arguments are recognised by their identity: denoisers make them once for all calls of a job."""
        kept = (*texts, *arguments.values())
        key = (name, tuple(x.shape), len(texts), *arguments, *map(id, kept))
        if key in self._prepared:
            return self._prepared[key]
        is_frames = x.ndim == 4 and len(texts[0]) == 1
        own, *others = shares(len(x), len(texts), self.count, per_unit=self.per_unit, by_row=is_frames)
        number = len(self._prepared)
        orders = {
            share.rank: Prepare(
                number,
                name,
                x[share.rows].shape,
                x.dtype,
                share.returns,
                packed({"encoder_hidden_states": texts[share.branches], **_of_rows(arguments, share)}),
            )
            for share in others
        }
        ranks = [self._others[rank - 1] for rank in orders]
        for rank in ranks:
            self._send(rank, orders[rank.number])
        self._replies(ranks)
        found = Prepared(number, own, texts[own.branches], _of_rows(arguments, own), tuple(others), kept)
        self._prepared[key] = found
        return found

    def _all(self, order: Order) -> None:
        """All other ranks obey."""
        with self._together(order):
            pass

    @contextmanager
    def _together(self, order: Order) -> Generator[None]:
        """All ranks obey an order, this one inside. Raises its exception, or else another rank's."""
        for rank in self._others:
            self._send(rank, order)
        try:
            yield
        except BaseException:
            for rank in self._others:
                self._reply(rank)
            raise
        self._replies(self._others)

    def _replies(self, ranks: Sequence[Rank]) -> None:
        """Wait until all have obeyed. Raises the first exception."""
        failures = [self._reply(rank) for rank in ranks]  # all of them: none may be read as the reply to a later order
        for failure in filter(None, failures):
            raise failure

    def _raise_first(self, failures: Sequence[Exception | None]) -> None:
        """Of a call."""
        if not any(failures):
            return
        if self.per_unit > 1 and not all(failures):
            self._lose("one rank failed while another waited for its tokens", failures)
        for failure in filter(None, failures):
            raise failure

    def _send(self, rank: Rank, order: Order) -> None:
        try:
            rank.connection.send(order)
        except OSError as e:
            self._lose(f"rank {rank.number} has closed its pipe", e)

    def _reply(self, rank: Rank) -> Exception | None:
        try:
            return cast(Exception | None, rank.connection.recv())
        except (EOFError, OSError) as e:
            self._lose(f"rank {rank.number} has closed its pipe", e)

    def _transfer(self, how: Callable[[Tensor, int], object], x: Tensor, rank: Rank) -> None:
        try:
            how(x, rank.number)
        except RuntimeError as e:
            self._lose(f"rank {rank.number} cannot be reached", e)

    def _lose(self, why: str, cause: object) -> NoReturn:
        log.error("%s: %s", why, cause)
        self._on_loss()
        raise RankLost(f"{why}: {cause}")

    def __str__(self) -> str:
        return f"{self.count} x {super().__str__()}"

    def _watch(self, rank: Rank) -> None:
        code = rank.process.wait()
        if not self._is_closing:
            log.error("rank %d ended with exit code %d", rank.number, code)
            self._on_loss()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing = True
        leave()
        for rank in self._others:
            rank.connection.close()
        for rank in self._others:
            try:
                rank.process.wait(EXIT_GRACE_S)
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()
        self._store.close()


class SplitNetwork:
    """A network of rank 0 that is called in all ranks, in its place; see `GuidedDenoiser`."""

    native_cfg = True

    def __init__(self, ranks: Ranks, name: NetworkName, network: Network) -> None:
        self._ranks, self.network = ranks, network
        self._name: NetworkName = name

    @property
    def config(self) -> Any:
        return self.network.config

    def __call__(self, x: Tensor, timestep: float, *, encoder_hidden_states: Texts, **arguments: Any) -> Tensor:
        return self._ranks.call(self._name, self.network, x, timestep, encoder_hidden_states, arguments)


def _of_rows(arguments: Arguments, share: Share) -> dict[str, Any]:
    """A call's arguments for one rank: SDXL's pooled embeddings and sizes have a row for each of the input."""
    found = dict(arguments)
    if (added := found.get("added_cond_kwargs")) is not None:
        found["added_cond_kwargs"] = {name: value[share.rows].clone() for name, value in added.items()}
    return found
