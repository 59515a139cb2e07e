"""OMP_NUM_THREADS=1 pytest tests/test_hf.py: models of other people, against transformers; what is wrong with a folder is named."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import hf_cases
import pytest
import torch
from hf_cases import CASES, LENGTHS, measure
from safetensors.torch import load_file, save_file
from torch import Tensor

from openmai.base.errors import OpenmaiError
from openmai.model.checkpoint import load_model
from openmai.model.config import ModelConfig, load_config, load_preset, preset_names
from openmai.model.hf.family import FAMILIES, choose, find
from openmai.model.hf.files import FP4, Folder, Writer
from openmai.model.hf.settings import canonical
from openmai.model.import_config import ImportConfig
from openmai.model.import_hf import import_hf

TABLE = Path(__file__).parents[1] / "docs" / "model" / "architectures.md"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_the_same(name: str, tmp_path: Path) -> None:
    result = measure(CASES[name], tmp_path)
    assert set(result.differences) == set(LENGTHS)
    assert max(result.differences.values()) < 1e-4
    assert result.spread > 0.5
    assert result.same_tokens
    assert result.same_bytes
    assert result.same_model


def test_the_table_of_the_documentation_has_every_case_and_every_class() -> None:
    rows = [line.split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ") and "`" in line]
    assert [row[0].removeprefix("| ") for row in rows] == [case.title for case in CASES.values()]
    assert {row[1].strip("`") for row in rows} == {family.hf_class for family in FAMILIES}
    assert all(float(row[3]) < 1e-4 and row[5] == "equal" and row[6] == "same bytes |" for row in rows)


def test_presets_of_known_classes_survive_their_config_json() -> None:
    """What a published architecture writes into config.json is read back as the same architecture."""
    seen = set()
    for name in preset_names():
        preset = load_preset(name)
        try:
            family = choose(preset)
        except OpenmaiError:
            continue
        seen.add(family.hf_class)
        written = json.loads(json.dumps(family.write(preset)))
        assert find(written, name) is family
        assert canonical(family.read(written, name)) == canonical(preset)
    assert len(seen) >= 12


def llama(folder: Path, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Write a small Llama; return its tensors and config.json."""
    hf_cases.theirs(hf_cases.Case("", "Llama", settings), folder)
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(OpenmaiError, match=message):
        import_hf(ImportConfig(folder=folder, out=folder.parent / "out"))
    assert not (folder.parent / "out" / "manifest.json").exists()
    assert not list((folder.parent / "out").glob("*model.safetensors*"))


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    weights, _ = llama(folder)
    file, name = folder / "model.safetensors", "model.layers.1.self_attn.k_proj.weight"
    save_file({key: value for key, value in weights.items() if key != name}, file)
    refuse(folder, rf"tensor {name} is missing; config.json expects it with shape \(16, 32\)")
    save_file(weights | {name: torch.zeros(32, 32)}, file)
    refuse(folder, rf"tensor {name} has shape \(32, 32\), config.json expects \(16, 32\)")
    save_file(weights | {"model.layers.1.extra": torch.zeros(3), "model.layers.2.extra": torch.zeros(3)}, file)
    refuse(folder, r"unexpected tensor model.layers.1.extra of shape \(3,\) and 1 more; LlamaForCausalLM")
    save_file({key: value for key, value in weights.items() if key != "lm_head.weight"}, file)
    refuse(folder, r"lm_head.weight is missing; .* \(131, 32\); if the model ties it .* set tie_word_embeddings to true")
    file.write_bytes(file.read_bytes()[:500])
    refuse(folder, "cannot be read .*; copy or download the file again")
    file.unlink()
    refuse(folder, r"no \*.safetensors file; convert older formats")


def test_a_head_that_should_be_tied_but_is_not_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    weights, settings = llama(folder)
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    refuse(folder, "lm_head.weight differs from model.embed_tokens.weight, but .* tie_word_embeddings=true; set it to false")
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    assert import_hf(ImportConfig(folder=folder, out=tmp_path / "tied")).metrics["class"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "unknown architecture MambaForCausalLM; known are LlamaForCausalLM, Qwen2"),
        ({"architectures": None, "model_type": "bert"}, "unknown architecture model_type bert"),
        ({"hidden_act": "tanh"}, "activation 'tanh' is not supported; known are silu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rotary positions of type 'dynamic' are not supported"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5 does not belong to this class",
        ),
        ({"num_key_value_heads": 3}, "num_heads=4 is not divisible by num_kv_heads=3"),
        ({"architectures": ["GptOssForCausalLM"], "swiglu_alpha": 2.0}, "swiglu_alpha=2.0 is not supported; expected 1.702"),
        ({"architectures": ["DeepseekV3ForCausalLM"], "topk_method": "greedy"}, "topk_method='greedy' is not supported"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "mlp_only_layers": [2]}, r"mlp_only_layers=\[2\] is not yet supported"),
    ],
)
def test_settings_that_we_do_not_compute_are_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    _, settings = llama(folder)
    (folder / "config.json").write_text(json.dumps(settings | changes))
    refuse(folder, message)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nothing", "config.json: no such file; expected a Hugging Face model folder")


def test_a_full_disk_is_said_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama(tmp_path / "llama")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(1000))
    refuse(tmp_path / "llama", "needs 0.0 GB, only 0.0 GB are free on that disk")


