#pragma once
/// kvc as the cache and the attention of an unpatched llama.cpp, on its CPU backend. Paid for only by who includes
/// this; needs llama.cpp's headers and library (docs/engines.md says which were tried).
///
///     kvc::LlamaCache cache(kvc::AnyPolicy::parse("snapkv:budget=512 | kivi:bits=4"));
///     llama_context_params parameters = llama_context_default_params();
///     cache.attach(parameters);  // before the context is made
///     llama_context* context = llama_init_from_model(model, parameters);
///     cache.start(context);      // learns the model's shape; refuses what it cannot serve
///     cache.decode(batch);       // instead of llama_decode(context, batch)
#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvc/cache/kv_cache.hpp"
#include "kvc/llama/attention_nodes.hpp"
#include "kvc/llama/feeds.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/session.hpp"
#include "kvc/team_executor.hpp"

namespace kvc::inline KVC_ABI {

/// The caches of all sequences of one llama_context.
///
/// llama.cpp still computes everything but the attention. Of its graph, the nodes that would store keys and values and
/// those that would attend to them are turned into calls of this class, which run on ggml's own threads (TeamExecutor):
/// there are no others, and llama.cpp's n_threads and n_threads_batch hold for the cache too. Where kvc serves every
/// layer, llama.cpp's own cache is emptied after each call: n_ctx then limits only what one call may bring, not how
/// long a sequence becomes.
///
/// A sequence of llama.cpp is fed, cut, copied and forgotten through this class alone, never through llama_decode() or
/// llama_memory_*(). A llama_decode() of the caller's own is refused: it returns 2, and error() says why.
///
/// The context must not decode after this object is gone. One thread at a time.
class LlamaCache {
 public:
  using Cache = KVCache<AnyPolicy>;

  /// `options.executor` is best left empty: null means ggml's threads.
  explicit LlamaCache(AnyPolicy policy, const CacheOptions& options = {})
      : policy_(std::move(policy)), options_(options) {
    if (!options_.executor) options_.executor = &team_;
  }
  LlamaCache(const LlamaCache&) = delete;
  LlamaCache& operator=(const LlamaCache&) = delete;

  /// Sets the callbacks of a context that does not exist yet, and keeps its cache on the host and its flash attention
  /// on, for that is the node this class replaces. Throws Error (incompatible) where the parameters ask for something
  /// else.
  void attach(llama_context_params& parameters);
  /// Learns the shape of the model from one token, which llama.cpp computes by itself and forgets. Throws Error with
  /// the reason where the model, the context or the policy cannot be served; nothing has been stored then.
  void start(llama_context* context);

  /// Instead of llama_decode(). Each token belongs to one sequence; positions continue where the sequence ends, and are
  /// filled in where the batch has none. `feed` says what the tokens are to the policy. Returns what llama_decode()
  /// returned; if that is not 0, or if Error is thrown, every sequence of the batch is as it was, or is empty where
  /// that is not possible because its policy has already acted (error() says so, and next_position() is 0).
  int decode(llama_batch batch, LlamaFeed feed = LlamaFeed::automatic);

  /// The position that the next token of a sequence has.
  Position next_position(llama_seq_id sequence) const { return sequence_at(sequence).next; }
  /// Forgets the tokens of a sequence from position `from` on. Returns whether the rest is exactly what it was before
  /// they came (CacheCore::truncate): not where a layer's window has slid since.
  bool truncate(llama_seq_id sequence, Position from);
  /// What truncate() would leave, without doing it.
  Truncation can_truncate(llama_seq_id sequence, Position from) const;
  /// Of the tokens that decode(batch, LlamaFeed::draft) brought keeps the first `tokens`; of the others no trace is left.
  /// Until then nothing else can be done with the sequence but clear().
  void accept(llama_seq_id sequence, std::size_t tokens);
  /// Forgets the tokens at positions [first, last), and moves them by `delta` positions (CacheCore::remove, shift). Context
  /// shift is both. Throw Error(incompatible) where shares_the_model(), and shift where the model's rotary embedding is not
  /// known (docs/engines.md).
  void remove(llama_seq_id sequence, Position first, Position last);
  void shift(llama_seq_id sequence, Position first, Position last, std::int64_t delta);
  /// Forgets a sequence.
  void clear(llama_seq_id sequence);
  /// `to` becomes a copy of `from`. They share memory until one of them changes.
  void fork(llama_seq_id from, llama_seq_id to);
  /// Saves a sequence whose prompt has ended, and loads one in place of what the sequence held: kvc/session.hpp says what
  /// is saved, and what is refused. Throws Error(incompatible) where shares_the_model().
  std::uint64_t save(llama_seq_id sequence, ByteSink sink) const;
  std::uint64_t load(llama_seq_id sequence, const SessionSource& source);

  /// What kvc serves: the layers with one cache each, in the order of the model.
  const CacheShape& shape() const { return shape_; }
  /// Whether llama.cpp has layers with memory of its own: recurrent ones, or those that attend in chunks. Its n_ctx limits
  /// those.
  bool shares_the_model() const { return shared_; }
  /// A sequence's cache, to look at; null before its first token.
  const Cache* cache(llama_seq_id sequence) const { return sequence_at(sequence).cache.get(); }
  /// Sums over all sequences.
  Stats stats() const {
    Stats sum;
    for (const Sequence& sequence : sequences_)
      if (sequence.cache) sum += sequence.cache->stats();
    return sum;
  }
  /// Why the last call failed; empty if it did not.
  const std::string& error() const { return error_; }

