#pragma once
#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "evaluation/footprint.hpp"
#include "kvc/llama.hpp"

namespace llama_programs {

/// A model that llama.cpp has loaded, with its tokenizer. Of llama.cpp's messages only errors are shown.
class Model {
 public:
  /// Throws kvc::Error (bad_file) if llama.cpp cannot load the file.
  explicit Model(const std::string& path);

  llama_model* get() const { return model_.get(); }
  std::size_t vocabulary() const;
  /// The tokens of a text. `chat_words`: words like <|im_start|> are the tokens that they name, and a first token is
  /// added where the model wants one. A model without a tokenizer gets made-up tokens, one for every four characters.
  std::vector<llama_token> tokens_of(const std::string& text, bool chat_words) const;
  std::string text_of(llama_token token) const;
  bool ends_text(llama_token token) const;
  /// Whether llama.cpp keeps layers of its own, with windows or states, so that its context must be as long as the
  /// text.
  bool has_other_memory() const;

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
  };
  std::unique_ptr<llama_model, Free> model_;
};

/// Writes the model in file `from` with f32 weights to file `to`. llama.cpp multiplies quantized weights by activations
/// of 8 bits, which makes the smallest differences large. Throws kvc::Error (bad_file) if it cannot.
void dequantize(const std::string& from, const std::string& to);

/// One sequence of a model.
class Session {
 public:
  virtual ~Session() = default;
  /// Feeds tokens and leaves the logits of the last one. `prompt_goes_on`: they are a prompt's, and it has more.
  void feed(std::span<const llama_token> tokens, bool prompt_goes_on = false);
  std::span<const float> logits() const;
  virtual evaluation::Footprint footprint() const = 0;

 protected:
  struct FreeContext {
    void operator()(llama_context* context) const { llama_free(context); }
  };
  explicit Session(const Model& model) : model_(&model) {}
  /// Throws kvc::Error (incompatible) if llama.cpp cannot make it.
  void open(const llama_context_params& parameters);
  /// Feeds one call's tokens.
  virtual void feed_batch(llama_batch batch, kvc::LlamaFeed feed) = 0;

  const Model* model_;
  std::unique_ptr<llama_context, FreeContext> context_;
  std::size_t fed_ = 0;
};

/// How large calls are, and on how many threads they are computed.
struct Size {
  std::size_t tokens = 0;  ///< that the sequence will have
  std::size_t batch = 512;
  int threads = 1;
};

/// A sequence whose cache and attention are kvc's.
class ServedSession final : public Session {
 public:
  /// Throws kvc::Error where kvc cannot serve the model or the policy.
  ServedSession(const Model& model, const Size& size, const kvc::AnyPolicy& policy, const kvc::CacheOptions& options);
  ~ServedSession() override { context_.reset(); }  // before the cache that it calls
  evaluation::Footprint footprint() const override;
  kvc::Stats stats() const { return cache_.stats(); }
  const kvc::CacheShape& shape() const { return cache_.shape(); }

 private:
  void feed_batch(llama_batch batch, kvc::LlamaFeed feed) override;
  kvc::LlamaCache cache_;
};

/// A sequence in llama.cpp's own cache.
class OwnSession final : public Session {
 public:
  /// `flash`: with flash attention, which llama.cpp computes in f16.
  OwnSession(const Model& model, const Size& size, ggml_type type, bool flash);
  evaluation::Footprint footprint() const override;

 private:
  void feed_batch(llama_batch batch, kvc::LlamaFeed feed) override;
};

}  // namespace llama_programs
