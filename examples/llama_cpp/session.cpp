#include "session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace llama_programs {
namespace {

llama_context_params parameters_for(const Size& size, std::size_t context) {
  llama_context_params parameters = llama_context_default_params();
  parameters.n_ctx = static_cast<std::uint32_t>(context);
  parameters.n_batch = parameters.n_ubatch = static_cast<std::uint32_t>(size.batch);
  parameters.n_threads = parameters.n_threads_batch = size.threads;
  return parameters;
}

/// Of llama.cpp's messages only errors are shown.
void show_errors_only() {
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
}

}  // namespace

Model::Model(const std::string& path) {
  show_errors_only();
  llama_backend_init();
  llama_model_params parameters = llama_model_default_params();
  parameters.n_gpu_layers = 0;
  model_.reset(llama_model_load_from_file(path.c_str(), parameters));
  if (!model_) kvc::fail(kvc::ErrorCode::bad_file, "llama.cpp cannot load the model " + path);
}

std::size_t Model::vocabulary() const {
  return static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(get())));
}

std::vector<llama_token> Model::tokens_of(const std::string& text, bool chat_words) const {
  const llama_vocab* vocabulary_of = llama_model_get_vocab(get());
  std::vector<llama_token> tokens(text.size() + 2);
  if (llama_vocab_type(vocabulary_of) == LLAMA_VOCAB_TYPE_NONE) {
    tokens.resize(text.size() / 4);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<llama_token>((i * 7919 + i / 13) % vocabulary());
    return tokens;
  }
  const int count = llama_tokenize(vocabulary_of, text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
                                   static_cast<std::int32_t>(tokens.size()), chat_words, chat_words);
  if (count < 0) kvc::fail(kvc::ErrorCode::invalid_argument, "llama.cpp cannot tokenize the text");
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

std::string Model::text_of(llama_token token) const {
  std::array<char, 256> piece{};
  const int size = llama_token_to_piece(llama_model_get_vocab(get()), token, piece.data(),
                                        static_cast<std::int32_t>(piece.size()), 0, true);
  return {piece.data(), static_cast<std::size_t>(std::max(0, size))};
}

bool Model::ends_text(llama_token token) const {
  return llama_vocab_is_eog(llama_model_get_vocab(get()), token);
}

bool Model::has_other_memory() const {
  return llama_model_n_swa(get()) > 0 || llama_model_is_recurrent(get()) || llama_model_is_hybrid(get());
}

void dequantize(const std::string& from, const std::string& to) {
  show_errors_only();
  llama_model_quantize_params parameters = llama_model_quantize_default_params();
  parameters.ftype = LLAMA_FTYPE_ALL_F32;
  parameters.allow_requantize = true;
  if (llama_model_quantize(from.c_str(), to.c_str(), &parameters) != 0)
    kvc::fail(kvc::ErrorCode::bad_file, "llama.cpp cannot write the model with f32 weights to " + to);
}

void Session::open(const llama_context_params& parameters) {
  context_.reset(llama_init_from_model(model_->get(), parameters));
  if (!context_) kvc::fail(kvc::ErrorCode::incompatible, "llama.cpp cannot make a context for this model");
}

void Session::feed(std::span<const llama_token> tokens, bool prompt_goes_on) {
  const std::size_t most = llama_n_batch(context_.get());
  for (std::size_t begin = 0; begin < tokens.size(); begin += most) {
    const std::size_t count = std::min(most, tokens.size() - begin);
    std::vector<llama_token> part(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                  tokens.begin() + static_cast<std::ptrdiff_t>(begin + count));
    const bool last = begin + count == tokens.size();
    std::vector<std::int8_t> logits;
    std::vector<llama_pos> positions;
    for (std::size_t i = 0; i < count; ++i) {
      logits.push_back(last && i + 1 == count);
      positions.push_back(static_cast<llama_pos>(fed_ + i));
    }
    feed_batch({.n_tokens = static_cast<std::int32_t>(count),
                .token = part.data(),
                .embd = nullptr,
                .pos = positions.data(),
                .n_seq_id = nullptr,
                .seq_id = nullptr,
                .logits = logits.data()},
               !last || prompt_goes_on ? kvc::LlamaFeed::prompt_part : kvc::LlamaFeed::automatic);
    fed_ += count;
  }
}

std::span<const float> Session::logits() const {
  return {llama_get_logits_ith(context_.get(), -1), model_->vocabulary()};
}

ServedSession::ServedSession(const Model& model, const Size& size, const kvc::AnyPolicy& policy,
                             const kvc::CacheOptions& options)
    : Session(model), cache_(policy, options) {
  llama_context_params parameters = parameters_for(size, model.has_other_memory() ? size.tokens : size.batch);
  cache_.attach(parameters);
  open(parameters);
  cache_.start(context_.get());
}

void ServedSession::feed_batch(llama_batch batch, kvc::LlamaFeed feed) {
  if (const int result = cache_.decode(batch, feed))
    kvc::fail(kvc::ErrorCode::incompatible, fmt::format("llama_decode() returned {}", result));
}

evaluation::Footprint ServedSession::footprint() const {
  return evaluation::measure(*cache_.cache(0));
}

OwnSession::OwnSession(const Model& model, const Size& size, ggml_type type, bool flash) : Session(model) {
  llama_context_params parameters = parameters_for(size, size.tokens);
  parameters.type_k = parameters.type_v = type;
  parameters.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  open(parameters);
}

void OwnSession::feed_batch(llama_batch batch, kvc::LlamaFeed) {
  if (const int result = llama_decode(context_.get(), batch))
    kvc::fail(kvc::ErrorCode::incompatible, fmt::format("llama_decode() returned {}", result));
}

/// What the state of the sequence takes: llama.cpp saves its cells as they lie, beside which little is written.
evaluation::Footprint OwnSession::footprint() const {
  evaluation::Footprint footprint;
  footprint.bytes = static_cast<double>(llama_state_seq_get_size(context_.get(), 0));
  footprint.kept = 1;
  return footprint;
}

}  // namespace llama_programs
