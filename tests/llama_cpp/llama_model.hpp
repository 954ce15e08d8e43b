#pragma once
#include <llama.h>

#include <cmath>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvc/llama.hpp"

/// A model that llama.cpp has loaded. Its messages are not shown: many tests fail on purpose.
class LlamaModel {
 public:
  explicit LlamaModel(const std::string& path) {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_model_params parameters = llama_model_default_params();
    model_.reset(llama_model_load_from_file(path.c_str(), parameters));
    if (!model_) throw std::runtime_error("llama.cpp cannot load " + path);
  }
  llama_model* get() const { return model_.get(); }
  std::size_t vocabulary() const {
    return static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_.get())));
  }

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
  };
  std::unique_ptr<llama_model, Free> model_;
};

struct FreeContext {
  void operator()(llama_context* context) const { llama_free(context); }
};
using Context = std::unique_ptr<llama_context, FreeContext>;

/// Parameters for sequences of `tokens` tokens, on one thread.
inline llama_context_params parameters_for(std::uint32_t tokens, std::uint32_t sequences = 1) {
  llama_context_params parameters = llama_context_default_params();
  parameters.n_ctx = tokens * sequences;
  parameters.n_batch = tokens * sequences;
  parameters.n_ubatch = tokens * sequences;
  parameters.n_seq_max = sequences;
  parameters.kv_unified = false;
  parameters.n_threads = parameters.n_threads_batch = 1;
  return parameters;
}

/// llama.cpp's own cache and attention, in f32.
inline Context exact_context(const LlamaModel& model, llama_context_params parameters) {
  parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  parameters.type_k = parameters.type_v = GGML_TYPE_F32;
  return Context(llama_init_from_model(model.get(), parameters));
}

/// A context with its LlamaCache. The context goes first.
struct Served {
  Served(const LlamaModel& model, llama_context_params parameters, const std::string& policy,
         kvc::CacheOptions options = {.dense = {kvc::Scalar::f32}})
      : cache(kvc::AnyPolicy::parse(policy), options) {
    cache.attach(parameters);
    context.reset(llama_init_from_model(model.get(), parameters));
    cache.start(context.get());
  }
  kvc::LlamaCache cache;
  Context context;
};

/// A batch whose tokens are added one by one.
class Batch {
 public:
  void add(llama_token token, llama_pos position, llama_seq_id sequence = 0, bool logits = true) {
    tokens_.push_back(token);
    positions_.push_back(position);
    ids_.push_back(sequence);
    logits_.push_back(logits);
  }
  llama_batch get() {
    counts_.assign(tokens_.size(), 1);
    pointers_.clear();
    for (llama_seq_id& id : ids_) pointers_.push_back(&id);
    pointers_.push_back(nullptr);
    return {.n_tokens = static_cast<std::int32_t>(tokens_.size()),
            .token = tokens_.data(),
            .embd = nullptr,
            .pos = positions_.data(),
            .n_seq_id = counts_.data(),
            .seq_id = pointers_.data(),
            .logits = logits_.data()};
  }

 private:
  std::vector<llama_token> tokens_;
  std::vector<llama_pos> positions_;
  std::vector<llama_seq_id> ids_;
  std::vector<std::int32_t> counts_;
  std::vector<llama_seq_id*> pointers_;
  std::vector<std::int8_t> logits_;
};

/// The logits of the last call's token `index` of the batch.
inline std::vector<float> logits_of(llama_context* context, const LlamaModel& model, int index) {
  const float* logits = llama_get_logits_ith(context, index);
  if (!logits) throw std::runtime_error("no logits for token " + std::to_string(index));
  return {logits, logits + model.vocabulary()};
}

inline float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::fmax(largest, std::fabs(a[i] - b[i]));
  return a.size() == b.size() ? largest : INFINITY;
}
