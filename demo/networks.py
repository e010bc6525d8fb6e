"""The demo networks: standard diffusers and transformers classes, small enough to train on two CPU cores.

Shapes: pictures (48, 48) <-> latents (4, 12, 12); text 16 tokens of 64 channels.
"""

from __future__ import annotations

import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.shapes import FRAMES, SIZE, VOCABULARY

TEXT_LENGTH = 16  # the longest caption has 11 tokens with start and end
TEXT_WIDTH = 64
LATENT_CHANNELS = 4
LATENT_SIZE = SIZE // 4
CHANNELS = (32, 64, 80)  # three levels, so that the 3x3 one sees the whole picture
HEADS = 4
GROUPS = 8


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges trained on the words of the demo captions: one token per word."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), behavior="removed")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special, letters = ["<|startoftext|>", "<|endoftext|>"], [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        show_progress=False,
        end_of_word_suffix="</w>",
        # Among equally frequent pairs the trainer merges the one with lower ids first. Letters must be given, because
        # it would number them in a different order every time.
        special_tokens=[*special, *letters],
    )
    bpe.train_from_iterator(VOCABULARY, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    pieces = [*special, *letters, *("".join(pair) for pair in merges)]
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=TEXT_LENGTH
    )


def text_encoder(tokens: CLIPTokenizer, seed: int) -> CLIPTextModel:
    """A frozen random CLIP text model with orthogonal word embeddings.

    Trained with the image model, for which "left" and "right" make no difference, a text encoder maps both to the same
    embedding. A frozen one cannot, and cross-attention learns to read it.
    """
    torch.manual_seed(seed)
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            max_position_embeddings=TEXT_LENGTH,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )
    words = sorted(tokens(list(VOCABULARY), add_special_tokens=False)["input_ids"])
    assert all(len(word) == 1 for word in words), "every word of the captions must be one token"
    rows = [word[0] for word in words] + [tokens.bos_token_id, tokens.eos_token_id]
    with torch.no_grad():
        orthogonal = torch.linalg.qr(torch.randn(TEXT_WIDTH, TEXT_WIDTH))[0]
        model.state_dict()["embeddings.token_embedding.weight"][rows] = orthogonal[: len(rows)]
    return model.eval().requires_grad_(False)


def vae() -> AutoencoderKL:
    levels = (16, 32, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        block_out_channels=levels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        sample_size=SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # the latents are whitened per channel inside quant_conv
    )


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,  # diffusers reads this as the number of heads, as in Stable Diffusion's config
        norm_num_groups=GROUPS,
    )


def motion_adapter() -> MotionAdapter:
    return MotionAdapter(
        block_out_channels=CHANNELS,
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=HEADS,
        motion_norm_num_groups=GROUPS,
        motion_max_seq_length=FRAMES,
    )


def video_unet(spatial: UNet2DConditionModel, adapter: MotionAdapter) -> UNetMotionModel:
    return UNetMotionModel.from_unet2d(spatial, adapter)


def scheduler(prediction_type: str) -> DDIMScheduler:
    """Stable Diffusion's noise schedule; the image model predicts epsilon, the video model v."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type=prediction_type,
    )
