"""A backbone loads from wherever it lies, complete and proven, or says what is wrong at once."""

import json
import shutil
import time
import timeit
from functools import partial

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from tallrec.assets import fetch
from tallrec.llm import backbone as backbone_module
from tallrec.llm.backbone import DTYPES, choose_device, choose_dtype, load_backbone
from tallrec.llm.int8 import reads_bfloat16
from tests.tiny import byte_level_tokenizer, save_tiny_model


def load(source, **options):
    return load_backbone(source, **{"dtype": "float32", "device": "cpu", **options})


@pytest.fixture
def broken(tiny_folder, tmp_path):
    """A copy of the tiny model to break."""
    return shutil.copytree(tiny_folder, tmp_path / "broken")


def test_a_local_folder(tiny_folder):
    backbone = load(tiny_folder)
    assert backbone.name == str(tiny_folder)
    assert backbone.model.name_or_path == str(tiny_folder)
    assert not backbone.model.training
    assert backbone.max_positions == 512
    assert backbone.tokenizer.is_fast
    weights = load_file(tiny_folder / "model.safetensors")
    assert torch.equal(
        backbone.model.get_input_embeddings().weight, weights["model.embed_tokens.weight"]
    )
    assert load(str(tiny_folder), name="tiny").name == "tiny"


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(tiny_folder, dtype):
    model = load(tiny_folder, dtype=dtype).model
    assert {p.dtype for p in model.parameters()} == {DTYPES[dtype]}


def test_the_dtype_chosen_for_a_cpu_is_one_it_computes_fast():
    """By products of another size than the one that is tried."""
    chosen = choose_dtype("auto", torch.device("cpu"))
    flags = torch.cpu.get_capabilities()
    if not any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        assert chosen is torch.float32
        return
    other = torch.float32 if chosen is torch.bfloat16 else torch.bfloat16
    x, weight = torch.randn(1000, 576), torch.randn(576, 1536)
    seconds = {
        dtype: timeit.repeat(partial(torch.mm, x.to(dtype), weight.to(dtype)), number=2, repeat=20)
        for dtype in (chosen, other)
    }
    assert min(seconds[chosen]) < 1.2 * min(seconds[other])


def test_what_is_between_products_of_eight_bits_is_in_bfloat16(tiny_folder, tmp_path, monkeypatch):
    """Also where products of bfloat16 are slow, if all of the model's are of eight bits."""
    monkeypatch.setattr(backbone_module, "multiplies_bfloat16_fast", lambda: False)
    wide = shutil.copytree(tiny_folder, tmp_path / "wide")
    sizes = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
    config = LlamaConfig.from_pretrained(tiny_folder, **sizes)
    LlamaForCausalLM(config).save_pretrained(wide)
    expected = torch.bfloat16 if reads_bfloat16() else torch.float32
    assert load(wide, dtype="auto", int8=True).model.dtype == expected
    assert load(wide, dtype="auto").model.dtype == torch.float32
    narrow = load(tiny_folder, dtype="auto", int8=True).model  # its keys are 32 numbers
    assert {p.dtype for p in narrow.parameters()} == {torch.float32}


def test_the_device_chosen_is_a_gpu_where_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be auto, float32, bfloat16, float16; got 'int8'"),
        ({"device": "gpu"}, "device must be auto, cpu or cuda; got 'gpu'"),
    ],
)
def test_unknown_options(tiny_folder, options, message):
    with pytest.raises(ValueError, match=message):
        load(tiny_folder, **options)


def test_a_gpu_that_is_not_there(tiny_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # on a machine with one too
    with pytest.raises(ValueError, match="torch sees no GPU; use --device cpu"):
        load(tiny_folder, device="cuda")


def test_a_fingerprint_tells_weights_not_places(tiny_folder, tmp_path):
    fingerprint = load(tiny_folder).fingerprint
    assert fingerprint.startswith("sha256:")
    assert load(shutil.copytree(tiny_folder, tmp_path / "copy")).fingerprint == fingerprint
    assert load(save_tiny_model(tmp_path / "other", seed=1)).fingerprint != fingerprint


@pytest.mark.parametrize(
    "source", ["/nowhere/model", "./nope", "../nope", "tests/nope", "a/b/c", "model.gguf", "a b"]
)
def test_a_path_that_is_not_there(source):
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"there is no model folder or \.gguf file at"):
        load(source)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("source", ["nope", "runs/nope"])
def test_what_may_be_a_hub_id_fails_fast_too_where_no_hub_answers(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no folder is called like the id
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"{source} is neither a folder .* hub does not answer"):
        load(source)
    assert time.monotonic() - started < 5


def test_a_file_that_is_no_gguf(tiny_folder):
    with pytest.raises(ValueError, match=r"model\.safetensors is a file, but not a \.gguf"):
        load(tiny_folder / "model.safetensors")


def test_a_folder_without_one_model(tmp_path):
    with pytest.raises(
        ValueError, match=r"neither config\.json nor exactly one \.gguf .*\(0 there"
    ):
        load(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"exactly one \.gguf file \(2 there"):
        load(tmp_path)


