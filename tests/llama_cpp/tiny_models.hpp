#pragma once
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "engine/gguf_writer.hpp"

/// Writes models of other architectures, as tiny as tiny_model() of the llama architecture and with the same
/// vocabulary.
class TinyModelWriter {
 public:
  explicit TinyModelWriter(const std::string& architecture, std::uint32_t layers = 2) : name_(architecture + ".") {
    writer.add_text("general.architecture", architecture);
    writer.add_u32(name_ + "block_count", layers);
    writer.add_u32(name_ + "embedding_length", 32);
    writer.add_u32(name_ + "feed_forward_length", 64);
    writer.add_u32(name_ + "context_length", 512);
    writer.add_u32(name_ + "attention.head_count", 4);
    writer.add_f32(name_ + "attention.layer_norm_rms_epsilon", 1e-5f);
    writer.add_f32(name_ + "attention.layer_norm_epsilon", 1e-5f);
    writer.add_text("tokenizer.ggml.model", "gpt2");
    writer.add_text("tokenizer.ggml.pre", "smollm");
    std::vector<std::string> tokens;
    for (int token = 0; token < 96; ++token) tokens.push_back("t" + std::to_string(token));
    writer.add_texts("tokenizer.ggml.tokens", tokens);
    writer.add_i32s("tokenizer.ggml.token_type", std::vector<std::int32_t>(tokens.size(), 1));
    writer.add_texts("tokenizer.ggml.merges", {"t 1"});
    add("token_embd", 32, 96);
    add("output_norm", 32, 1);
  }
  const std::string& name() const { return name_; }

  /// Random weights: of a norm if there is one row.
  void add(const std::string& tensor, std::uint64_t columns, std::uint64_t rows) {
    std::vector<float> values(columns * rows);
    for (float& value : values) value = (rows == 1 ? 1.0f : 0.0f) + normal_(random_);
    writer.add_f32_tensor(tensor + ".weight",
                          rows == 1 ? std::vector<std::uint64_t>{columns} : std::vector<std::uint64_t>{columns, rows},
                          values);
  }

  /// The matrices of separate queries, keys and values; `kv_width`: of all KV heads.
  void add_attention(const std::string& layer, std::uint64_t kv_width) {
    add(layer + "attn_q", 32, 32);
    add(layer + "attn_k", 32, kv_width);
    add(layer + "attn_v", 32, kv_width);
    add(layer + "attn_output", 32, 32);
  }
  void add_feed_forward(const std::string& layer, bool gated = true) {
    if (gated) add(layer + "ffn_gate", 32, 64);
    add(layer + "ffn_up", 32, 64);
    add(layer + "ffn_down", 64, 32);
  }

  GGUFWriter writer;

 private:
  std::string name_;
  std::mt19937 random_{11};
  std::normal_distribution<float> normal_{0.0f, 0.2f};
};

/// Gemma 2: of three layers the first and the last have a window of `window` tokens; logits are capped.
inline std::string model_with_windows(std::uint32_t window) {
  TinyModelWriter model("gemma2", 3);
  model.writer.add_u32(model.name() + "attention.head_count_kv", 2);
  model.writer.add_u32(model.name() + "attention.key_length", 8);
  model.writer.add_u32(model.name() + "attention.value_length", 8);
  model.writer.add_u32(model.name() + "attention.sliding_window", window);
  model.writer.add_f32(model.name() + "attn_logit_softcapping", 2.0f);
  model.writer.add_f32(model.name() + "final_logit_softcapping", 30.0f);
  for (const std::string layer : {"blk.0.", "blk.1.", "blk.2."}) {
    for (const char* norm : {"attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"})
      model.add(layer + norm, 32, 1);
    model.add_attention(layer, 16);
    model.add_feed_forward(layer);
  }
  return model.writer.bytes();
}

/// MPT: a bias that grows with the distance, no rotary embedding.
inline std::string model_with_alibi() {
  TinyModelWriter model("mpt");
  model.writer.add_f32(model.name() + "attention.max_alibi_bias", 8.0f);
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    model.add(layer + "attn_norm", 32, 1);
    model.add(layer + "ffn_norm", 32, 1);
    model.add(layer + "attn_qkv", 32, 96);
    model.add(layer + "attn_output", 32, 32);
    model.add_feed_forward(layer, false);
  }
  return model.writer.bytes();
}

/// Deci (layers that differ): two KV heads in the first layer and one in the second.
inline std::string model_with_uneven_layers() {
  TinyModelWriter model("deci");
  model.writer.add_i32s(model.name() + "attention.head_count_kv", {2, 1});
  for (const int layer : {0, 1}) {
    const std::string name = "blk." + std::to_string(layer) + ".";
    model.add(name + "attn_norm", 32, 1);
    model.add(name + "ffn_norm", 32, 1);
    model.add_attention(name, layer == 0 ? 16 : 8);
    model.add_feed_forward(name);
  }
  return model.writer.bytes();
}
