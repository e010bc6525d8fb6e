"""From a resolved generation to frames: encode the text, run the sampler, decode. Independent of jobs and queues.

A run can be stopped after any step and resumed from its checkpoint, on another machine too.
"""

from __future__ import annotations

import gc
import logging
import resource
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sampler import ImageDenoiser, InvalidSetting, Plan, VideoDenoiser, noised, sample, shape_after
from service.catalog.model_entry import ModelEntry
from service.catalog.optimise import Configuration
from service.jobs.model import Generation, Phase
from worker.child.autoencoder_turns import AutoencoderTurns
from worker.child.checkpoint_file import Checkpoint
from worker.child.clip import Clip, SampledLatents, timed
from worker.child.failures import failed_message
from worker.child.fingerprint import run_fingerprint, run_fingerprints_0_1, weights_digest
from worker.child.latent_preview import open_previewer
from worker.child.plans import family_of, plan_of, start_reference
from worker.child.previews import MakePreview
from worker.child.ranks.one_process import OneProcess
from worker.child.reference_latents import first_frame_of, reference_latents
from worker.child.start_noise import start_noise
from worker.messages import Failed
from worker.networks.loading import AnyModels, Models, TransformerModels
from worker.networks.optimise import BlockCompiler
from worker.networks.reconfigure import reconfigured
from worker.networks.sparse_control import ControlledNetwork, FirstFrame
from worker.networks.text_encoder import TextOptions
from worker.networks.video_transformers.first_frame import Condition

log = logging.getLogger("ivmix.child")

REMEMBERED: tuple[str, ...] = ("x0", "initial", "momentum")  # what the memory of a run may hold

# (phase, steps done, total steps); called before a phase and after every step. May raise to stop the run.
OnProgress = Callable[[Phase, int, int], None]

# Called with the state after every sampling step.
OnStep = Callable[[Checkpoint], None]

# Called after every sampling step with what makes a preview of it, if the engine was loaded with previews.
OnPreview = Callable[[MakePreview], None]


def _ignore_progress(_phase: Phase, _step: int, _total: int) -> None: ...
def _ignore_checkpoint(_checkpoint: Checkpoint) -> None: ...
def _ignore_preview(_make: MakePreview) -> None: ...