def test_a_broken_gguf_file(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(ValueError, match="cannot load a causal language model from"):
        load(tmp_path / "a.gguf")


def test_truncated_weights(broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot load .*incomplete metadata"):
        load(broken)


def test_a_missing_tensor_is_named(broken):
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(broken / "model.safetensors")
    del weights[name]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"1 tensors of a LlamaForCausalLM are not .*{name}"):
        load(broken)


def test_pickled_weights_are_not_loaded(broken):
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no file named model\.safetensors"):
        load(broken)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_file_that_is_not_json(broken, file):
    (broken / file).write_text("{")
    with pytest.raises(ValueError, match="cannot load a causal language model from"):
        load(broken)


def test_a_models_own_code_is_not_run(broken, tmp_path):
    config = json.loads((broken / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=r"cannot load .* contains custom code"):
        load(broken)
    assert not (tmp_path / "ran").exists()


def test_an_encoder_is_refused(tmp_path):
    tokenizer = byte_level_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(BertLMHeadModel\) sees what comes after a token"):
        load(tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
class TestGguf:
    def test_weights_are_those_of_the_file_dequantized(self, smollm2):
        """Against the gguf package itself, in bfloat16; rotary heads are stored interleaved."""
        (path,) = fetch("smollm2-135m").glob("*.gguf")
        stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        weights = smollm2.model.state_dict()

        def dequantized(name):
            tensor = stored[name]
            return gguf.dequantize(tensor.data, tensor.tensor_type)

        def half_split(weight, heads):
            rows = weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2)
            return rows.reshape(weight.shape)

        plain = {"token_embd": "embed_tokens", "output_norm": "norm"}
        for layer in (0, 29):
            for theirs, ours in {
                "attn_v": "self_attn.v_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_down": "mlp.down_proj",
                "ffn_norm": "post_attention_layernorm",
            }.items():
                plain[f"blk.{layer}.{theirs}"] = f"layers.{layer}.{ours}"
        expected = {ours: dequantized(f"{theirs}.weight") for theirs, ours in plain.items()}
        for theirs, ours, heads in (("attn_q", "q_proj", 9), ("attn_k", "k_proj", 3)):
            weight = dequantized(f"blk.7.{theirs}.weight")
            expected[f"layers.7.self_attn.{ours}"] = half_split(weight, heads)
        for name, weight in expected.items():
            wanted = torch.from_numpy(np.array(weight, dtype=np.float32)).bfloat16()
            assert torch.equal(weights[f"model.{name}.weight"], wanted), name

    def test_it_is_an_ordinary_model(self, smollm2, tmp_path):
        assert {p.dtype for p in smollm2.model.parameters()} == {torch.bfloat16}
        assert smollm2.max_positions == 8192
        smollm2.model.save_pretrained(tmp_path)
        smollm2.tokenizer.save_pretrained(tmp_path)
        again = load(tmp_path, dtype="bfloat16")
        ids = torch.tensor([smollm2.tokenizer("Toy Story (1995)").input_ids])
        with torch.no_grad():
            assert torch.equal(again.model(ids).logits, smollm2.model(ids).logits)

    def test_a_cut_off_file(self, tmp_path):
        (path,) = fetch("smollm2-135m").glob("*.gguf")
        with path.open("rb") as file:
            (tmp_path / path.name).write_bytes(file.read(100_000))
        with pytest.raises(ValueError, match="cannot load a causal language model from"):
            load(tmp_path)

    def test_a_file_is_converted_once(self, smollm2, tmp_path, monkeypatch):
        monkeypatch.setattr(backbone_module, "converted_folder", lambda *_: tmp_path / "a" / "b")
        load(fetch("smollm2-135m"), dtype="bfloat16")
        monkeypatch.setattr(backbone_module, "GgufConfig", None)  # not converted again
        again = load(fetch("smollm2-135m"), dtype="bfloat16")
        assert again.fingerprint == smollm2.fingerprint
        text = "Toy Story (1995), 20,000 Leagues"
        assert again.tokenizer(text).input_ids == smollm2.tokenizer(text).input_ids
        state = smollm2.model.state_dict()
        for name, weight in again.model.state_dict().items():
            assert torch.equal(weight, state[name])

    def test_a_cache_that_cannot_be_written_is_said(self, tmp_path, monkeypatch, caplog):
        (tmp_path / "file").touch()
        folder = tmp_path / "file" / "converted"
        monkeypatch.setattr(backbone_module, "converted_folder", lambda *_: folder)
        load(fetch("smollm2-135m"), dtype="bfloat16")
        assert "cannot keep the converted model" in caplog.text

    def test_loading_draws_nothing_and_leaves_every_setting(
        self, smollm2, capfd, tmp_path, monkeypatch
    ):
        """Not even the bar of the GGUF reader, which no setting reaches."""
        monkeypatch.setattr(backbone_module, "converted_folder", lambda *_: tmp_path / "a")
        own_tqdm = modeling_gguf_pytorch_utils.tqdm
        shown = transformers_logging.is_progress_bar_enabled()
        backbone = load_backbone(fetch("smollm2-135m"), dtype="float32", device="cpu")
        assert capfd.readouterr() == ("", "")
        assert modeling_gguf_pytorch_utils.tqdm is own_tqdm
        assert transformers_logging.is_progress_bar_enabled() is shown
        assert backbone.fingerprint == smollm2.fingerprint
        rounded = {name: w.bfloat16() for name, w in backbone.model.state_dict().items()}
        state = smollm2.model.state_dict()
        assert all(torch.equal(weight, rounded[name]) for name, weight in state.items())
