#pragma once
#include "kvc/cache/impl.hpp"

// Construction, forks, and what an engine asks of a cache between passes.
namespace kvc::inline KVC_ABI {

inline CacheCore::Impl::Impl(const CacheShape& shape, Stages stages, const CacheOptions& options)
    : shape_(shape),
      stages_(std::move(stages)),
      options_(options),
      executor_(options.executor ? options.executor : &serial_),
      arena_(options.memory ? nullptr : std::make_shared<Arena>()),
      block_memory_(options.memory ? options.memory : arena_.get()),
      joint_from_(stages_.size()) {
  check_stages(stages_, shape_);
  Streams unsealed;
  const Stage* quantizer = nullptr;
  std::vector<std::vector<std::byte>> defaults;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    const Stage& stage = *stages_[i];
    const Stage::Verbs verbs = stage.verbs();
    merges_ |= verbs.merge;
    if (verbs.quantize) quantizer = &stage;
    if (verbs.allocate_all) joint_from_ = std::min(joint_from_, i);
    acts_alone_ &= !verbs.allocate && !verbs.allocate_all && !verbs.merge;
    observes_ |= verbs.observe;
    indexes_ |= verbs.index;
    selects_ |= verbs.select;
    shrinks_ |= verbs.evict;
    in_cache_ |= stage.positions() == Positions::in_cache;
    const Needs needs = stage.needs();
    needs_.prompt = std::max(needs_.prompt, needs.prompt);
    needs_.decode = std::max(needs_.decode, needs.decode);
    needs_.probe = std::max(needs_.probe, needs.probe);
    needs_.query_window = std::max(needs_.query_window, needs.query_window);
    needs_.queries |= needs.queries;
    needs_.external_scores |= needs.external_scores;
    defaults.emplace_back(stage.slot_bytes());
    stage.default_slot(defaults.back().data());
  }
  if (merges_ && joint_from_ < stages_.size())
    fail(ErrorCode::incompatible, "cross-layer merging and budgets over all layers cannot be combined");
  if (in_cache_ && shape_.rotary.inv_freq.empty())
    fail(ErrorCode::missing_feed,
         "CacheShape::rotary: in-cache positions need the model's rotary table, but it is empty");
  layers_.resize(shape_.layers);
  memory_.resize(shape_.heads());
  work_.resize(shape_.kv_heads);
  heads_.reserve(shape_.heads());
  for (std::size_t head = 0; head < shape_.heads(); ++head) {
    heads_.emplace_back(shape_, quantizer ? quantizer->quantize(id_of(head)) : unsealed, options_.dense, defaults,
                        block_memory_);
    memory_[head].budgets.assign(stages_.size(), Unlimited);
    for (const auto& stage : stages_) memory_[head].states.push_back(stage->new_state());
  }
}

inline CacheCore::Impl::Impl(const Impl& other)
    : shape_(other.shape_),
      stages_(other.stages_),
      options_(other.options_),
      executor_(options_.executor ? options_.executor : &serial_),
      arena_(other.arena_),
      block_memory_(other.block_memory_),
      workspaces_(other.workspaces_),
      needs_(other.needs_),
      in_cache_(other.in_cache_),
      selects_(other.selects_),
      indexes_(other.indexes_),
      observes_(other.observes_),
      shrinks_(other.shrinks_),
      merges_(other.merges_),
      acts_alone_(other.acts_alone_),
      joint_from_(other.joint_from_),
      heads_(other.heads_),
      work_(other.work_.size()),
      layers_(other.layers_),
      ramp_(other.ramp_) {
  for (const HeadMemory& source : other.memory_) {
    HeadMemory& memory = memory_.emplace_back();
    memory.budgets = source.budgets;
    for (const auto& state : source.states) memory.states.push_back(state->clone());
  }
}

inline void CacheCore::Impl::compress() {
  check_no_drafts("compress");
  for (std::size_t layer = 0; layer < shape_.layers; ++layer) act(layer, Event::prompt_end);
}

inline void CacheCore::Impl::make_room(std::size_t tokens) {
  check_no_drafts("make_room");
  incoming_ = tokens;
  for (std::size_t layer = 0; layer < shape_.layers; ++layer) act(layer, Event::make_room);
}