def test_older_config_files_are_read_as_well(tmp_path: Path) -> None:
    """rope_theta and rope_scaling side by side, as before transformers 5; keys that later versions added are missing."""
    _, settings = llama(tmp_path / "llama")
    scaling = {"type": "linear", "factor": 4.0}
    older = {key: value for key, value in settings.items() if key not in ("rope_parameters", "head_dim", "attention_bias", "mlp_bias")}
    read = find(older, "").read(older | {"rope_theta": 300.0, "rope_scaling": scaling}, "")
    assert (read.rope_theta, read.rope_scaling and read.rope_scaling.factor) == (300.0, 4.0)
    gemma = {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "sliding_window": 16,
        "hidden_size": 32,
        "num_hidden_layers": 4,
    }
    gemma |= {
        "vocab_size": 9,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 8,
        "max_position_embeddings": 64,
    }
    read = find(gemma, "").read(gemma, "")
    assert [read.is_global(layer) for layer in range(4)] == [False, True, False, True]
    assert (read.attention_softcap, read.logit_softcap, read.tied_embeddings, read.embedding_scale) == (50.0, 30.0, True, 32**0.5)


def test_gemma_3_is_found_inside_a_model_with_vision(tmp_path: Path) -> None:
    folder = tmp_path / "gemma"
    hf_cases.theirs(CASES["gemma-3"], folder)
    expected = load_model(import_hf(ImportConfig(folder=folder, out=tmp_path / "text"))).state_dict()
    weights, settings = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    whole = {f"language_model.{name}": value for name, value in weights.items()} | {"vision_tower.patch.weight": torch.zeros(2, 2)}
    save_file(whole, folder / "model.safetensors")
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": settings}
    (folder / "config.json").write_text(json.dumps(outer))
    found = load_model(import_hf(ImportConfig(folder=folder, out=tmp_path / "inner"))).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_gpt_2_without_prefix_and_with_old_buffers(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    hf_cases.theirs(CASES["gpt-2"], folder)
    expected = load_model(import_hf(ImportConfig(folder=folder, out=tmp_path / "one"))).state_dict()
    weights = {name.removeprefix("transformer."): value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights | {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.1.attn.masked_bias": torch.ones(1)}, folder / "model.safetensors")
    found = load_model(import_hf(ImportConfig(folder=folder, out=tmp_path / "two"))).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_fp8_blocks_become_bf16(tmp_path: Path) -> None:
    """DeepSeek-V3's weights: 128 x 128 numbers share a scale; blocks at the border are smaller."""
    torch.manual_seed(0)
    value, scales = (torch.randn(200, 300) * 50).to(torch.float8_e4m3fn), torch.rand(2, 3) + 0.5
    save_file({"w.weight": value, "w.weight_scale_inv": scales}, tmp_path / "model.safetensors")
    folder = Folder(tmp_path)
    assert folder.names == {"w.weight"}
    assert folder.dtype("w.weight") == torch.bfloat16
    expected = torch.stack([value.float()[i] * torch.tensor([scales[i // 128, j // 128] for j in range(300)]) for i in range(200)])
    assert torch.equal(folder.read("w.weight"), expected.bfloat16())
    save_file({"w.weight": value}, tmp_path / "model.safetensors")
    with pytest.raises(OpenmaiError, match=r"w.weight is FP8, but its scales w.weight_scale_inv are missing"):
        Folder(tmp_path).read("w.weight")


def test_mxfp4_is_decoded_as_transformers_does(tmp_path: Path) -> None:
    """gpt-oss's experts: 32 numbers of four bits share an exponent."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    blocks = torch.randint(256, (3, 6, 2, 16), dtype=torch.uint8)
    scales = torch.randint(118, 136, (3, 6, 2), dtype=torch.uint8)
    save_file({"experts.down_proj_blocks": blocks, "experts.down_proj_scales": scales}, tmp_path / "model.safetensors")
    folder = Folder(tmp_path)
    expected = convert_moe_packed_tensors(blocks, scales)
    assert folder.names == {"experts.down_proj"}
    assert folder.shape("experts.down_proj") == tuple(expected.shape) == (3, 64, 6)
    assert torch.equal(folder.read("experts.down_proj"), expected)
    assert torch.equal(folder.read("experts.down_proj", 1), expected[1])
    assert max(FP4) == 6.0


def test_a_module_of_multi_token_prediction_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deepseek"
    hf_cases.theirs(CASES["deepseek-v3"], folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.3.eh_proj.weight": torch.zeros(32, 64)}, folder / "model.safetensors")
    import_hf(ImportConfig(folder=folder, out=tmp_path / "out"))
    assert "multi-token prediction are left out" in capsys.readouterr().err


def test_precision_on_disk_is_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    weights, _ = llama(folder)
    out = import_hf(ImportConfig(folder=folder, out=tmp_path / "small", dtype="bfloat16")).path
    stored = load_file(out / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert torch.equal(stored["embedding.weight"], weights["model.embed_tokens.weight"].bfloat16())
    assert isinstance(load_config(out), ModelConfig)


def test_a_file_in_pieces_is_a_safetensors_file(tmp_path: Path) -> None:
    whole, stack = torch.arange(6.0).view(2, 3), torch.arange(24, dtype=torch.int64).view(2, 3, 4)
    with Writer(tmp_path / "x.safetensors", {"b": (torch.int64, (2, 3, 4)), "a": (torch.bfloat16, (2, 3))}) as writer:
        writer.write("b", stack[1], row=1)
        writer.write("a", whole)
        writer.write("b", stack[0], row=0)
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["b"], stack)
    assert torch.equal(found["a"], whole.bfloat16())
    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "y.safetensors", {"a": (torch.float32, (2,))}):
        raise ZeroDivisionError
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.safetensors"]
