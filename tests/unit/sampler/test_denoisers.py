import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel

from sampler import (
    AddedConditions,
    ImageDenoiser,
    IncompatibleInputs,
    InvalidSetting,
    NoiseSchedule,
    VideoDenoiser,
    ddim_plan,
    mixed_plan,
    sample,
    seeded_noise,
)
from tests.unit.sampler.networks import Constant, Smooth, texts

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


def test_real_motion_unet_gets_its_text_once_per_frame() -> None:
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


def test_network_runs_in_the_dtype_of_its_text_and_epsilon_is_float32() -> None:
    seen: list[torch.dtype] = []

    def network(x: torch.Tensor, timestep: int, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        seen.append(x.dtype)
        return x

    cond, uncond = (text.half() for text in texts())
    eps = VideoDenoiser(network, cond, uncond)(seeded_noise((1, 4, 2, 4, 4), 0), 10, 0.5, 4.0)
    assert (seen, eps.dtype) == ([torch.float16], torch.float32)


@pytest.mark.parametrize("supported", [8, 16])
def test_more_frames_than_the_motion_modules_support_are_refused_before_any_call(supported: int) -> None:
    adapter = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=supported,
    )
    video = VideoDenoiser(UNetMotionModel.from_unet2d(small_unet(), adapter), *[torch.ones(1, 5, 8)] * 2)
    plan = ddim_plan(NoiseSchedule.scaled_linear(0.00085, 0.012), 2)
    assert len(list(sample(seeded_noise((1, 4, supported, 8, 8), 0), plan, video=video))) == 2
    for frames in (supported + 1, 2 * supported):
        x = seeded_noise((1, 4, frames, 8, 8), 0)
        complaint = rf"supports at most {supported} frames, the latents .* have {frames};"
        with pytest.raises(IncompatibleInputs, match=complaint):
            sample(x, plan, video=video)
        with pytest.raises(IncompatibleInputs, match=complaint):
            video(x, 500, 0.5, 4.0)


