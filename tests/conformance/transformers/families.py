"""Random models of every family, made by `transformers` in a temporary folder and read by Ascribe.

Seeds and sizes differ from those of the committed fixtures: nothing of this was seen while the code was written. Each model
is saved as Hugging Face saves models (some in shards, some in bf16), read by our command and our decoder, compared, written
by us and opened by `transformers` again.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers as hf

HIDDEN_RTOL = 1e-4  # of the largest hidden state

SIZES = {"hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 8,
         "max_position_embeddings": 96, "initializer_range": 0.1}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 48}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 48}
GEMMA3_ROPE = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
               "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}

# Name → class, differing fields, how it is saved.
CASES = {
    "llama": ("Llama", {"num_key_value_heads": 2, "head_dim": 16, "rope_parameters": LLAMA3}, {}),
    "llama-bf16": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}, {"dtype": torch.bfloat16}),
    "llama-yarn": ("Llama", {"num_key_value_heads": 8, "attention_bias": True, "rope_parameters": YARN}, {}),
    "mistral-shards": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 20}, {"max_shard_size": "200KB"}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}, {}),
    "qwen2-windows": ("Qwen2", {"num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 24,
                                "max_window_layers": 1}, {}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 4, "head_dim": 24}, {"dtype": torch.float16}),
    "olmo2": ("Olmo2", {"num_key_value_heads": 4}, {}),
    "gpt2": ("GPT2", {}, {}),
    "gpt2-base-model": ("GPT2", {"activation_function": "gelu"}, {"base": True}),
    "pythia": ("GPTNeoX", {"rotary_pct": 0.25}, {}),
    "pythia-sequential": ("GPTNeoX", {"rotary_pct": 1.0, "use_parallel_residual": False}, {"dtype": torch.bfloat16}),
    "gemma2": ("Gemma2", {"num_key_value_heads": 4, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 16}, {}),
    "gemma3": ("Gemma3", {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 16,
                          "num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPE}, {"max_shard_size": "300KB"}),
    "gemma3-with-images": ("Gemma3Images", {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 24,
                                            "sliding_window": 16}, {}),
    "minilm": ("Bert", {}, {}),
}


def build(kind: str, fields: dict, vocab_size: int) -> torch.nn.Module:
    config_class = getattr(hf, {"Gemma3": "Gemma3TextConfig", "Gemma3Images": "Gemma3Config"}.get(kind, f"{kind}Config"))
    model_class = getattr(hf, {"Bert": "BertModel", "GPT2": "GPT2LMHeadModel",
                               "Gemma3Images": "Gemma3ForConditionalGeneration"}.get(kind, f"{kind}ForCausalLM"))
    sizes = SIZES
    if kind == "GPT2":
        sizes = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 96, "initializer_range": 0.1}
    tokens = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    fields = {"vocab_size": vocab_size, **sizes, **tokens, **fields}
    if kind == "Gemma3Images":
        vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 28, "patch_size": 14}
        fields = {"text_config": fields, "vision_config": vision, "mm_tokens_per_image": 4, "boi_token_index": 5,
                  "eoi_token_index": 6, "image_token_index": 7}
    model = model_class(config_class(**fields))
    with torch.no_grad():  # gains of 1 and biases of 0 would hide one in the wrong place
        for _, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def save(model: torch.nn.Module, folder: Path, how: dict, tokenizer: Path) -> None:
    model = model.to(how.get("dtype", torch.float32))
    part = model.base_model if how.get("base") else model
    part.save_pretrained(folder, max_shard_size=how.get("max_shard_size", "1GB"))
    shutil.copy(tokenizer, folder / "tokenizer.json")


def reopen(kind: str, folder: Path) -> tuple[torch.nn.Module, dict]:
    auto = hf.AutoModel if kind == "Bert" else hf.AutoModelForCausalLM
    # Only the eager attention knows Gemma 2's soft cap.
    model, info = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    odd = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    # Heads that are the embedding itself, and BERT's pooler, which hidden states do not pass through.
    missing = [key for key in odd.pop("missing_keys", []) if key != "lm_head.weight" and not key.startswith("pooler.")]
    return model.eval(), {**odd, **({"missing_keys": missing} if missing else {})}


def outputs(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """Logits of a decoder, last hidden states of an encoder."""
    with torch.no_grad():
        found = model(torch.tensor([ids]))
        return (found.logits if hasattr(found, "logits") else found.last_hidden_state)[0].numpy()


def check(tally, compare, run, encode, texts: dict[str, str], tools: tuple[str, str], tokenizer: Path, vocab_size: int) -> None:
    """`compare` judges decoders, `run` calls a program and reads its JSON, `encode` gives token ids; all of check.py."""
    logits, ascribe = tools
    for seed, (name, (kind, fields, how)) in enumerate(CASES.items()):
        torch.manual_seed(4000 + seed)
        with tempfile.TemporaryDirectory() as top:
            folder, written = Path(top) / "model", Path(top) / "written"
            save(build(kind, fields, vocab_size), folder, how, tokenizer)
            model, odd = reopen(kind, folder)
            for source, text in texts.items():
                where, file = f"random {name} on {source}", Path(top) / "text.txt"
                file.write_text(text, encoding="utf-8", newline="")
                try:
                    facts = run(logits, str(folder), str(file), str(written))
                    if kind == "Bert":
                        reference = outputs(model, encode(text)).mean(0)
                        gap = float(np.abs(np.array(facts["mean_hidden"]) - reference).max())
                        scale = float(np.abs(reference).max())
                        tally.check(f"{where}, hidden states", gap <= HIDDEN_RTOL * scale, f"largest gap {gap:.2e} of {scale:.2f}")
                        continue
                    mean = run(ascribe, "nll", "--model", str(folder), "--text", str(file), "--format", "json")["nll"]
                    compare(tally, where, facts, mean, encode(text), model)
                except Exception as error:  # a program that failed, or said something else than JSON
                    tally.check(where, False, f"{error} {getattr(error, 'stderr', '')}".strip())
            if not (written / "config.json").exists():
                continue
            again, odd = reopen(kind, written)
            originals = dict(model.named_parameters())
            # We write the text half of a model with images, under shorter names: there the outputs tell.
            same = [torch.equal(weight, originals[key]) for key, weight in again.named_parameters()
                    if key in originals and not key.startswith("pooler.")]
            # Equal weights under a configuration that says something else would give other logits.
            ids = encode(next(iter(texts.values())))
            gap = float(np.abs(outputs(again, ids) - outputs(model, ids)).max())
            tally.check(f"random {name}, as we write it", not odd and all(same) and gap == 0.0,
                        str(odd) if odd else f"{sum(same)} of {len(same)} weights, outputs differ by {gap}")
