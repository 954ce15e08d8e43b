#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kvc/byte_stream.hpp"
#include "kvc/cache/options.hpp"
#include "kvc/compiled.hpp"
#include "kvc/policy/pipeline.hpp"
#include "kvc/stats.hpp"
#include "kvc/words.hpp"

namespace kvc::inline KVC_ABI {

class HeadStore;
class RowStore;
struct SessionOptions;
class SessionSource;
namespace cache {
struct Inside;
}

/// What truncate() leaves (see CacheCore::can_truncate).
enum class Truncation : std::uint8_t {
  exact,    ///< the cache that there was before the tokens came
  rounded,  ///< every token before them, but rows were sealed, or policies saw what came, since
  lost,     ///< fewer than these: a policy has evicted some of them, or merged them into others
};
constexpr auto words_of(Truncation) {
  return words(word("exact", Truncation::exact), word("rounded", Truncation::rounded), word("lost", Truncation::lost));
}

/// The cache of one sequence: storage, attention and the execution of policies. It is not a template; KVCache<Policy> is its
/// typed face. Layers are fed in order, each with the same tokens.
///
/// Every call either does all it says, or throws Error and leaves the cache as it was, bit for bit: where an argument is wrong,
/// memory is refused (ErrorCode::out_of_memory), a policy throws, or the executor does.
///
/// One cache is used by one thread at a time, except attend(), stats() and the other const members, which any number of
/// threads may call together. Work inside a call is spread over CacheOptions::executor.
class CacheCore {
 public:
  /// Throws Error if a stage cannot work on this shape: never later, after a prompt has been computed.
  CacheCore(const CacheShape& shape, Stages stages, const CacheOptions& options = {});
  CacheCore(CacheCore&&) noexcept;
  CacheCore& operator=(CacheCore&&) noexcept;
  /// Inline here, and not only where it is defined, in a header-only build: else g++ emits the whole cache in every file.
  KVC_FORWARD virtual ~CacheCore();
  /// A second sequence that starts as this one is now. Blocks are shared; whoever changes one copies it first.
  [[nodiscard]] CacheCore fork() const { return CacheCore(*this); }

  /// Appends a prompt, or the next part of one, to a layer and writes its causal attention to `out`
  /// [tokens, query_heads * value_dim]; an empty `out` (no data) says that the engine did the attention itself. The policy
  /// acts after the last part. Fed whole or in parts, a prompt gives the same result. `lse`, unless it is empty: see attend().
  void prefill(std::size_t layer, const Tokens& tokens, Rows<float> out, bool last_chunk = true,
               std::span<float> lse = {});
  /// Appends generated tokens (usually one), attends, and lets the policy act. Tokens of a prompt belong to prefill(), one by
  /// one if need be: policies that act when a prompt ends never act on tokens that only decode() saw.
  void decode(std::size_t layer, const Tokens& tokens, Rows<float> out, std::span<float> lse = {});
  /// Appends and attends as decode does, but the policy sleeps until accept(): speculative decoding.
  void draft(std::size_t layer, const Tokens& tokens, Rows<float> out, std::span<float> lse = {});
  /// Of the drafted tokens keeps the first `tokens`; the policy now observes them and acts. Of the others no trace is left.
  /// accept(0) drops them all, also where a draft was refused before every layer had it.
  void accept(std::size_t tokens);
  /// Queries that leave nothing behind: their tokens are appended, attended to, observed with the positions asked about
  /// [begin, end), and dropped again. The protocol of policies that learn from probes (KVzip; needs_probe() tells):
  ///   1. prefill(layer, prompt, out, false) keeps the prompt open, so that no policy acts yet;
  ///   2. probe(layer, questions, out, begin, end), as often as the policy's paper says;
  ///   3. compress() ends the prompt.
  void probe(std::size_t layer, const Tokens& tokens, Rows<float> out, Position begin, Position end);
  /// Attention of `queries` [tokens, query_heads * head_dim] over all slots, storing nothing: a pure read, thread-safe. Each
  /// query sees every slot that the next token will see. `lse`, unless it is empty, receives the natural logarithm of what `out`
  /// was divided by [tokens, query_heads]: the log-sum-exp of the scaled and capped logits, and of the head's sink logit where the
  /// layer has them (LayerShape). Partial attentions over disjoint contexts merge exactly with it; only one of them may have a
  /// sink logit.
  void attend(std::size_t layer, ConstRows queries, Rows<float> out, std::span<float> lse = {}) const;