class Engine:
    """Both networks of one model entry, resident on one device, or on those of several processes.

    `decode` may run in one thread while `sample` works on the next generation in another.
    """

    def __init__(
        self, entry: ModelEntry, on: torch.device | OneProcess | None = None, *, previews: bool = False
    ) -> None:
        self._processes = on if isinstance(on, OneProcess) else OneProcess(on)
        self.models: AnyModels = self._processes.load(entry)
        self.configuration = Configuration.of(entry.optimise)
        self._weights = weights_digest(self.models) + self._processes.fingerprint
        self._was_out_of_memory = False
        self._autoencoder = AutoencoderTurns()
        self._previewer = open_previewer(self.models) if previews else None

    def use(self, configuration: Configuration) -> BlockCompiler | None:
        """Run the networks otherwise from the next job on. Returns what compiles them, if they are compiled.

        Raises ConfigurationError if a network or this machine has no such attention backend.
        """
        self.models, compiler = reconfigured(self.models, configuration.optimise)
        self.configuration = configuration
        return compiler

    @property
    def preview_cost_s(self) -> float:
        """Seconds that a preview of a clip of the default size takes."""
        return 0.0 if self._previewer is None else self._previewer.cost_s

    @property
    def decoded_s(self) -> float:
        """Seconds that decoding has taken until now; see `GpuTime`."""
        return self._autoencoder.decoded_s

    def generate(
        self,
        generation: Generation,
        on_progress: OnProgress = _ignore_progress,
        *,
        on_step: OnStep = _ignore_checkpoint,
        resume: Path | None = None,
        reference: Path | None = None,
    ) -> Clip:
        """The same generation on the same machine gives the same frames, in one go or resumed from a checkpoint's file.

        `reference` is the file that the generation names as its reference.
        If memory runs out it continues once from the last step in low-memory mode, which rounds differently.
        """
        sampled = self.sample(generation, on_progress, on_step=on_step, resume=resume, reference=reference)
        return self.decode(sampled, on_progress)

    def sample(
        self,
        generation: Generation,
        on_progress: OnProgress = _ignore_progress,
        *,
        on_step: OnStep = _ignore_checkpoint,
        on_preview: OnPreview = _ignore_preview,
        resume: Path | None = None,
        reference: Path | None = None,
    ) -> SampledLatents:
        """The first part of `generate`: all calls of the networks."""
        run = partial(self._sample, generation, reference, on_progress)
        timings: dict[str, float] = {}
        latest: Checkpoint | Path | None = resume

        def note(checkpoint: Checkpoint) -> None:
            nonlocal latest
            latest = checkpoint
            on_step(checkpoint)

        try:
            return run(note, on_preview, latest, timings, low_memory=False)
        except torch.OutOfMemoryError as e:
            log.warning("out of memory, continuing in low-memory mode: %s", e)
        self.free_memory()  # only here: the exception held on to the tensors of the call that failed
        self._processes.free_others()
        return run(note, on_preview, latest, timings, low_memory=True)

    def decode(self, sampled: SampledLatents, on_progress: OnProgress = _ignore_progress) -> Clip:
        """The second part of `generate`."""
        if not sampled.low_memory:
            try:
                return self._decode(sampled, on_progress, frames_per_call=None)
            except torch.OutOfMemoryError as e:
                log.warning("out of memory, decoding frame by frame: %s", e)
            self.free_memory()
        return self._decode(sampled, on_progress, frames_per_call=1)

    def _decode(self, sampled: SampledLatents, on_progress: OnProgress, *, frames_per_call: int | None) -> Clip:
        decoding = partial(on_progress, Phase.DECODING, sampled.steps, sampled.steps)
        decoding()
        with self._autoencoder.decoding(decoding), timed(sampled.timings, Phase.DECODING):
            frames = self.models.decode(sampled.latents, frames_per_call=frames_per_call)
        return Clip(frames, sampled.timings)

    def warm_up(self, generation: Generation) -> None:
        """One step that calls all networks of the plan, and its decoding, thrown away: kernels are chosen and memory is
        taken before the first job."""
        plan = self.plan(generation)
        latents = torch.randn(self.models.latents_shape(generation), generator=torch.Generator().manual_seed(0))
        kept = black_first_frame(self.models, generation) if self.models.keeps_first_frame else None
        image, video = self.denoisers(generation, first_frame=kept)
        models_of = [{call.model for move in step for call in move.calls} for step in plan]
        start = max(range(len(plan)), key=lambda index: len(models_of[index]))
        latents = latents.to(self.models.device)
        memory = dict.fromkeys(REMEMBERED, latents)  # by the steps that are left out here
        step = next(iter(sample(latents, plan, image=image, video=video, start=start, memory=memory)))
        self.models.decode(step.latents)

    def _sample(
        self,
        generation: Generation,
        reference: Path | None,
        on_progress: OnProgress,
        on_step: OnStep,
        on_preview: OnPreview,
        begin: Checkpoint | Path | None,
        timings: dict[str, float],
        *,
        low_memory: bool,
    ) -> SampledLatents:
        plan, shape = self.plan(generation), self.models.latents_shape(generation)  # both refuse before any GPU time
        total = len(plan)
        encoding = partial(on_progress, Phase.ENCODING, 0, total)
        encoding()
        # Before the phase is timed: waiting for the decoding of another clip is no work.
        turn = nullcontext() if generation.reference is None else self._autoencoder.encoding(encoding)
        with turn, timed(timings, Phase.ENCODING):
            self._processes.use_loras(self.models, generation.loras)
            first_frame = self._first_frame(generation, reference, low_memory=low_memory)
            image, video = self.denoisers(generation, first_frame=first_frame, low_memory=low_memory)
            state = self._first_state(generation, plan, shape, begin, reference, low_memory=low_memory)
        with timed(timings, Phase.SAMPLING):
            generator = torch.Generator()  # on the CPU: one seed, one clip, on any card
            generator.set_state(state.rng)
            on_progress(Phase.SAMPLING, state.step, total)
            run: dict[str, Any] = {"generator": generator, "start": state.step, "memory": state.memory}
            with self._processes.caching(self.models, generation, off=low_memory) as step_done:
                for step in sample(state.latents, plan, image=image, video=video, **run):
                    state = replace(
                        state, step=step.index + 1, latents=step.latents, memory=step.memory, rng=generator.get_state()
                    )
                    if step_done(state.step):
                        on_step(state)
                    if self._previewer is not None:
                        on_preview(partial(self._previewer.start, step, generation.fps))
                    on_progress(Phase.SAMPLING, state.step, total)
        return SampledLatents(state.latents, total, timings, low_memory)

    def _first_frame(
        self, generation: Generation, reference: Path | None, *, low_memory: bool
    ) -> FirstFrame | Condition | None:
        """What the video model keeps of the reference."""
        if not generation.keeps_first_frame:
            return None
        if reference is None:
            raise ValueError("the generation keeps a first frame; pass its file as reference=...")
        return first_frame_of(self.models, generation, reference, low_memory=low_memory)

    def denoisers(
        self,
        generation: Generation,
        *others: Generation,
        first_frame: FirstFrame | Condition | None = None,
        low_memory: bool = False,
    ) -> tuple[ImageDenoiser, VideoDenoiser]:
        """Both networks for a batch of generations, which differ in prompt and seed only."""
        models, count = self.models, 1 + len(others)
        family = family_of(generation, models) if generation.sampler.name == "official" else None
        texts = models.encode(
            [*(each.prompt for each in (generation, *others)), *[generation.negative_prompt] * count],
            empty_is_none=True,
            clip_skip=[generation.clip_skip] * count + [0] * count,  # the prompt's alone, as in diffusers
            options=TextOptions.of(generation),
        )
        if (
            isinstance(models, Models)
            and family == "animatediff"
            and models.image_text_encoder.dim == models.video_text_encoder.dim
        ):
            texts = replace(texts, image=texts.video)  # the released code has one text encoder, the video model's
        size = generation.width, generation.height
        kept: dict[str, Any] = {"first_frame": first_frame, "windows": generation.context_windows}
        if isinstance(models, TransformerModels) and generation.sampler.name == "fused":
            kept["image_frames"] = generation.sampler.image_frames
        image, video = models.denoisers(texts[:count], texts[count:], fps=generation.fps, size=size, **kept)
        if family == "modelscope":
            image.resize = (64, 64)
        if low_memory:
            image.sequential_cfg = video.sequential_cfg = True
            image.frames_at_once = self.gpus
        if low_memory and isinstance(video.unet, ControlledNetwork):
            video.unet.levels_kept = 0
        self._processes.split(image, video)
        return image, video

    def _first_state(
        self,
        generation: Generation,
        plan: Plan,
        shape: tuple[int, ...],
        begin: Checkpoint | Path | None,
        reference: Path | None,
        *,
        low_memory: bool,
    ) -> Checkpoint:
        """The checkpoint to resume from, or the state before the first step: noise, or the reference noised with it."""
        weights = self._weights + (self.models.loras.digest(generation.loras) if generation.loras else "")
        run = (weights, self.configuration.optimise, generation, plan)
        device, name = self.models.device, run_fingerprint(*run)
        found = begin
        if isinstance(begin, Path):
            names = {name, *run_fingerprints_0_1(*run)}
            found = Checkpoint.read(begin, names, partial(shape_after, plan, shape), device)
        if isinstance(found, Checkpoint) and not found.is_finite:  # on a GPU NaN is noticed up to two steps late
            found = None
        if isinstance(found, Checkpoint):
            log.info("resumed after step %d of %d", found.step, len(plan))
            return replace(found, fingerprint=name)
        # The run draws on from where the start noise ends; a second generator of the same seed would give it again.
        generator = torch.Generator().manual_seed(generation.seed)
        latents = start_noise(shape, generator, generation, plan).to(device)
        if start_reference(generation) is not None:
            if reference is None:
                raise ValueError("the generation begins at a reference; pass its file as reference=...")
            at_once = 1 if low_memory else None
            clip = reference_latents(self.models, generation, reference, frames_per_call=at_once)
            latents = noised(clip, plan, noise=latents)
        return Checkpoint(name, 0, latents, {}, generator.get_state())

    def failed_message(self, e: Exception) -> Failed:
        """The `Failed` message for an exception of `generate`.

        The first clip that runs out of memory is too large. If a second one does, memory may be leaking: the job is
        retried in a new process.
        """
        failed = failed_message(e, self.models.device)
        if isinstance(e, torch.OutOfMemoryError):
            failed = replace(failed, can_retry=self._was_out_of_memory, is_broken=self._was_out_of_memory)
            self._was_out_of_memory = True
        return failed

    def free_memory(self) -> None:
        gc.collect()
        if self.models.device.type == "cuda":
            torch.cuda.empty_cache()

    def plan(self, generation: Generation) -> Plan:
        """Raises ValueError naming the setting that cannot be run."""
        if generation.quantise != self.models.entry.quantise:
            raise InvalidSetting(
                f"quantise={generation.quantise}: the weights of model '{generation.model}' are now stored with "
                f"quantise={self.models.entry.quantise}; send the request again"
            )
        return plan_of(generation, self.models)

    @property
    def gpus(self) -> int:
        """How many compute each clip; on a CPU, processes."""
        return self._processes.count

    @property
    def device_name(self) -> str:
        """For people."""
        return str(self._processes)

    def peak_memory_mb(self) -> float:
        """On a GPU the most its allocator held since the last call, elsewhere the process's peak resident set."""
        if self.models.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.models.device) / 2**20
            torch.cuda.reset_peak_memory_stats(self.models.device)
            return peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # ru_maxrss is in KiB on Linux


def black_first_frame(models: AnyModels, generation: Generation) -> FirstFrame | Condition:
    height, width = (side // models.entry.upscale for side in (generation.height, generation.width))
    return models.first_frame(torch.zeros(1, height, width, 3, dtype=torch.uint8), generation)