/// How many tokens of a layer stand at `from` or later. Where positions have gaps and slots were evicted nobody knows
/// exactly; then it is the most that every head can have lost.
inline std::size_t CacheCore::Impl::forgotten_tokens(std::size_t layer, Position from) const {
  auto forgotten = static_cast<std::size_t>(layers_[layer].next_position - from);
  for (std::size_t head = first_head(layer); head < first_head(layer) + shape_.kv_heads; ++head) {
    const HeadStore& store = heads_[head];
    std::size_t slots = store.size();
    while (slots > 0 && store.position(slots - 1) >= from) --slots;
    forgotten = std::min(forgotten, store.seen() - slots);
  }
  return forgotten;
}

inline bool CacheCore::Impl::truncate(Position from) {
  if (from < 0) fail(ErrorCode::invalid_argument, "truncate: position " + std::to_string(from) + " is negative");
  bool exact = true;
  for (std::size_t layer = 0; layer < shape_.layers; ++layer) {
    LayerState& state = layers_[layer];
    if (from >= state.next_position) continue;
    exact &= from >= state.changed_at;
    const std::size_t forgotten = forgotten_tokens(layer, from);
    for (std::size_t head = first_head(layer); head < first_head(layer) + shape_.kv_heads; ++head) {
      HeadStore& store = heads_[head];
      std::size_t slots = store.size();
      while (slots > 0 && store.position(slots - 1) >= from) --slots;
      const WorkspacePool::Lease workspace(*workspaces_);
      store.truncate(slots, forgotten);
      index_head(head, slots, Event::decode, *workspace);
    }
    state.seen -= forgotten;
    state.next_position = from;
    state.changed_at = std::min(state.changed_at, from);
    state.merged_until = std::min(state.merged_until, from);
    state.window.clear();
    state.window_tokens = 0;
    // Drafted tokens came last; those that are left still wait for accept().
    const std::size_t waiting = state.drafted_tokens - std::min(forgotten, state.drafted_tokens);
    state.drafted.resize(waiting * shape_.query_heads * shape_.head_dim);
    state.drafted_scores.resize(needs_.external_scores ? waiting * shape_.kv_heads : 0);
    state.drafted_tokens = waiting;
  }
  return exact;
}

inline void CacheCore::Impl::clear() {
  std::vector<std::vector<std::byte>> defaults;
  const Stage* quantizer = nullptr;
  for (const auto& stage : stages_) {
    if (stage->verbs().quantize) quantizer = stage.get();
    defaults.emplace_back(stage->slot_bytes());
    stage->default_slot(defaults.back().data());
  }
  for (std::size_t head = 0; head < heads_.size(); ++head) {
    heads_[head] = HeadStore(shape_, quantizer ? quantizer->quantize(id_of(head)) : Streams{}, options_.dense, defaults,
                             block_memory_);
    memory_[head].budgets.assign(stages_.size(), Unlimited);
    for (std::size_t stage = 0; stage < stages_.size(); ++stage)
      memory_[head].states[stage] = stages_[stage]->new_state();
  }
  for (HeadMemory& memory : memory_) memory.changed = false;
  layers_.assign(shape_.layers, {});
}

inline void CacheCore::Impl::reserve(std::size_t tokens) {
  while (ramp_.size() < tokens + 1) ramp_.push_back(static_cast<Position>(ramp_.size()));
  std::vector<std::pair<std::size_t, std::size_t>> demands;
  for (std::size_t head = 0; head < heads_.size(); ++head) {
    HeadStore& store = heads_[head];
    store.reserve(tokens + 1, shrinks_);
    for (const RowStore* rows : {&store.keys(), &store.values()})
      rows->for_each_demand(tokens, [&](std::size_t bytes, std::size_t count) {
        const auto known =
            std::find_if(demands.begin(), demands.end(), [&](const auto& demand) { return demand.first == bytes; });
        if (known != demands.end())
          known->second += count;
        else
          demands.emplace_back(bytes, count);
      });
  }
  for (HeadWork& work : work_) {
    work.plan.reserve(tokens + 1);
    if (selects_) work.selection.reset(tokens + 1);
  }
  if (!arena_) return;
  std::size_t blocks = 0;
  for (const auto& [bytes, count] : demands) {
    arena_->reserve(bytes, count);
    blocks += count;
  }
  arena_->reserve(Block::SharedBytes, blocks);
}

inline Stats CacheCore::Impl::stats(std::size_t layer) const {
  check_layer(layer);
  Stats sum;
  for (std::size_t head = first_head(layer); head < first_head(layer) + shape_.kv_heads; ++head) {
    sum += heads_[head].stats(shape_);
    for (const auto& state : memory_[head].states) sum.metadata += state->bytes();
  }
  sum.metadata += (layers_[layer].window.capacity() + layers_[layer].drafted.capacity()) * sizeof(float);
  return sum;
}