  /// Lets the policy act now as it does at the end of a prompt.
  void compress();
  /// Tells the policy that `tokens` tokens are about to come (StreamingLLM's evict_for_space).
  void make_room(std::size_t tokens);
  /// Forgets every token from position `from` on. Returns whether the cache is exactly what it was before they came: not if
  /// a policy acted on them or because of them, or rows were sealed since.
  [[nodiscard]] bool truncate(Position from);
  /// What truncate(from) would leave, without doing it: `exact` is where it returns true. Where a policy evicts and positions have
  /// gaps, nobody knows which tokens there were; what is not exact is `lost` then. Throws Error if `from` is negative.
  [[nodiscard]] Truncation can_truncate(Position from) const;
  /// Forgets the tokens at positions [first, last) in every layer and head. All other tokens stay what and where they are, and so
  /// do next_position() and what policies keep per head; what they keep per slot goes with its slot. As after an eviction, the
  /// few rows left of a sealed block become dense ones, with the digits of CacheOptions::dense. Where nothing stands behind the
  /// range, this is truncate(first), and next_position() becomes `first`. A range without tokens is fine. Throws Error if the
  /// range is none, or while a prompt is open or drafted tokens wait.
  void remove(Position first, Position last);
  /// Moves the tokens at positions [first, last) by `delta` positions, and next_position() with them where nothing stands behind
  /// them. Keys read from then on as if they had been rotated for their new positions, in every format; values stay. No row is
  /// written, so nothing is rounded however often tokens are shifted: what reads keys turns them, and attention its queries.
  /// Throws Error if a token would not stay between those that it stands between (remove() makes room), if CacheShape::rotary is
  /// empty, or while a prompt is open or drafted tokens wait. Context shift is remove(p, q) and shift(q, end, p - q).
  void shift(Position first, Position last, std::int64_t delta);
  /// The position of the next token: one behind the last that layer 0, which is fed first, has seen.
  [[nodiscard]] Position next_position() const;
  /// Forgets everything; memory stays with the cache.
  void clear();
  /// Obtains the memory that a sequence of `tokens` tokens needs, so that decode steps up to there allocate nothing, except
  /// the first of a kind: the first step, and a head's first seal, still obtain working memory. Heads that keep f32 rows in
  /// an f16 cache (Dense::widens) are known once they have a row: call it again then.
  void reserve(std::size_t tokens);

  const CacheShape& shape() const;
  const Stages& stages() const;
  /// Sums over the whole cache, a layer, a head.
  [[nodiscard]] Stats stats() const;
  [[nodiscard]] Stats stats(std::size_t layer) const;
  [[nodiscard]] Stats stats(HeadId id) const;
  /// Original positions of the live slots, ascending.
  [[nodiscard]] std::vector<Position> positions(HeadId id) const;
  /// Dense copies of all keys [slots, head_dim] and values [slots, value_dim] of a head, in slot order.
  void gather(HeadId id, Rows<float> keys, Rows<float> values) const;
  /// The rows of a head as they lie in memory, for engines with kernels of their own: segments of blocks, and the row of
  /// every slot. Include kvc/storage/row_store.hpp to read them. Keys of shifted tokens lie there as they were rotated before:
  /// see key_positions().
  const RowStore& key_rows(HeadId id) const;
  const RowStore& value_rows(HeadId id) const;
  /// The positions for which the keys in key_rows() were rotated, in slot order: positions(), unless shift() moved tokens.
  [[nodiscard]] std::vector<Position> key_positions(HeadId id) const;

  /// What policy P keeps per slot of a head, in slot order; and per head. Throws Error(unknown_name) if P is neither a stage
  /// nor a member of one.
  template <class P>
  std::span<const Slot<P>> slots(HeadId id) const {
    return {reinterpret_cast<const Slot<P>*>(slot_bytes(type_of<P>(), id)), slot_count(id)};
  }
  template <class P>
  const State<P>& state(HeadId id) const {
    return static_cast<const StateBox<P>&>(any_state(type_of<P>(), id)).value;
  }

  friend void decode_batch(std::span<CacheCore* const> caches, std::size_t layer, const Tokens& tokens, Rows<float> out,
                           Executor& executor, std::span<float> lse);
  friend std::uint64_t save(std::span<const CacheCore* const> forks, ByteSink sink, const SessionOptions& options);
  friend std::uint64_t load(std::span<CacheCore* const> forks, const SessionSource& source,
                            const SessionOptions& options);

 protected:
  CacheCore(const CacheCore& other);

 private:
  std::size_t slot_count(HeadId id) const;
  const std::byte* slot_bytes(const TypeName& policy, HeadId id) const;
  const AnyState& any_state(const TypeName& policy, HeadId id) const;

  std::unique_ptr<cache::Inside> inside_;
};

/// One generated token for each of several sequences: row b of the matrices belongs to caches[b], whose heads all run as
/// independent tasks of `executor`. `lse`: empty, or [caches, query_heads], see attend(). The caches are all different and have the same number of KV heads; their policies may
/// differ. If anything throws, every one of them is as it was.
void decode_batch(std::span<CacheCore* const> caches, std::size_t layer, const Tokens& tokens, Rows<float> out,
                  Executor& executor, std::span<float> lse = {});

}  // namespace kvc::inline KVC_ABI
