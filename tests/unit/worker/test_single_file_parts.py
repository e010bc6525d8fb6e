"""What a single file does not have: its configs, and its tokenizer with the padding of its encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from service.catalog.registry import ModelRegistry
from service.errors import ConfigurationError
from tests.unit.worker.test_weights_file import CONV_IN, CROSS, write
from worker.adding.configs import checkpoint_configs, motion_config
from worker.adding.tokenizers import PADDING, copy_tokenizer, find_tokenizer

DEMO = ModelRegistry.load().get("demo")
TOKENS = 586  # of the demo's tokenizer


@pytest.fixture
def slow_layout(tmp_path: Path) -> Path:
    """The demo's tokenizer as hubs have CLIP's, padded as Stable Diffusion 2 does."""
    assert DEMO.path is not None
    fast = json.loads((DEMO.path / "tokenizer/tokenizer.json").read_text())
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(fast["model"]["vocab"]))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in fast["model"]["merges"])])
    )
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "model_max_length": 16}))
    return folder


def ids(folder: Path) -> list[int]:
    return CLIPTokenizer.from_pretrained(folder)("a red circle", padding="max_length", max_length=16)["input_ids"]


def test_tokenizer_of_another_model_is_padded_as_the_checkpoint_wants(tmp_path: Path, slow_layout: Path) -> None:
    assert DEMO.path is not None
    own = DEMO.path / "tokenizer"
    assert find_tokenizer([DEMO], TOKENS) == own
    assert find_tokenizer([DEMO], 49408) is None
    entry = DEMO.model_copy(update={"path": tmp_path})
    shutil.copytree(DEMO.path, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tokenizer"))
    assert find_tokenizer([entry], TOKENS) == slow_layout
    assert ids(slow_layout) != ids(own)
    copy_tokenizer(slow_layout, tmp_path / "copy", PADDING[768])
    assert ids(tmp_path / "copy") == ids(own)
    copy_tokenizer(slow_layout, tmp_path / "second", PADDING[1024])
    assert ids(tmp_path / "second") == ids(slow_layout)


def test_stable_diffusion_2_has_to_say_what_it_predicts(tmp_path: Path) -> None:
    file = write(tmp_path, {CONV_IN: (2, 4, 3, 3), CROSS: (2, 1024)})
    with pytest.raises(ConfigurationError, match=r"--prediction-type v_prediction .*--prediction-type epsilon"):
        checkpoint_configs(file, None, None)
    configs = checkpoint_configs(file, None, "v_prediction")
    assert configs["scheduler"]["prediction_type"] == "v_prediction"
    assert configs["unet"]["use_linear_projection"]
    odd = write(tmp_path, {CONV_IN: (2, 4, 3, 3), CROSS: (2, 32)})
    with pytest.raises(ConfigurationError, match=r"dim 32, .*with --config"):
        checkpoint_configs(odd, None, None)


def test_motion_modules_without_positions_need_a_config(tmp_path: Path) -> None:
    file = write(tmp_path, {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)})
    with pytest.raises(ConfigurationError, match=r"motion_adapter/config\.json with --config"):
        motion_config(file, None)
