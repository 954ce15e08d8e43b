#pragma once
/// The side of LlamaCache that an engine calls.
#include "kvc/llama.hpp"

namespace kvc::inline KVC_ABI {

inline void LlamaCache::attach(llama_context_params& parameters) {
  const auto refuse = [](std::initializer_list<Fragment> reason) {
    fail(ErrorCode::incompatible, {"LlamaCache::attach: ", joined(reason)});
  };
  if (parameters.cb_eval) refuse({"cb_eval is taken by another callback"});
  if (parameters.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED)
    refuse(
        {"flash_attn_type is disabled: the node of flash attention is what kvc replaces (it computes in f32 itself)"});
  for (const ggml_type type : {parameters.type_k, parameters.type_v})
    if (type != GGML_TYPE_F16 && type != GGML_TYPE_F32 && type != GGML_TYPE_BF16)
      refuse({"type_k or type_v is ", ggml_type_name(type),
              ": llama.cpp would rotate what it stores as such; leave them at f16, "
              "the policy says how rows are stored"});
  if (parameters.kv_unified && parameters.n_seq_max > 1)
    refuse({"kv_unified mixes the rows of ", parameters.n_seq_max, " sequences; leave it off"});
  parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  parameters.type_k = parameters.type_v = GGML_TYPE_F16;
  parameters.offload_kqv = false;
  parameters.swa_full = false;  // layers with a window are told by their smaller cache
  users_abort_ = parameters.abort_callback;
  users_abort_data_ = parameters.abort_callback_data;
  parameters.abort_callback = on_abort;
  parameters.abort_callback_data = this;
  parameters.cb_eval = on_node;
  parameters.cb_eval_user_data = this;
}

inline void LlamaCache::start(llama_context* context) {
  if (mode_ != Mode::detached) fail(ErrorCode::invalid_argument, "LlamaCache::start: it has been started before");
  if (!context) fail(ErrorCode::invalid_argument, "LlamaCache::start: context is null: llama.cpp could not make it");
  context_ = context;
  check_context();
  learn();
  make_calls();
  sequences_.resize(llama_n_seq_max(context));
  stored_.resize(shape_.layers);
  sequences_[0].cache = std::make_unique<Cache>(shape_, policy_, options_);  // a policy that cannot work is refused now
  llama_perf_context_reset(context);
  mode_ = Mode::resting;
}

inline void LlamaCache::check_context() const {
  const llama_model* model = llama_get_model(context_);
  const auto refuse = [](const char* reason) {
    fail(ErrorCode::incompatible, {"LlamaCache: this model cannot be served: ", reason});
  };
  if (llama_model_has_encoder(model)) refuse("it has an encoder");
  if (!llama_get_memory(context_)) refuse("it has no KV cache");
  for (const auto& stage : policy_.stages()) {
    if (needs_probe(*stage))
      fail(ErrorCode::missing_feed, "LlamaCache: the policy learns from probes, which llama.cpp cannot be asked for");
    if (stage->needs().external_scores)
      fail(ErrorCode::missing_feed, "LlamaCache: the policy needs scores from outside, which llama.cpp does not have");
  }
}

/// Runs one token, of which llama.cpp computes everything, and looks at its graph.
inline void LlamaCache::learn() {
  const llama_model* model = llama_get_model(context_);
  const llama_token bos = llama_vocab_bos(llama_model_get_vocab(model));
  llama_token token = bos == LLAMA_TOKEN_NULL ? 0 : bos;
  survey_ = {};
  failed_ = false;
  mode_ = Mode::learning;
  const int result = llama_decode(context_, llama_batch_get_one(&token, 1));
  mode_ = Mode::detached;
  llama_memory_clear(llama_get_memory(context_), true);
  if (failed_) std::rethrow_exception(std::exchange(failure_, {}));
  if (result != 0)
    fail(ErrorCode::incompatible, {"LlamaCache::start: llama_decode() returned ", result, " for one token"});

  char architecture[16] = {};
  llama_model_meta_val_str(model, "general.architecture", architecture, sizeof architecture);
  const std::vector<llama::AttentionNode> served =
      survey_.served({.size = static_cast<Position>(std::max(0, llama_model_n_swa(model))),
                      .cells = static_cast<std::int64_t>(llama_n_ctx_seq(context_)),
                      .sliding = std::string_view(architecture) != "llama4"});
  if (llama_n_seq_max(context_) > 1 && served.front().keys->ne[2] == 1)
    fail(ErrorCode::incompatible, {"LlamaCache: the context mixes the rows of its ", llama_n_seq_max(context_),
                                   " sequences (kv_unified); let attach() see its parameters"});
  shape_ = llama::Survey::shape_of(served);
  shape_.rotary = survey_.rotary(served);
  shape_.validate();
  shared_ = survey_.has_other_layers(served) || llama_model_is_recurrent(model) || llama_model_is_hybrid(model);
  stores_.clear();
  for (std::size_t layer = 0; layer < served.size(); ++layer) {
    stores_[served[layer].keys] = {layer, 0};
    stores_[served[layer].values] = {layer, 1};
  }
}

/// Nodes that call this object. ggml makes them, for what stands in their parameters is its own affair.
inline void LlamaCache::make_calls() {
  ggml_context* maker = ggml_init({.mem_size = 4 * ggml_tensor_overhead(), .mem_buffer = nullptr, .no_alloc = true});
  if (!maker) fail(ErrorCode::out_of_memory, "LlamaCache::start: ggml_init() was refused memory");
  store_call_ = *ggml_custom_4d(maker, GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, on_store, 1, this);
  attend_call_ = *ggml_custom_4d(maker, GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, on_attend, GGML_N_TASKS_MAX, this);
  ggml_free(maker);
}

inline int LlamaCache::decode(llama_batch batch, LlamaFeed feed) {
  if (mode_ != Mode::resting) fail(ErrorCode::invalid_argument, "LlamaCache::decode: call start() first");
  const std::uint32_t most = llama_n_batch(context_);
  if (batch.n_tokens < 1 || static_cast<std::uint32_t>(batch.n_tokens) > most)
    fail(ErrorCode::invalid_argument, {"LlamaCache::decode: the batch has ", batch.n_tokens,
                                       " tokens, the context takes 1 to ", most, " (n_batch)"});
  if (batch.embd && llama_model_rope_type(llama_get_model(context_)) > LLAMA_ROPE_TYPE_NEOX)
    fail(ErrorCode::incompatible, "LlamaCache::decode: embeddings with positions in several dimensions (M-RoPE)");
  std::vector<Position> next;
  for (const Sequence& sequence : sequences_) next.push_back(sequence.next);
  for (int token = 0; token < batch.n_tokens; ++token)
    check_no_draft(sequence_at(llama::Feeds::sequence_of(batch, token, sequences_.size())), "decode");
  llama::Feeds feeds = llama::Feeds::of(batch, next);
  check_learned_positions(feeds);
  for (std::size_t id = 0; id < sequences_.size(); ++id)
    llama::name_feed(feeds.feeds[id], feed, sequences_[id].prompt_open);
  prepare(std::move(feeds));

  batch.pos = feeds_.positions.data();
  mode_ = Mode::serving;
  const int result = llama_decode(context_, batch);
  mode_ = Mode::resting;
  if (result == 0 && !failed_) guarded([](LlamaCache& cache) { cache.finish(); });
  if (result == 0 && !failed_) return 0;
  const std::string lost = roll_back();
  if (!failed_ && !lost.empty()) error_ = "llama_decode() returned " + std::to_string(result);
  error_ += lost;
  if (failed_) throw_failure();
  return result;
}

/// Throws what was kept, an Error with the whole of error() as its sentence.
inline void LlamaCache::throw_failure() {
#if defined(__cpp_exceptions)
  try {
    std::rethrow_exception(std::exchange(failure_, {}));
  } catch (const Error& failure) {
    throw Error(failure.code(), error_);
  }
#endif
}

inline void LlamaCache::prepare(llama::Feeds feeds) {
  for (std::size_t id = 0; id < sequences_.size(); ++id)
    if (!feeds.feeds[id].positions.empty() && !sequences_[id].cache)
      sequences_[id].cache = std::make_unique<Cache>(shape_, policy_, options_);
  feeds_ = std::move(feeds);
  for (LayerRows& layer : stored_) layer.count[0] = layer.count[1] = 0;
  next_layer_ = 0;
  failed_ = false;
  failure_ = {};
  error_.clear();
}

/// After llama.cpp has computed everything.
inline void LlamaCache::finish() {
  for (std::size_t id = 0; id < sequences_.size(); ++id)
    if (const llama::Feed& feed = feeds_.feeds[id]; feed.done != feed.positions.size())
      fail(ErrorCode::incompatible, {"LlamaCache::decode: only ", feed.done, " of ", feed.positions.size(),
                                     " tokens of sequence ", id, " were attended to"});
  for (std::size_t id = 0; id < sequences_.size(); ++id) {
    const llama::Feed& feed = feeds_.feeds[id];
    if (feed.positions.empty()) continue;
    Sequence& sequence = sequences_[id];
    if (sequence.tokens == 0) sequence.begin = feed.positions.front();
    sequence.next = feed.positions.back() + 1;
    sequence.tokens += feed.positions.size();
    if (feed.draft)
      sequence.drafted = feed.positions.size();
    else
      sequence.prompt_open = feed.prompt && !feed.ends;
  }
  // What llama.cpp keeps for layers that kvc serves is never read.
  if (!shared_) llama_memory_clear(llama_get_memory(context_), false);
}

/// After a call that failed. Returns what to add to its sentence.
inline std::string LlamaCache::roll_back() {
  std::string lost;
  llama_memory_t memory = llama_get_memory(context_);
  if (!shared_) llama_memory_clear(memory, false);
  for (std::size_t index = 0; index < sequences_.size(); ++index) {
    if (feeds_.feeds[index].positions.empty()) continue;
    Sequence& sequence = sequences_[index];
    const auto id = static_cast<llama_seq_id>(index);
    const Position begin = feeds_.feeds[index].positions.front();
    bool same = true;
    if (feeds_.feeds[index].draft)
      sequence.cache->accept(0);
    else
      same = sequence.cache->truncate(begin);
    same = same && (!shared_ || sequence.tokens == 0 || llama_memory_seq_rm(memory, id, begin, -1));
    if (same && sequence.tokens != 0) continue;
    if (sequence.tokens != 0)
      lost += "; sequence " + std::to_string(index) + " is empty now, for what it was could not be restored";
    drop(sequence, id);
  }
  return lost;
}

inline void LlamaCache::drop(Sequence& sequence, llama_seq_id id) {
  if (sequence.cache) sequence.cache->clear();
  if (context_ && shared_) llama_memory_seq_rm(llama_get_memory(context_), id, -1, -1);
  sequence.next = 0;
  sequence.tokens = sequence.drafted = 0;
  sequence.prompt_open = true;
}

inline bool LlamaCache::truncate(llama_seq_id id, Position from) {
  Sequence& sequence = sequence_at(id);
  if (from < 0) fail(ErrorCode::invalid_argument, {"LlamaCache::truncate: position ", from, " is negative"});
  if (!sequence.cache || from >= sequence.next) return true;
  check_no_draft(sequence, "truncate");
  if (from <= sequence.begin) {
    drop(sequence, id);
    return true;
  }
  if (shared_ && !llama_memory_seq_rm(llama_get_memory(context_), id, from, -1))
    fail(ErrorCode::incompatible,
         {"LlamaCache::truncate: llama.cpp's own layers cannot forget the tokens from position ", from,
          " on; clear() the sequence"});
  const bool exact = sequence.cache->truncate(from);
  sequence.next = from;
  sequence.tokens = std::min(sequence.tokens, static_cast<std::size_t>(from - sequence.begin));
  return exact;
}

inline Truncation LlamaCache::can_truncate(llama_seq_id id, Position from) const {
  const Sequence& sequence = sequence_at(id);
  if (!sequence.cache || from >= sequence.next) return Truncation::exact;
  return sequence.cache->can_truncate(from);
}

inline void LlamaCache::accept(llama_seq_id id, std::size_t tokens) {
  Sequence& sequence = sequence_at(id);
  if (tokens > sequence.drafted)
    fail(ErrorCode::invalid_argument,
         {"LlamaCache::accept: ", tokens, " tokens of sequence ", id, ", of which ", sequence.drafted, " are drafted"});
  if (sequence.drafted == 0) return;
  const std::size_t dropped = sequence.drafted - tokens;
  const Position next = sequence.next - static_cast<Position>(dropped);
  sequence.cache->accept(tokens);
  if (shared_ && dropped != 0) llama_memory_seq_rm(llama_get_memory(context_), id, next, -1);
  sequence.next = next;
  sequence.tokens -= dropped;
  sequence.drafted = 0;
}

/// A model that learned a row for every position (GPT-2) has none for those beyond its training, and ggml aborts there. Nothing
/// tells it from a model without any positions, which is then refused such a length too.
inline void LlamaCache::check_learned_positions(const llama::Feeds& feeds) const {
  const llama_model* model = llama_get_model(context_);
  if (llama_model_rope_type(model) != LLAMA_ROPE_TYPE_NONE) return;
  const llama_pos trained = llama_model_n_ctx_train(model);
  for (const llama_pos position : feeds.positions)
    if (position >= trained)
      fail(ErrorCode::invalid_argument, {"LlamaCache::decode: position ", position,
                                         ": the model, which has no rotary embedding, knows ", trained, " positions"});
}

inline void LlamaCache::check_no_draft(const Sequence& sequence, const char* call) {
  if (sequence.drafted != 0)
    fail(ErrorCode::invalid_argument,
         {"LlamaCache::", call, ": ", sequence.drafted, " drafted tokens wait for accept()"});
}

/// What llama.cpp keeps for layers that it serves itself is its own affair.
inline void LlamaCache::check_whole(const char* call) const {
  if (shared_)
    fail(ErrorCode::incompatible,
         {"LlamaCache::", call,
          ": llama.cpp serves some of the model's layers itself, whose memory this class does not know"});
}

inline void LlamaCache::remove(llama_seq_id id, Position first, Position last) {
  Sequence& sequence = sequence_at(id);
  check_whole("remove");
  check_no_draft(sequence, "remove");
  if (!sequence.cache) return;
  if (first <= sequence.begin && last >= sequence.next) return drop(sequence, id);
  sequence.cache->remove(first, last);
  sequence.next = sequence.cache->next_position();
}

inline void LlamaCache::shift(llama_seq_id id, Position first, Position last, std::int64_t delta) {
  Sequence& sequence = sequence_at(id);
  check_whole("shift");
  check_no_draft(sequence, "shift");
  if (!sequence.cache) return;
  sequence.cache->shift(first, last, delta);
  if (first <= sequence.begin) sequence.begin = 0;
  sequence.next = sequence.cache->next_position();
}

inline std::uint64_t LlamaCache::save(llama_seq_id id, ByteSink sink) const {
  const Sequence& sequence = sequence_at(id);
  check_whole("save");
  if (!sequence.cache || sequence.tokens == 0)
    fail(ErrorCode::invalid_argument, {"LlamaCache::save: sequence ", id, " is empty"});
  return kvc::save(*sequence.cache, sink);
}

inline std::uint64_t LlamaCache::load(llama_seq_id id, const SessionSource& source) {
  Sequence& sequence = sequence_at(id);
  if (mode_ != Mode::resting) fail(ErrorCode::invalid_argument, "LlamaCache::load: call start() first");
  check_whole("load");
  auto cache = std::make_unique<Cache>(shape_, policy_, options_);
  const std::uint64_t bytes = kvc::load(*cache, source);
  sequence.cache = std::move(cache);
  sequence.begin = 0;
  sequence.next = sequence.cache->next_position();
  sequence.tokens = static_cast<std::size_t>(sequence.next);
  sequence.drafted = 0;
  sequence.prompt_open = false;
  return bytes;
}

inline void LlamaCache::clear(llama_seq_id id) {
  drop(sequence_at(id), id);
}

inline void LlamaCache::fork(llama_seq_id from, llama_seq_id to) {
  const Sequence& source = sequence_at(from);
  Sequence& copy = sequence_at(to);
  if (from == to) return;
  std::unique_ptr<Cache> cache;
  if (source.cache) cache.reset(new Cache(source.cache->fork()));
  drop(copy, to);
  if (shared_) llama_memory_seq_cp(llama_get_memory(context_), from, to, -1, -1);
  copy.cache = std::move(cache);
  copy.begin = source.begin;
  copy.next = source.next;
  copy.tokens = source.tokens;
  copy.drafted = source.drafted;
  copy.prompt_open = source.prompt_open;
}

}  // namespace kvc::inline KVC_ABI