 private:
  enum class Mode { detached, learning, resting, serving };

  struct Sequence {
    std::unique_ptr<Cache> cache;
    Position begin = 0;  ///< of its first token
    Position next = 0;
    std::size_t tokens = 0;   ///< that llama.cpp's own layers remember
    std::size_t drafted = 0;  ///< of them, those that wait for accept()
    bool prompt_open = true;  ///< the next token belongs to a prompt
  };
  /// The rows of one layer that were stored and not attended to yet.
  struct LayerRows {
    std::vector<float> rows[2];  ///< keys, values
    std::size_t count[2] = {};
  };
  struct Store {
    std::size_t layer;
    int role;  ///< 0: keys, 1: values
  };

  static bool on_node(ggml_tensor* node, bool ask, void* self) {
    return static_cast<LlamaCache*>(self)->see(node, ask);
  }
  static bool on_abort(void* self) {
    auto& cache = *static_cast<LlamaCache*>(self);
    return cache.failed_ || (cache.users_abort_ && cache.users_abort_(cache.users_abort_data_));
  }
  static void on_store(ggml_tensor* node, int thread, int, void* self) {
    if (thread == 0) static_cast<LlamaCache*>(self)->guarded([&](LlamaCache& cache) { cache.store(node); });
  }
  static void on_attend(ggml_tensor* node, int thread, int threads, void* self) {
    auto& cache = *static_cast<LlamaCache*>(self);
    cache.guarded([&](LlamaCache&) {
      cache.team_.run(static_cast<std::size_t>(thread), static_cast<std::size_t>(threads), [&] { cache.attend(node); });
    });
  }

  /// No exception may cross llama.cpp: the first is kept for decode(), and the graph is aborted.
  template <class Call>
  void guarded(Call call) {
    if (failed_) return;
#if defined(__cpp_exceptions)
    try {
      call(*this);
    } catch (const std::exception& failure) {
      failure_ = std::current_exception();
      error_ = failure.what();
      failed_ = true;
    }
#else
    call(*this);
#endif
  }

  bool see(ggml_tensor* node, bool ask);
  void replace(ggml_tensor* node, const ggml_tensor& call);
  void store(const ggml_tensor* node);
  void attend(ggml_tensor* node);
  void begin_pass(const ggml_tensor* node);
  void serve(std::size_t layer, ConstRows q, ConstRows k, ConstRows v, Rows<float> out);
  void check_masks(const ggml_tensor* mask, Position window) const;
  void check_mask(const ggml_tensor* mask, std::size_t stream, std::size_t seen, std::size_t tokens,
                  Position window) const;
  ConstRows queries_of(const ggml_tensor* q);

  void make_calls();
  void learn();
  void check_context() const;
  void prepare(llama::Feeds feeds);
  void finish();
  void throw_failure();
  std::string roll_back();
  void drop(Sequence& sequence, llama_seq_id id);
  void check_learned_positions(const llama::Feeds& feeds) const;
  static void check_no_draft(const Sequence& sequence, const char* call);
  void check_whole(const char* call) const;
  const Sequence& sequence_at(llama_seq_id id) const {
    if (id < 0 || static_cast<std::size_t>(id) >= sequences_.size())
      fail(ErrorCode::invalid_argument, {"LlamaCache: sequence ", id, ": the context has sequences 0 to ",
                                         sequences_.empty() ? 0 : sequences_.size() - 1});
    return sequences_[static_cast<std::size_t>(id)];
  }
  Sequence& sequence_at(llama_seq_id id) {
    return const_cast<Sequence&>(std::as_const(*this).sequence_at(id));
  }

  AnyPolicy policy_;
  CacheOptions options_;
  TeamExecutor team_;
  llama_context* context_ = nullptr;
  ggml_abort_callback users_abort_ = nullptr;
  void* users_abort_data_ = nullptr;
  ggml_tensor store_call_{}, attend_call_{};  ///< nodes that call on_store and on_attend

  CacheShape shape_;
  bool shared_ = false;
  std::unordered_map<const ggml_tensor*, Store> stores_;  ///< by llama.cpp's cache tensors
  std::vector<Sequence> sequences_;

  // Of the call in progress.
  Mode mode_ = Mode::detached;
  llama::Survey survey_;
  llama::Feeds feeds_;                     ///< by sequence
  std::vector<LayerRows> stored_;          ///< by layer
  std::vector<std::vector<float>> spare_;  ///< memory of rows that were attended to
  std::vector<float> gathered_;            ///< queries that do not lie in rows
  std::size_t next_layer_ = 0;             ///< that will attend
  std::size_t pass_tokens_ = 0;            ///< of each sequence, in the ubatch
  std::vector<llama_seq_id> pass_;         ///< the sequences of the ubatch, in the order of its rows
  bool failed_ = false;
  std::exception_ptr failure_;
  std::string error_;
};

}  // namespace kvc::inline KVC_ABI

// The members, in two parts.
#include "kvc/llama/calls.hpp"
#include "kvc/llama/serving.hpp"