inline Stats CacheCore::Impl::stats() const {
  Stats sum;
  for (std::size_t layer = 0; layer < shape_.layers; ++layer) sum += stats(layer);
  sum.metadata += ramp_.capacity() * sizeof(Position);
  return sum;
}

inline std::vector<Position> CacheCore::Impl::positions(HeadId id) const {
  const HeadStore& head = store(id);
  std::vector<Position> positions(head.size());
  for (std::size_t slot = 0; slot < head.size(); ++slot) positions[slot] = head.position(slot);
  return positions;
}

inline void CacheCore::Impl::gather(HeadId id, Rows<float> keys, Rows<float> values) const {
  const HeadStore& head = store(id);
  const auto check = [&](const char* name, const Rows<float>& rows, std::size_t dim) {
    if (rows.count != head.size() || rows.dim != dim)
      fail(ErrorCode::shape_mismatch, std::string("gather: ") + name + ": got [" + std::to_string(rows.count) + ", " +
                                          std::to_string(rows.dim) + "], expected [" + std::to_string(head.size()) +
                                          ", " + std::to_string(dim) + "]");
  };
  check("keys", keys, shape_.head_dim);
  check("values", values, shape_.values_dim());
  head.keys().gather(0, keys);
  head.values().gather(0, values);
}

/// The only cache of a batch: its heads may be fewer than the threads, which then share long ones.
inline void CacheCore::Impl::decode_on(Executor& executor, Pass& pass, std::span<const Position> positions) {
  struct Restored {
    Executor*& place;
    Executor* own;
    ~Restored() { place = own; }
  } const restored{executor_, std::exchange(executor_, &executor)};
  run_pass(pass, positions);
}

inline void CacheCore::Impl::decode_batch(std::span<Impl* const> caches, std::size_t layer, const Tokens& tokens,
                                          Rows<float> out, Executor& executor) {
  if (tokens.q.count != caches.size() || tokens.k.count != caches.size() || tokens.v.count != caches.size() ||
      out.count != caches.size())
    fail(ErrorCode::shape_mismatch, "decode_batch: got " + std::to_string(tokens.k.count) +
                                        " rows, expected one per cache (" + std::to_string(caches.size()) + ")");
  if (caches.empty()) return;
  const std::size_t heads = caches[0]->shape_.kv_heads;
  const WorkspacePool::Lease batch(*caches[0]->workspaces_);
  Workspace::Frame frame(*batch);
  const auto rows = frame.take<Tokens>(caches.size());
  for (std::size_t b = 0; b < caches.size(); ++b) {
    const Impl& cache = *caches[b];
    if (cache.shape_.kv_heads != heads)
      fail(ErrorCode::shape_mismatch, "decode_batch: caches with different numbers of KV heads");
    rows[b] = {.q = tokens.q.subrows(b, 1), .k = tokens.k.subrows(b, 1), .v = tokens.v.subrows(b, 1)};
    if (!tokens.scores.empty()) rows[b].scores = tokens.scores.subspan(b * heads, heads);
    if (!tokens.positions.empty()) rows[b].positions = tokens.positions.subspan(b, 1);
    cache.check_tokens("decode_batch", layer, rows[b], out.subrows(b, 1), false);
    cache.check_no_drafts("decode_batch");
  }
  struct Item {
    Pass pass;
    std::span<const Position> positions;
  };
  const auto items = frame.take<Item>(caches.size());
  for (std::size_t b = 0; b < caches.size(); ++b) {
    items[b].pass = {.layer = layer,
                     .event = Event::decode,
                     .tokens = &rows[b],
                     .out = out.subrows(b, 1),
                     .feed = caches[b]->needs_.decode};
    items[b].positions = caches[b]->begin_pass(items[b].pass);
  }
  if (caches.size() == 1) return caches[0]->decode_on(executor, items[0].pass, items[0].positions);
  executor.parallel_for(caches.size() * heads, [&](std::size_t task) {
    Impl& cache = *caches[task / heads];
    const WorkspacePool::Lease workspace(*cache.workspaces_);
    cache.token_pass(items[task / heads].pass, items[task / heads].positions, cache.first_head(layer) + task % heads,
                     *workspace);
  });
  for (Impl* cache : caches) {
    if (cache->acts_alone_)
      cache->finish_layer(layer, Event::decode);
    else
      cache->act(layer, Event::decode);
  }
}

}  // namespace kvc
