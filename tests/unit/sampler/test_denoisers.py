import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel

from sampler import ImageDenoiser, VideoDenoiser, seeded_noise
from tests.unit.sampler.networks import Constant, texts

SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


def small_unet() -> UNet2DConditionModel:
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**SMALL, **blocks).eval()


@pytest.mark.parametrize(
    ("guidance", "expected", "rows"), [(0.0, 1.0, 1), (1.0, 3.0, 1), (4.0, 9.0, 2), (-4.0, -7.0, 2)]
)
def test_guidance_is_uncond_plus_scale_times_difference(guidance: float, expected: float, rows: int) -> None:
    network = Constant(1.0, 3.0)
    eps = VideoDenoiser(network, *texts())(seeded_noise((1, 4, 2, 4, 4), 0), 10, 0.5, guidance)
    torch.testing.assert_close(eps, torch.full_like(eps, expected))
    assert network.calls == [((rows, 4, 2, 4, 4), 10)]


def test_v_prediction_becomes_epsilon() -> None:
    """eps = sqrt(abar) v + sqrt(1 - abar) x (arXiv:2202.00512 App. D), here with abar = 0.64."""
    x = seeded_noise((1, 4, 2, 4, 4), 0)
    eps = VideoDenoiser(Constant(0.5), *texts(), prediction_type="v_prediction")(x, 10, 0.64, 4.0)
    torch.testing.assert_close(eps, 0.8 * torch.full_like(x, 0.5) + 0.6 * x)


def test_real_motion_unet_gets_its_text_once_a_frame() -> None:
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )
    unet = UNetMotionModel.from_unet2d(small_unet(), adapter).eval()
    text = torch.randn(2, 5, 8)
    with torch.no_grad():
        eps = VideoDenoiser(unet, text, text * 0.5)(seeded_noise((2, 4, 3, 8, 8), 0), 500, 0.5, 4.0)
    assert eps.shape == (2, 4, 3, 8, 8)


def test_real_unet3d_repeats_its_text_by_itself() -> None:
    unet = UNet3DConditionModel(
        **SMALL | {"attention_head_dim": 4, "norm_num_groups": 8, "block_out_channels": (8, 16)},
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    ).eval()
    text = torch.randn(2, 5, 8)
    with torch.no_grad():
        eps = VideoDenoiser(unet, text, text * 0.5)(seeded_noise((2, 4, 3, 8, 8), 0), 500, 0.5, 4.0)
    assert eps.shape == (2, 4, 3, 8, 8)


def test_image_denoiser_is_the_network_on_each_frame_with_its_own_text() -> None:
    unet, cond = small_unet(), torch.randn(2, 5, 8)
    uncond = torch.randn(2, 5, 8)
    x = seeded_noise((2, 4, 3, 8, 8), 0)
    with torch.no_grad():
        eps = ImageDenoiser(unet, cond, uncond)(x, 500, 0.5, 4.0)
        u, c = (unet(x[1, :, 2][None], 500, encoder_hidden_states=text[1:]).sample[0] for text in (uncond, cond))
    torch.testing.assert_close(eps[1, :, 2], u + 4.0 * (c - u), atol=1e-5, rtol=1e-5)


def test_network_runs_in_the_dtype_of_its_text_and_epsilon_comes_back_in_float32() -> None:
    seen: list[torch.dtype] = []

    def network(x: torch.Tensor, timestep: int, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        seen.append(x.dtype)
        return x

    cond, uncond = (text.half() for text in texts())
    eps = VideoDenoiser(network, cond, uncond)(seeded_noise((1, 4, 2, 4, 4), 0), 10, 0.5, 4.0)
    assert (seen, eps.dtype) == ([torch.float16], torch.float32)


def test_embeddings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cond \(1, 3, 2\) and uncond \(1, 4, 2\)"):
        ImageDenoiser(Constant(0.0), torch.ones(1, 3, 2), torch.ones(1, 4, 2))
    with pytest.raises(ValueError, match="with batch 1"):
        VideoDenoiser(Constant(0.0), *texts())(seeded_noise((2, 4, 2, 4, 4), 0), 10, 0.5, 4.0)


def test_seeded_noise_depends_on_the_seed_alone() -> None:
    shape = (2, 4, 2, 4, 4)
    assert torch.equal(seeded_noise(shape, 3), seeded_noise(shape, 3))
    assert not torch.equal(seeded_noise(shape, 3), seeded_noise(shape, 4))
    assert torch.equal(seeded_noise(shape, [3, 4])[1:], seeded_noise((1, *shape[1:]), [4]))
    with pytest.raises(ValueError, match="seed has 1 values for a batch of 2"):
        seeded_noise(shape, [3])
