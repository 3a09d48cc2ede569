"""Makes the small files that fuzzing starts from, in corpus/: python make_seeds.py (gguf, numpy, safetensors)."""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent / "corpus"
FIXTURES = Path(__file__).parent.parent / "crates/ascribe-models/tests/fixtures"
NAMES = {"model.embed_tokens": ("token_embd", (5, 4)), "model.layers.0.input_layernorm": ("blk.0.attn_norm", (4,)),
         "model.layers.0.self_attn.q_proj": ("blk.0.attn_q", (4, 4)), "model.layers.0.self_attn.k_proj": ("blk.0.attn_k", (4, 4)),
         "model.layers.0.self_attn.v_proj": ("blk.0.attn_v", (4, 4)),
         "model.layers.0.self_attn.o_proj": ("blk.0.attn_output", (4, 4)),
         "model.layers.0.post_attention_layernorm": ("blk.0.ffn_norm", (4,)),
         "model.layers.0.mlp.gate_proj": ("blk.0.ffn_gate", (4, 4)), "model.layers.0.mlp.up_proj": ("blk.0.ffn_up", (4, 4)),
         "model.layers.0.mlp.down_proj": ("blk.0.ffn_down", (4, 4)), "model.norm": ("output_norm", (4,))}


def main() -> None:
    for kind in ["gguf", "safetensors", "config"]:
        (HERE / kind).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    tensors = {name: generator.normal(size=shape).astype(np.float32) for name, (_, shape) in NAMES.items()}
    for dtype in [np.float32, np.float16]:
        save_file({f"{name}.weight": x.astype(dtype) for name, x in tensors.items()},
                  HERE / "safetensors" / np.dtype(dtype).name)
        writer = gguf.GGUFWriter(HERE / "gguf" / np.dtype(dtype).name, "llama")
        writer.add_vocab_size(5)
        writer.add_context_length(8)
        writer.add_embedding_length(4)
        writer.add_block_count(1)
        writer.add_feed_forward_length(4)
        writer.add_head_count(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_sliding_window(3)
        writer.add_array("llama.attention.sliding_window_pattern", [True])
        writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c", "d", "e"])
        for name, x in tensors.items():
            writer.add_tensor(f"{NAMES[name][0]}.weight", x.astype(dtype if x.ndim == 2 else np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    for path in [*FIXTURES.glob("*/config.json"), *FIXTURES.glob("lora/*/adapter_config.json")]:
        (HERE / "config" / path.parent.name).write_text(json.dumps(json.loads(path.read_text())))


main()
