#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>

#include "kvc/cache/calls.hpp"

// One generated token for each of several sequences.
namespace kvc::inline KVC_ABI {

namespace cache {
/// One sequence's part of a batch.
struct BatchItem {
  Inside* in = nullptr;
  Tokens tokens;
  Pass pass;
  std::optional<Transaction> transaction;
  attention::FeedSet feeds;
  bool alone = false;
  Remaining remaining = Remaining::nothing;  ///< if it acts alone
};

/// The items of a batch, in the working memory of its first cache.
class BatchItems {
 public:
  BatchItems(std::size_t count, Workspace::Frame& frame)
      : memory_(frame.take<Memory>(count)), items_(reinterpret_cast<BatchItem*>(memory_.data()), count) {
    std::uninitialized_value_construct(items_.begin(), items_.end());
  }
  ~BatchItems() { std::destroy(items_.begin(), items_.end()); }
  BatchItems(const BatchItems&) = delete;
  BatchItems& operator=(const BatchItems&) = delete;
  std::span<BatchItem> all() const { return items_; }

 private:
  struct alignas(BatchItem) Memory {
    std::byte bytes[sizeof(BatchItem)];
  };
  std::span<Memory> memory_;
  std::span<BatchItem> items_;
};

/// Refuses a batch that cannot be done, before any of its caches changes.
inline void check_batch(std::span<Inside* const> caches, std::size_t layer, const Tokens& tokens,
                        const Rows<float>& out) {
  const auto check_count = [&](const char* name, std::size_t count) {
    if (count != caches.size())
      fail(ErrorCode::shape_mismatch,
           {"decode_batch: ", name, ": got ", count, " rows, expected one per cache (", caches.size(), ")"});
  };
  check_count("q", tokens.q.count);
  check_count("k", tokens.k.count);
  check_count("v", tokens.v.count);
  check_count("out", out.count);
  if (!tokens.positions.empty() && tokens.positions.size() != caches.size())
    fail(ErrorCode::shape_mismatch, {"decode_batch: Tokens::positions: got ", tokens.positions.size(),
                                     ", expected one per cache (", caches.size(), ") or none"});
  for (std::size_t b = 0; b < caches.size(); ++b) {
    if (caches[b]->shape.kv_heads != caches[0]->shape.kv_heads)
      fail(ErrorCode::shape_mismatch, "decode_batch: caches with different numbers of KV heads");
    if (std::find(caches.begin(), caches.begin() + static_cast<std::ptrdiff_t>(b), caches[b]) !=
        caches.begin() + static_cast<std::ptrdiff_t>(b))
      fail(ErrorCode::invalid_argument, {"decode_batch: cache ", b, " is in the batch twice"});
  }
  const std::size_t heads = caches.empty() ? 1 : caches[0]->shape.kv_heads;
  if (!tokens.scores.empty() && tokens.scores.size() != caches.size() * heads)
    fail(ErrorCode::missing_feed, {"decode_batch: Tokens::scores: got ", tokens.scores.size(),
                                   " numbers, expected [caches, kv_heads] = ", caches.size() * heads});
  for (std::size_t b = 0; b < caches.size(); ++b) {
    check_tokens(*caches[b], "decode_batch", layer, part_of(tokens, b, 1, heads), out.subrows(b, 1), false, true, b);
    check_no_drafts(*caches[b], "decode_batch");
  }
}

/// Only one cache: its heads may be fewer than the threads, which then share long ones.
inline void decode_one(Inside& in, std::size_t layer, const Tokens& tokens, Rows<float> out, std::span<float> lse,
                       Executor& executor) {
  run(in, {.layer = layer, .event = Event::decode, .tokens = &tokens, .out = out, .lse = lse, .executor = &executor});
}

/// The heads of all items whose remaining work is of one kind.
inline void finish_items(std::span<BatchItem> items, std::size_t layer, Remaining what, Executor& executor) {
  const auto has = [what](const BatchItem& item) { return item.alone && item.remaining == what; };
  if (std::none_of(items.begin(), items.end(), has)) return;
  const std::size_t heads = items[0].in->shape.kv_heads;
  finish_all(items.size() * heads, what, executor, [&](std::size_t task) {
    BatchItem& item = items[task / heads];
    if (has(item))
      finish_head(*item.in, item.in->first_head(layer) + task % heads, {.event = Event::decode, .executor = &executor},
                  what, *item.transaction);
  });
}

inline void decode_several(std::span<Inside* const> caches, std::size_t layer, const Tokens& tokens, Rows<float> out,
                           std::span<float> lse, Executor& executor, std::span<BatchItem> items) {
  const std::size_t heads = caches[0]->shape.kv_heads, each = lse.size() / caches.size();
  for (std::size_t b = 0; b < caches.size(); ++b) {
    BatchItem& item = items[b];
    item.in = caches[b];
    item.tokens = part_of(tokens, b, 1, heads);
    item.pass = {.layer = layer,
                 .event = Event::decode,
                 .tokens = &item.tokens,
                 .out = out.subrows(b, 1),
                 .lse = lse.subspan(b * each, each),
                 .executor = &executor};
    if (reaches_other_layers(*item.in, item.pass))
      item.transaction.emplace(*item.in);
    else
      item.transaction.emplace(*item.in, layer);
    begin_pass(*item.in, item.pass);
    item.feeds = feeds_after(*item.in, layer, Event::decode);
    item.alone = acts_alone(*item.in, Event::decode);
  }
  executor.parallel_for(caches.size() * heads, [&](std::size_t task) {
    BatchItem& item = items[task / heads];
    token_task(*item.in, item.pass, item.in->first_head(layer) + task % heads, item.feeds, item.alone,
               *item.transaction);
  });
  // First what can fail, in every cache; then what cannot.
  for (BatchItem& item : items)
    if (item.alone) item.remaining = remaining(*item.in, layer);
  finish_items(items, layer, Remaining::everything, executor);
  for (BatchItem& item : items)
    if (!item.alone) finish(*item.in, act_on_pass(*item.in, item.pass, false, *item.transaction), Event::decode);
  finish_items(items, layer, Remaining::in_place, executor);
  for (BatchItem& item : items) {
    if (item.alone) finish_layer(*item.in, layer, Event::decode);
    item.transaction->commit();
  }
}
}  // namespace cache

KVC_FORWARD void decode_batch(std::span<CacheCore* const> caches, std::size_t layer, const Tokens& tokens,
                              Rows<float> out, Executor& executor, std::span<float> lse) {
  cache::guarded("decode_batch", [&] {
    if (std::find(caches.begin(), caches.end(), nullptr) != caches.end())
      fail(ErrorCode::invalid_argument, "decode_batch: a cache is null");
    if (caches.empty()) return cache::check_batch({}, layer, tokens, out);
    const WorkspacePool::Lease workspace(*caches[0]->inside_->workspaces);
    Workspace::Frame frame(*workspace);
    const auto inside = frame.take<cache::Inside*>(caches.size());
    for (std::size_t b = 0; b < caches.size(); ++b) inside[b] = caches[b]->inside_.get();
    cache::check_batch(inside, layer, tokens, out);
    cache::check_lse(*inside[0], "decode_batch", lse, caches.size(), out);
    if (caches.size() == 1) return cache::decode_one(*inside[0], layer, tokens, out, lse, executor);
    const cache::BatchItems items(caches.size(), frame);
    cache::decode_several(inside, layer, tokens, out, lse, executor, items.all());
  });
}

}  // namespace kvc::inline KVC_ABI
