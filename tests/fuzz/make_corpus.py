#!/usr/bin/env python3
"""make_corpus.py: writes the inputs of corpus/ that were not found by a fuzzer. Run it in this folder."""
import json
import pathlib
import struct


def write(program, name, content):
    folder = pathlib.Path("corpus") / program
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


# GGUF ---------------------------------------------------------------------------------------------------------------
def text(string):
    return struct.pack("<Q", len(string.encode())) + string.encode()


def entry(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def array(key, kind, values):
    return entry(key, 9, struct.pack("<IQ", kind, len(values)) + b"".join(values))


def gguf(entries, tensors):
    directory, data = b"", b""
    for name, columns, rows in tensors:
        dims = [columns] if rows == 1 else [columns, rows]
        directory += text(name) + struct.pack("<I", len(dims)) + struct.pack("<%dQ" % len(dims), *dims)
        directory += struct.pack("<IQ", 0 if rows == 1 else 2, len(data))  # f32, q4_0
        if rows == 1:
            data += struct.pack("<%df" % columns, *[1.0] * columns)
        else:  # blocks of a scale in f16 and 32 codes of 4 bits
            data += (struct.pack("<e", 0.05) + bytes((i * 37) % 256 for i in range(16))) * (columns * rows // 32)
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + directory
    return head + bytes(-len(head) % 32) + data


def sizes(**changed):
    values = {"block_count": 1, "embedding_length": 32, "feed_forward_length": 32, "context_length": 8,
              "attention.head_count": 2, "attention.head_count_kv": 1} | changed
    return [entry("general.architecture", 8, text("llama"))] + [
        entry("llama." + key, 4, struct.pack("<I", value)) for key, value in values.items()] + [
        entry("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))]


def vocabulary(tokens, kinds):
    return [entry("tokenizer.ggml.model", 8, text("gpt2")), entry("tokenizer.ggml.pre", 8, text("smollm")),
            array("tokenizer.ggml.tokens", 8, [text(token) for token in tokens]),
            array("tokenizer.ggml.token_type", 5, [struct.pack("<i", kind) for kind in kinds]),
            array("tokenizer.ggml.merges", 8, [text("h e")])]


WORDS = vocabulary(["\u0120", "h", "e", "he", "<|im_start|>", "s"], [1, 1, 1, 1, 3, 1])
WEIGHTS = [("token_embd.weight", 32, 6), ("output_norm.weight", 32, 1), ("blk.0.attn_norm.weight", 32, 1),
           ("blk.0.ffn_norm.weight", 32, 1), ("blk.0.attn_q.weight", 32, 32), ("blk.0.attn_k.weight", 32, 16),
           ("blk.0.attn_v.weight", 32, 16), ("blk.0.attn_output.weight", 32, 32), ("blk.0.ffn_gate.weight", 32, 32),
           ("blk.0.ffn_up.weight", 32, 32), ("blk.0.ffn_down.weight", 32, 32)]
ROPE = "rope.dimension_count"
write("readers", "model", gguf(sizes() + WORDS, WEIGHTS))
write("readers", "tokenizer_alone", gguf(WORDS, []))
write("readers", "sizes_without_tensors", gguf(sizes(), []))
write("readers", "rotates_four_billion_dimensions", gguf(sizes(**{ROPE: 2**32 - 2}) + WORDS, WEIGHTS))
write("readers", "context_of_four_billion", gguf(sizes(context_length=2**32 - 1) + WORDS, WEIGHTS))
write("readers", "ffn_of_four_billion", gguf(sizes(feed_forward_length=2**32 - 8) + WORDS, WEIGHTS))
write("readers", "sixty_five_heads_a_group", gguf(sizes(**{"attention.head_count": 65}) + WORDS, WEIGHTS))

# Head tables, token ids ----------------------------------------------------------------------------------------------------
write("head_table", "two_layers", b"kvc head table 1\nlayers 2, kv_heads 3 # of a small model\nlayer 0: 0 0 1\nlayer 1: 1 0 0\n")
write("head_table", "one_head", b"kvc head table 1\nlayers 1, kv_heads 1\nlayer 0: 1\n")
write("head_table", "too_large", b"kvc head table 1\nlayers 4294967295, kv_heads 4294967295\nlayer 0: 1\n")
write("compare_files", "deep", b"\0" + b"[" * 300 + b"]" * 300)
write("compare_files", "windows", b'\0{"windows": [{"ids": [1, 2, 3, 4, 5, 6, 7]}, {"ids": [9, 8, 7, 6, 5, 4]}]}')
write("compare_files", "no_windows", b"\0[]")
write("compare_files", "samples", b'\1{"samples": [{"context_ids": [1, 2], "question_ids": [3], "answer_ids": [4, 5]}]}')
write("compare_files", "questions", b'\1[{"context_ids": [1, 2], "questions": [{"question_ids": [3], "answer_ids": [4], "depth": 0.5}]}]')
write("compare_files", "no_samples", b"\1[]")
figures = ["nll", "perplexity_ratio", "kl", "kl_first_quarter", "kl_last_quarter", "top1", "passkey"]
result = {"policy": "h2o", "keep": 0.5, "bytes": 9, "bytes_error": None, "dense_bytes": 36, "kept_fraction": 0.5,
          "kept_fraction_error": 0, "passkeys_found": 1, "passkeys_asked": 2, "probed": True, "act_seconds": 1, "act_peak_bytes": None,
          "attend_us": 2, "token_ms": None, "passkeys_by_depth": [{"depth": 0.5, "found": 1, "asked": 2}],
          "kept_columns": 2, "kept_pixels": "0f10"}
result |= {f"bytes_{part}": 1 for part in ["dense_rows", "codes", "scales", "metadata", "slack"]}
result |= {name: 0.5 for name in figures} | {name + "_error": 0.1 for name in figures}
report = {"model": "m", "lengths": [{"prompt": 4, "prompt_seconds": 1, "repeat_seconds": None, "full": result, "results": [result]}],
          "protocol": {"texts": ["t"], "tuning": False, "windows": 1, "offset": 0, "stride": 1, "decode": 4, "passkey_prompts": 1,
                       "needles": 2, "dense": "f16", "prompt_only": False, "fast": False, "threads": 2, "machine": "", "commands": ["c"]}}
write("compare_files", "report", b"\2" + json.dumps(report).encode())
write("compare_files", "numbers", b'\0[{"ids": [1, 2, -2.5e3, 4294967296, 18446744073709551615, null]}]')

# Policies -------------------------------------------------------------------------------------------------------------
POLICIES = {
    "full": "full:bits=4,group=16", "ggml": "full:type=q4_0", "kivi": "kivi:key_bits=4,value_bits=2,group=16,residual=16",
    "streaming": "streaming_llm:budget=30,sinks=2,positions=in_cache | kivi:group=16,residual=32",
    "h2o": "h2o:keep=0.3,recent=8,normalize | quest:tokens=24,page=8,dense_layers=0",
    "snapkv": "snapkv:budget=30,window=8,kernel=7,pooling=max,order=after_pooling,reduce=max",
    "knorm": "knorm:budget=30,pyramid=4 | external_scores:budget=20", "mini_cache": "mini_cache:start=0 | kivi:group=16,residual=16",
    "razor": "razor_attention:heads=none,budget=30,compensation=none", "ada": "ada_kv:base=snapkv,budget=30,window=8,safeguard=minimum",
    "pairs_that_wrap": "mini_cache:pairs=18446744073709551615-0", "page_that_overflows": "quest:page=18446744073709551615",
}
for number, (name, policy) in enumerate(POLICIES.items()):
    write("policy", name, bytes([number % 3, 60]) + policy.encode())

# Calls of a cache -----------------------------------------------------------------------------------------------------
# Two parts of a prompt and its end, tokens, drafts, a fork, truncation, a context shift, and once everything else.
CALLS = [0, 30, 0, 7, 1, 39] + [2, 3, 4, 5] * 5 + [7, 3, 0, 2, 7, 1, 2, 12, 2, 3, 13, 2, 8, 5, 2, 6, 3, 9, 2, 10, 4, 2, 11, 14, 3, 2, 16, 10, 6, 17, 16, 0, 14, 2, 3]
END = [15, 1, 20, 2, 3]
for policy in range(0, 46, 3):
    write("cache", "policy_%d" % policy, bytes([policy, policy % 3] + CALLS + [2] * 70 + [1, 20, 2, 2] + END))

# Damaged sessions -----------------------------------------------------------------------------------------------------
# Whole; a bit flipped, a number replaced and one that is a little off, in every section; sections of another policy's session,
# in another order, of another kind, gone; an end that comes too early.
CHANGES = [[], [0, 1, 0, 0, 40, 0, 3], [2, 1, 0, 0, 9, 2, 8, 3], [5, 1, 1, 1, 200, 3, 4], [7, 3, 1, 2, 17, 5, 31], [11, 1, 2, 1],
           [12, 1, 3], [13, 2, 0, 2], [14, 2], [15, 0, 8, 0, 0]]
for policy in range(20):
    write("session", "whole_%d" % policy, bytes([policy, policy % 3, 0]))
    write("session", "damaged_%d" % policy, bytes([policy, (policy + 1) % 3, policy // 2] + CHANGES[policy % len(CHANGES)]))