def test_a_network_without_a_known_limit_takes_any_number_of_frames() -> None:
    x = seeded_noise((1, 4, 100, 4, 4), 0)
    assert VideoDenoiser(Constant(0.0), *texts())(x, 10, 0.5, 4.0).shape == x.shape


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("frames_at_once", [None, 1, 2, 5])
@pytest.mark.parametrize("batch", [1, 2])
def test_low_memory_modes_give_the_same_epsilon_in_smaller_calls(
    batch: int, frames_at_once: int | None, guidance: float
) -> None:
    cond, uncond = torch.rand(batch, 3, 2), torch.rand(batch, 3, 2)
    x, seen = seeded_noise((batch, 4, 3, 4, 4), 0), list[int]()
    network = Smooth(0.1)

    def recorded(x: torch.Tensor, timestep: int, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return network(x, timestep, encoder_hidden_states)

    for kind in (ImageDenoiser, VideoDenoiser):
        expected = kind(network, cond, uncond)(x, 500, 0.5, guidance)
        model = kind(recorded, cond, uncond)
        model.sequential_cfg = True
        if isinstance(model, ImageDenoiser):
            model.frames_at_once = frames_at_once
        torch.testing.assert_close(model(x, 500, 0.5, guidance), expected)
        most = batch if kind is VideoDenoiser else min(3, frames_at_once) if frames_at_once else batch * 3
        assert max(seen) == most
        seen.clear()


def test_denoisers_and_schedules_are_printed_in_a_line() -> None:
    image = ImageDenoiser(small_unet(), *[torch.ones(1, 5, 8)] * 2)
    assert repr(image) == "ImageDenoiser(UNet2DConditionModel, text=(1, 5, 8), prediction_type='epsilon')"
    assert repr(NoiseSchedule.scaled_linear(0.00085, 0.012)) == (
        "NoiseSchedule(<1000 timesteps, alphas_cumprod 0.9991..0.00466>, timestep_spacing='leading', "
        "steps_offset=1, set_alpha_to_one=False, prediction_type='epsilon')"
    )


def test_embeddings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(IncompatibleInputs, match=r"cond \(1, 3, 2\) and uncond \(1, 4, 2\)"):
        ImageDenoiser(Constant(0.0), torch.ones(1, 3, 2), torch.ones(1, 4, 2))
    with pytest.raises(IncompatibleInputs, match="with batch 1"):
        VideoDenoiser(Constant(0.0), *texts())(seeded_noise((2, 4, 2, 4, 4), 0), 10, 0.5, 4.0)


def test_seeded_noise_depends_on_the_seed_alone() -> None:
    shape = (2, 4, 2, 4, 4)
    assert torch.equal(seeded_noise(shape, 3), seeded_noise(shape, 3))
    assert not torch.equal(seeded_noise(shape, 3), seeded_noise(shape, 4))
    assert torch.equal(seeded_noise(shape, [3, 4])[1:], seeded_noise((1, *shape[1:]), [4]))
    with pytest.raises(IncompatibleInputs, match="seed has 1 values for a batch of 2"):
        seeded_noise(shape, [3])


def test_uncond_weight_scales_the_unconditional_branch_and_its_v_term() -> None:
    x = seeded_noise((1, 4, 2, 4, 4), 0)
    for uncond, expected in ((0.0, 2.0 * 4), (0.5, 0.5 + 2.0 * 4)):
        eps = VideoDenoiser(Constant(1.0, 3.0), *texts())(x, 10, 0.64, 4.0, uncond=uncond)
        torch.testing.assert_close(eps, torch.full_like(eps, expected))
        v = VideoDenoiser(Constant(1.0, 3.0), *texts(), prediction_type="v_prediction")(x, 10, 0.64, 4.0, uncond=uncond)
        torch.testing.assert_close(v, 0.8 * expected + uncond * 0.6 * x)


def test_resized_image_model_sees_nearest_neighbours_and_gives_epsilon_at_the_clips_size() -> None:
    """As ModelScope's released code does with 64x64, here with 8x8 from 4x4 and from 2x4."""
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, timestep: int, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return 2 * x

    for size in ((4, 4), (2, 4)):
        x = seeded_noise((1, 4, 3, *size), 1)
        eps = ImageDenoiser(network, *texts(), resize=(8, 8))(x, 10, 0.5, 1.0)
        torch.testing.assert_close(eps, 2 * x)
        assert seen[-1].shape == (3, 4, 8, 8)
        assert torch.equal(seen[-1][:, :, :: 8 // size[0], :: 8 // size[1]], x[0].transpose(0, 1))
    with pytest.raises(InvalidSetting, match=r"resize=\(0, 8\)"):
        ImageDenoiser(network, *texts(), resize=(0, 8))


def test_network_arguments_are_passed_in_every_call() -> None:
    seen: list[int] = []

    def network(x: torch.Tensor, timestep: int, encoder_hidden_states: torch.Tensor, fps: int) -> torch.Tensor:
        seen.append(fps)
        return x

    denoiser = VideoDenoiser(network, *texts(), network_args={"fps": 24})
    for guidance in (1.0, 4.0):
        denoiser(seeded_noise((1, 4, 2, 4, 4), 0), 10, 0.5, guidance)
    assert seen == [24, 24]


def test_embeddings_of_another_text_encoder_are_refused() -> None:
    with pytest.raises(
        IncompatibleInputs, match=r"cond \(1, 5, 16\) is 16 wide, the network's cross-attention takes 8"
    ):
        ImageDenoiser(small_unet(), torch.ones(1, 5, 16), torch.ones(1, 5, 16))


def test_sdxls_networks_get_pooled_embeddings_and_sizes_that_fit_them() -> None:
    config = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = UNet2DConditionModel(**SMALL, **blocks, **config, projection_class_embeddings_input_dim=5 + 6 * 2).eval()
    text, pooled, sizes = torch.randn(1, 3, 8), torch.randn(2, 1, 5), torch.tensor([64.0, 96, 0, 0, 64, 96])
    x = seeded_noise((1, 4, 2, 8, 8), 0)
    with torch.no_grad():
        image = ImageDenoiser(unet, text, text, added=AddedConditions(pooled[0], pooled[1], sizes))
        found = image(x, 500, 0.5, 0.0)
        rows = {"text_embeds": pooled[1].expand(2, -1), "time_ids": sizes.expand(2, -1)}
        frames = unet(x[0].transpose(0, 1), 500, text.expand(2, -1, -1), added_cond_kwargs=rows).sample
    torch.testing.assert_close(found[0], frames.transpose(0, 1))
    with pytest.raises(IncompatibleInputs, match="added=None: SDXL's networks also read pooled embeddings"):
        ImageDenoiser(unet, text, text)
    with pytest.raises(IncompatibleInputs, match="make an embedding 16 wide, the network takes 17"):
        ImageDenoiser(unet, text, text, added=AddedConditions(pooled[0, :, 1:], pooled[1, :, 1:], sizes))
    with pytest.raises(IncompatibleInputs, match=r"must both be \(1, width\)"):
        ImageDenoiser(unet, text, text, added=AddedConditions(pooled[:, 0], pooled[:, 0], sizes))


def test_network_that_returns_another_shape_is_refused() -> None:
    def learned_variance(x: torch.Tensor, timestep: int, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x], dim=1)

    with pytest.raises(IncompatibleInputs, match=r"returned \(2, 8, 2, 4, 4\) for an input of \(2, 4, 2, 4, 4\)"):
        VideoDenoiser(learned_variance, *texts())(seeded_noise((1, 4, 2, 4, 4), 0), 10, 0.5, 4.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latents_stay_float32_with_half_precision_networks(dtype: torch.dtype) -> None:
    def network(x: torch.Tensor, timestep: int, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        assert x.dtype == encoder_hidden_states.dtype == dtype
        return 0.3 * x

    cond, uncond = (text.to(dtype) for text in texts())
    schedule = NoiseSchedule.scaled_linear(0.00085, 0.012)
    models = {"image": ImageDenoiser(network, cond, uncond), "video": VideoDenoiser(network, cond, uncond)}
    steps = list(sample(seeded_noise((1, 4, 2, 4, 4), 0).to(dtype), mixed_plan(schedule, 4), **models))
    assert {step.latents.dtype for step in steps} == {torch.float32}
