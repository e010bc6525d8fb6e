"""Textual inversions on a tiny model: latents equal those of diffusers' pipelines with load_textual_inversion."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from service.catalog.model_entry import ModelEntry
from service.errors import ConfigurationError, InvalidParameter
from service.jobs.request import VideoRequest
from tests.diffusers_pipelines import NEGATIVE, Pipelines, assert_same_latents
from tests.lora_files import Numbers
from tests.tiny_models import animatediff_without_image_parts, save_model, write_entry
from worker.child.fingerprint import weights_digest
from worker.networks.loading import load
from worker.networks.lora import adapt_text_encoders
from worker.networks.models import Models
from worker.networks.text_encoder import PromptTooLong
from worker.verify import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return animatediff_without_image_parts(tmp_path_factory.mktemp("inversion") / "model")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Models:
    return load(write_entry(folder, "animatediff"), "cpu")


def entry_with(
    folder: Path, *files: tuple[str, dict[str, Tensor]], settings: str = "", family: str = "animatediff"
) -> ModelEntry:
    """An entry with one textual inversion for each token."""
    lines = ["[sources.own]", 'folder = "."']
    for number, (token, weights) in enumerate(files):
        save_file(weights, folder / f"word{number}.safetensors")
        lines += [
            "[[models.tiny.textual_inversions]]",
            f'file = "own/word{number}.safetensors"',
            f'token = "{token}"',
            settings,
        ]
    return write_entry(folder, family, *lines)


FILES = {
    "a1111, one vector": ("<x>", {"emb_params": Numbers(1)(1, 32)}),
    "a1111, three": ("<x>", {"emb_params": Numbers(2)(3, 32)}),
    "diffusers, one vector": ("<cat-toy>", {"<cat-toy>": Numbers(3)(32)}),
    "diffusers, two, renamed": ("style-v2", {"<other>": Numbers(4)(2, 32)}),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", FILES)
def test_latents_equal_those_of_diffusers_with_the_same_file(folder: Path, kind: str) -> None:
    token, weights = FILES[kind]
    entry = entry_with(folder, (token, weights))
    models, pipelines = load(entry, "cpu"), Pipelines(folder)
    pipelines.image.load_textual_inversion(str(folder / "word0.safetensors"), token=token)
    assert_same_latents(models, pipelines, "video" if "three" in kind else "image", f"{token}, a red{token} {token}")


def test_several_words_are_kept_apart(folder: Path) -> None:
    words = [("<x>", {"emb_params": Numbers(1)(2, 32)}), ("<xy>", {"emb_params": Numbers(2)(3, 32)})]
    entry, pipelines = entry_with(folder, *words), Pipelines(folder)
    for number, (token, _) in enumerate(words):
        pipelines.image.load_textual_inversion(str(folder / f"word{number}.safetensors"), token=token)
    assert_same_latents(load(entry, "cpu"), pipelines, "image", "<xy> a <x> circle")


def test_every_vector_counts_as_a_token(folder: Path) -> None:
    models = load(entry_with(folder, ("<x>", {"emb_params": Numbers()(5, 32)})), "cpu")
    models.encode("<x> <x> a b c d")  # 16 with start and end
    with pytest.raises(PromptTooLong, match="the text has 17 tokens, the text encoder takes 16"):
        models.encode(["red", "<x> <x> a b c d e"])


def test_service_counts_a_word_as_one_token_at_least(folder: Path) -> None:
    """The API has no tokenizer: what it refuses must be too long for every number of vectors."""
    entry = entry_with(folder, ("<x>", {"emb_params": Numbers()(1, 32)})).model_copy(update={"max_prompt_tokens": 16})
    longest = " ".join(["<x>"] * 14)
    assert entry.resolve(VideoRequest(prompt=longest)).prompt == longest
    load(entry, "cpu").encode(longest)
    with pytest.raises(InvalidParameter, match="prompt has at least 17 tokens"):
        entry.resolve(VideoRequest(prompt=longest + "<X>"))


def test_model_with_a_closed_vocabulary_accepts_the_word(folder: Path) -> None:
    entry = entry_with(folder, ("<X>", {"emb_params": Numbers()(1, 32)}))
    prompt = {"vocabulary": ["red", "circle"], "can_draw": "Circles."}
    closed = ModelEntry.model_validate(dict(entry) | {"prompt": prompt})
    closed.check_vocabulary("prompt", "red<x>, <X> circle")
    with pytest.raises(InvalidParameter, match="does not know '<y>'"):
        closed.check_vocabulary("prompt", "red <x> <y>")


def test_word_for_one_model_leaves_the_other_models_encoder(folder: Path, plain: Models) -> None:
    word = ("<x>", {"emb_params": Numbers()(2, 32)})
    models = load(entry_with(folder, word, settings='on = ["image"]'), "cpu")
    before, texts = plain.encode([NEGATIVE, "a <x>"]), models.encode([NEGATIVE, "a <x>"])
    assert torch.equal(texts.video, before.video)
    assert torch.equal(texts.image[0], before.image[0])
    assert not torch.allclose(texts.image[1], before.image[1])


def test_run_does_not_resume_with_other_vectors(folder: Path, plain: Models) -> None:
    digests = {
        weights_digest(dataclasses.replace(plain, entry=entry_with(folder, ("<x>", {"emb_params": vectors}))))
        for vectors in (torch.zeros(1, 32), torch.ones(1, 32))
    }
    assert len(digests | {weights_digest(plain)}) == 3


@pytest.mark.parametrize(
    ("token", "weights", "complaint"),
    [
        ("<x>", {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 64)}, "is for SDXL"),
        ("<x>", {"a": torch.ones(1, 32), "b": torch.ones(1, 32)}, r"has 2 weights \(a, b\); expected one"),
        ("<x>", {}, "has 0 weights"),
        ("<x>", {"emb_params": torch.ones(1, 1, 32)}, r"has shape \(1, 1, 32\), expected \(vectors, dim\)"),
        ("<x>", {"emb_params": torch.ones(0, 32)}, r"has shape \(0, 32\)"),
        ("<x>", {"emb_params": torch.full((1, 32), torch.nan)}, "emb_params is not finite"),
        ("<x>", {"emb_params": torch.ones(1, 24)}, "dim 24, the text encoder of the (image|video) model takes 32"),
        ("red", {"emb_params": torch.ones(1, 32)}, "token 'red' is in the tokenizer's vocabulary"),
        ("Circle", {"emb_params": torch.ones(1, 32)}, "token 'Circle' is in the tokenizer's vocabulary"),
        ("<|endoftext|>", {"emb_params": torch.ones(1, 32)}, "is in the tokenizer's vocabulary"),
    ],
)
def test_file_or_word_that_does_not_fit_is_refused(
    folder: Path, plain: Models, token: str, weights: dict[str, Tensor], complaint: str
) -> None:
    entry, text = entry_with(folder, (token, weights)), copy.deepcopy(plain.video_text_encoder)
    with pytest.raises(ConfigurationError, match=rf"textual inversion .*word0\.safetensors.*{complaint}"):
        adapt_text_encoders(entry, text, text)


def test_further_vector_that_is_another_word_is_refused(folder: Path) -> None:
    entry = entry_with(folder, ("<x>_1", {"a": torch.ones(32)}), ("<x>", {"b": torch.ones(2, 32)}))
    with pytest.raises(ConfigurationError, match="token '<x>_1' is in the tokenizer's vocabulary"):
        list(verify(entry))


def test_encoders_of_two_widths_need_the_model_that_gets_the_word(tmp_path: Path) -> None:
    save_model("modelscope", tmp_path / "model")
    word = ("<x>", {"emb_params": torch.ones(1, 32)})
    with pytest.raises(ConfigurationError, match=r"video model takes 16; name the models that get it with `on`"):
        list(verify(entry_with(tmp_path / "model", word, family="modelscope")))
    entry = entry_with(tmp_path / "model", word, family="modelscope", settings='on = ["image"]')
    list(verify(entry))
    assert load(entry).encode("<x>").image.shape == (1, 16, 32)
