"""`python -m benchmarks.deep_cache_flop`: the share of a shallow call in the FLOP of a whole one, at full size.

Counted on torch's meta device for 16 frames of 512x512 and both halves of guidance: convolutions and matrix products.
An IV-IV step is 2 calls of the image network and 3 of the video network, of which one each is whole.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_networks import CALLS, Family, pair
from service.catalog.optimise import Optimise
from worker.networks.approximate.deep_cache import DeepCache
from worker.networks.optimise import OptimisedNetwork, TextKVCache

FAMILIES: tuple[Family, ...] = ("animatediff", "modelscope")
LEVELS = (1, 2, 3)
PLAIN = Optimise(cache_text_kv=False, cache_time_embeds=False)  # their caches would hide a part


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| networks | levels | image network | video network | IV-IV step |\n|---|---|---|---|---|")
    for family in FAMILIES:
        meta = pair(family, "full", torch.device("meta"), torch.float32)
        both = torch.cat([meta.latents, meta.latents])
        frames = both.transpose(1, 2).flatten(0, 1)
        for levels in LEVELS:
            image = _flop(meta.image, frames, meta.image_texts, levels)
            video = _flop(meta.video, both, meta.video_texts, levels)
            shares = " | ".join(f"{share:.2f}" for share in (image[1] / image[0], video[1] / video[0]))
            whole = _step(image[0], video[0], image[0], video[0])
            step = _step(image[0], video[0], image[1], video[1]) / whole
            print(f"| {family} | {levels} | {shares} | {step:.2f} |", flush=True)


def _step(whole_image: float, whole_video: float, image: float, video: float) -> float:
    return whole_image + whole_video + (CALLS["image"] - 1) * image + (CALLS["video"] - 1) * video


@torch.no_grad()
def _flop(unet: object, x: Tensor, texts: tuple[Tensor, Tensor], levels: int) -> tuple[float, float]:
    """Of a whole call and of the shallow one after it."""
    network, found = OptimisedNetwork(unet, PLAIN, TextKVCache()), list[float]()
    network.deep_cache = DeepCache(unet, levels=levels)
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            network(x, 500, encoder_hidden_states=texts)
        found.append(float(counter.get_total_flops()))
    return found[0], found[1]


if __name__ == "__main__":
    main()
