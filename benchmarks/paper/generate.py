"""Makes the clips of one shard that are missing, in an order in which every beginning is a small run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.paper.arms import Arm
from benchmarks.paper.clips import LOSSLESS, MP4
from benchmarks.paper.makers import Batch, Made, Maker, Order
from benchmarks.paper.prompts import Prompt
from benchmarks.paper.run_folder import ClipKey, ClipManifest, RunFolder, seed_of
from service.errors import InvalidParameter


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 0: every count-th batch of prompts, in all arms."""

    index: int = 0
    count: int = 1

    @staticmethod
    def parse(text: str) -> Shard:
        """Raises InvalidParameter."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise InvalidParameter("shard", f"--shard {text}: it must be i/n with i from 0 to n-1, such as 0/4.")
        return Shard(int(index), int(count))


@dataclass(frozen=True)
class Task:
    """What a run wants.

    Args:
        clips: of each prompt.
        batch: prompts that are sampled together.
        keep_lossless: whether each clip is kept without loss too.
    """

    benchmark: str
    prompts: Sequence[Prompt]
    arms: Sequence[Arm]
    clips: int
    batch: int = 1
    shard: Shard = field(default_factory=Shard)
    keep_lossless: bool = False

    @property
    def suffixes(self) -> frozenset[str]:
        return frozenset({MP4, LOSSLESS} if self.keep_lossless else {MP4})

    def batches(self) -> Iterator[tuple[Order, ...]]:
        """Of this shard: all prompts once, then once more; each batch in all arms before the next one."""
        parts = [self.prompts[i : i + self.batch] for i in range(0, len(self.prompts), self.batch)]
        places = [(repeat, part) for repeat in range(self.clips) for part in parts]
        for repeat, part in places[self.shard.index :: self.shard.count]:
            for arm in self.arms:
                yield tuple(self._order(arm, prompt, repeat) for prompt in part)

    def _order(self, arm: Arm, prompt: Prompt, repeat: int) -> Order:
        seed = seed_of(self.benchmark, prompt.id, repeat)
        return Order(ClipKey(arm.name, prompt.id, repeat), arm, prompt.text, seed)

    def keys(self) -> Iterator[ClipKey]:
        """The clips of this shard."""
        return (order.key for orders in self.batches() for order in orders)


def generate(folder: RunFolder, task: Task, maker: Maker, report: Progress) -> int:
    """Make what is missing of the shard. Returns the number of clips made."""

    def save(order: Order, made: Made) -> None:
        write_clip(folder, task.benchmark, order, made, maker.made_by)
        report.clip(order.key, made.seconds)

    with folder.shard_lock(task.shard.index, task.shard.count):
        todo = missing_batches(folder, task)
        report.start(sum(len(batch.missing) for batch in todo))
        maker.make(todo, task.suffixes, save)
    return report.done


def missing_batches(folder: RunFolder, task: Task) -> list[Batch]:
    """The batches of the shard that lack a clip."""
    found: list[Batch] = []
    for orders in task.batches():
        missing = {order.key for order in orders if not folder.is_done(order.key, task.suffixes)}
        if missing:
            found.append(Batch(orders, frozenset(missing)))
    return found


def write_clip(folder: RunFolder, benchmark: str, order: Order, made: Made, made_by: str) -> None:
    """The files, then the manifest: a clip without manifest is made again."""
    for suffix, data in made.files.items():
        folder.write(folder.clip(order.key, suffix), data)
    manifest = ClipManifest(
        benchmark=benchmark,
        arm=order.arm.name,
        plan=order.arm.digest,
        prompt_id=order.key.prompt_id,
        prompt=order.prompt,
        repeat=order.key.repeat,
        seed=order.seed,
        made_by=made_by,
        device=made.device,
        seconds=round(made.seconds, 3),
        cpu_seconds=None if made.cpu_seconds is None else round(made.cpu_seconds, 3),
        files={suffix: hashlib.sha256(data).hexdigest() for suffix, data in made.files.items()},
    )
    folder.write_json(folder.clip(order.key, "json"), manifest.model_dump(mode="json"))


class Progress:
    """Prints a line now and then: clips made, seconds for each, and the hours that are left."""

    def __init__(self, every_s: float = 30.0) -> None:
        self.done, self._total, self._every_s = 0, 0, every_s
        self._began = self._shown = time.monotonic()

    def start(self, total: int) -> None:
        self._total, self._began = total, time.monotonic()
        print(f"{total} clips to make", flush=True)

    def clip(self, key: ClipKey, seconds: float) -> None:
        self.done += 1
        now = time.monotonic()
        if self.done == self._total or now - self._shown >= self._every_s:
            self._shown = now
            left_h = (now - self._began) / self.done * (self._total - self.done) / 3600
            print(f"{self.done}/{self._total} clips, last {key.arm} {seconds:.2f} s, {left_h:.2f} h left", flush=True)
