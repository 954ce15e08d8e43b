#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "support/temporary_file.hpp"

/// Writes GGUF bytes for tests, field by field, so that a test can also write them wrong.
class GGUFWriter {
 public:
  void add_text(const std::string& key, const std::string& value) {
    begin_entry(key, 8);
    put_text(metadata_, value);
  }
  void add_u32(const std::string& key, std::uint32_t value) {
    begin_entry(key, 4);
    put(metadata_, value);
  }
  void add_f32(const std::string& key, float value) {
    begin_entry(key, 6);
    put(metadata_, value);
  }
  void add_texts(const std::string& key, const std::vector<std::string>& values) {
    begin_array(key, 8, values.size());
    for (const auto& value : values) put_text(metadata_, value);
  }
  void add_i32s(const std::string& key, const std::vector<std::int32_t>& values) {
    begin_array(key, 5, values.size());
    for (const auto value : values) put(metadata_, value);
  }
  void add_f32_tensor(const std::string& name, const std::vector<std::uint64_t>& dims,
                      const std::vector<float>& values) {
    while (data_.size() % 32 != 0) data_.push_back('\0');
    list_f32_tensor(name, dims, data_.size());
    data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  }
  /// A directory entry alone, for data that another tensor has already put at `offset`.
  void list_f32_tensor(const std::string& name, const std::vector<std::uint64_t>& dims, std::uint64_t offset) {
    put_text(directory_, name);
    put(directory_, static_cast<std::uint32_t>(dims.size()));
    for (const auto dim : dims) put(directory_, dim);
    put(directory_, std::uint32_t{0});
    put(directory_, offset);
    ++tensors_;
  }

  /// The whole file; the arguments let a test lie in the preamble.
  std::string bytes(std::uint32_t version = 3, const std::string& magic = "GGUF") const {
    std::string file = magic;
    put(file, version);
    put(file, tensors_);
    put(file, entries_);
    file += metadata_ + directory_;
    while (file.size() % 32 != 0) file.push_back('\0');
    return file + data_;
  }

  template <class T>
  static void put(std::string& to, T value) {
    to.append(reinterpret_cast<const char*>(&value), sizeof value);
  }

 private:
  static void put_text(std::string& to, const std::string& text) {
    put(to, std::uint64_t{text.size()});
    to += text;
  }
  void begin_entry(const std::string& key, std::uint32_t type) {
    put_text(metadata_, key);
    put(metadata_, type);
    ++entries_;
  }
  void begin_array(const std::string& key, std::uint32_t type, std::size_t count) {
    begin_entry(key, 9);
    put(metadata_, type);
    put(metadata_, std::uint64_t{count});
  }

  std::string metadata_, directory_, data_;
  std::uint64_t tensors_ = 0, entries_ = 0;
};

/// The metadata of a llama model of 2 layers, 4 query heads over 2 KV heads of 8, hidden 32, ffn 64, context 64, with a
/// vocabulary of the 95 printable ASCII characters and "he".
inline GGUFWriter tiny_model_metadata() {
  GGUFWriter writer;
  writer.add_text("general.architecture", "llama");
  writer.add_u32("llama.block_count", 2);
  writer.add_u32("llama.embedding_length", 32);
  writer.add_u32("llama.feed_forward_length", 64);
  writer.add_u32("llama.context_length", 64);
  writer.add_u32("llama.attention.head_count", 4);
  writer.add_u32("llama.attention.head_count_kv", 2);
  writer.add_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  writer.add_f32("llama.rope.freq_base", 10000.0f);
  writer.add_text("tokenizer.ggml.model", "gpt2");
  writer.add_text("tokenizer.ggml.pre", "smollm");
  std::vector<std::string> tokens = {"\xC4\xA0"};  // U+0120 stands for a blank
  for (char character = '!'; character <= '~'; ++character) tokens.push_back(std::string(1, character));
  tokens.push_back("he");
  writer.add_texts("tokenizer.ggml.tokens", tokens);
  writer.add_i32s("tokenizer.ggml.token_type", std::vector<std::int32_t>(tokens.size(), 1));
  writer.add_texts("tokenizer.ggml.merges", {"h e"});
  return writer;
}

/// Lets a test change a tensor's values before they are written.
using ChangeTensor = std::function<void(const std::string& name, std::vector<float>& values)>;

/// That model with random weights.
inline GGUFWriter tiny_model(const ChangeTensor& change = {}) {
  GGUFWriter writer = tiny_model_metadata();
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0.0f, 0.2f);
  auto add = [&](const std::string& name, std::uint64_t columns, std::uint64_t rows) {
    std::vector<float> values(columns * rows);
    for (float& value : values) value = (rows == 1 ? 1.0f : 0.0f) + normal(random);
    if (change) change(name, values);
    writer.add_f32_tensor(
        name, rows == 1 ? std::vector<std::uint64_t>{columns} : std::vector<std::uint64_t>{columns, rows}, values);
  };
  add("token_embd.weight", 32, 96);
  add("output_norm.weight", 32, 1);
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    add(layer + "attn_norm.weight", 32, 1);
    add(layer + "ffn_norm.weight", 32, 1);
    add(layer + "attn_q.weight", 32, 32);
    add(layer + "attn_k.weight", 32, 16);
    add(layer + "attn_v.weight", 32, 16);
    add(layer + "attn_output.weight", 32, 32);
    add(layer + "ffn_gate.weight", 32, 64);
    add(layer + "ffn_up.weight", 32, 64);
    add(layer + "ffn_down.weight", 64, 32);
  }
  return writer;
}
