#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "config.hpp"
#include "gguf.hpp"
#include "kvc/executor.hpp"
#include "kvc/shape.hpp"
#include "kvc/views.hpp"
#include "matmul.hpp"
#include "tokenizer.hpp"
#include "weight_memory.hpp"

namespace engine {

/// One layer's attention, done by whoever keeps the cache: it gets the rows' queries, keys and values (rotary applied)
/// with their positions and fills `out`, [tokens, query_heads * head_dim].
using Attention = kvc::FunctionRef<void(std::size_t layer, const kvc::Tokens& tokens, kvc::Rows<float> out)>;

/// Memory of a forward pass. It grows to the longest pass once and is then reused. Passes that run at the same time need
/// one each.
class Workspace {
 public:
  /// The residual stream after the last forward pass, [tokens, hidden], before the final norm.
  kvc::ConstRows hidden() const { return hidden_; }

 private:
  friend class Model;
  void reserve(const Config& config, std::size_t tokens);

  std::vector<float> memory_;
  kvc::Rows<float> hidden_, q_, k_, v_, attended_;  ///< one row per token of the pass
  kvc::Rows<float> normed_, gate_, up_;             ///< one row per token of a row block
  std::vector<float> sines_, cosines_;              ///< [tokens, rotated pairs]
};

/// A llama-architecture language model with the weights of a GGUF file, kept quantized. It keeps no sequence: caches
/// are the caller's. Once it is loaded it does not need the file any more.
class Model {
 public:
  /// Throws kvc::Error naming what the file lacks or what is wrong with it. `executor` must outlive the model.
  static Model load(const std::string& path, kvc::Executor& executor, Arithmetic arithmetic = Arithmetic::f32);

  Model(Model&&) = default;
  Model& operator=(Model&&) = delete;  // would free the weights' memory before the weights

  const Config& config() const { return config_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  kvc::Executor& executor() const { return *executor_; }
  /// What a cache for this model must be made with, the rotary table included.
  kvc::CacheShape cache_shape() const;

  /// Runs all layers over `tokens`, one row each. Only `attention` relates the rows to each other: they may be one
  /// sequence, or tokens of several.
  /// `positions` has one entry per token. Afterwards `logits`, [0, 1 or all tokens, vocabulary], holds the logits after
  /// no, the last, or every token. Throws kvc::Error (invalid_argument) for an id outside the vocabulary, a position
  /// outside the model's context, or another number of rows; (non_finite) if a logit is not a finite number.
  void forward(std::span<const int> tokens, std::span<const kvc::Position> positions, Attention attention,
               kvc::Rows<float> logits, Workspace& workspace) const;

  /// Logits of rows of Workspace::hidden(), for those who want them piece by piece: [rows, hidden] to
  /// [rows, vocabulary].
  void head(kvc::ConstRows hidden, kvc::Rows<float> logits) const;

 private:
  struct Layer {
    std::vector<float> attention_norm, ffn_norm;
    WeightMatrix q, k, v, attention_out, gate, up, down;
  };

  Model(const GGUFFile& file, kvc::Executor& executor, Arithmetic arithmetic);
  Tensor copy_of(const Tensor& tensor) const;
  Layer load_layer(const GGUFFile& file, std::size_t index) const;
  void check_input(std::span<const int> tokens, std::span<const kvc::Position> positions,
                   kvc::Rows<float> logits) const;
  void embed(std::span<const int> tokens, kvc::Rows<float> hidden) const;
  void prepare_rotary(std::span<const kvc::Position> positions, Workspace& workspace) const;
  void project(const Layer& layer, Workspace& workspace) const;
  void finish_layer(const Layer& layer, Workspace& workspace) const;

  Config config_;
  Tokenizer tokenizer_;
  kvc::Executor* executor_;
  Arithmetic arithmetic_;
  std::unique_ptr<WeightMemory> memory_ = std::make_unique<WeightMemory>();
  Tensor embedding_;
  std::vector<Layer> layers_;
  std::vector<float> output_norm_;
  std::unique_ptr<WeightMatrix> output_;
};

}  // namespace engine
