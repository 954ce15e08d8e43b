#pragma once
#include "kvc/cache/impl.hpp"

// A pass: tokens are appended to every head of a layer, their queries attend, policies observe.
namespace kvc::inline KVC_ABI {

namespace detail {
/// Column sums of a prompt are added up in this many parts, which different threads can take.
inline constexpr std::size_t Strips = 16;
/// Rows of a head that one task attends to while decoding; longer heads are split.
inline constexpr std::size_t PartRows = 16 * attention::ChunkRows;
}  // namespace detail

inline void CacheCore::Impl::prefill(std::size_t layer, const Tokens& tokens, Rows<float> out, bool last_chunk) {
  check_tokens("prefill", layer, tokens, out, true);
  check_no_drafts("prefill");
  Pass pass{.layer = layer,
            .event = last_chunk ? Event::prompt_end : Event::prompt_chunk,
            .tokens = &tokens,
            .out = out,
            .feed = needs_.prompt};
  run_pass(pass, begin_pass(pass));
}

inline void CacheCore::Impl::decode(std::size_t layer, const Tokens& tokens, Rows<float> out) {
  check_tokens("decode", layer, tokens, out, false);
  check_no_drafts("decode");
  Pass pass{.layer = layer, .event = Event::decode, .tokens = &tokens, .out = out, .feed = needs_.decode};
  run_pass(pass, begin_pass(pass));
}

inline void CacheCore::Impl::draft(std::size_t layer, const Tokens& tokens, Rows<float> out) {
  check_tokens("draft", layer, tokens, out, false);
  const Pass pass{.layer = layer, .event = Event::decode, .tokens = &tokens, .out = out, .behind = true};
  const auto positions = begin_pass(pass);
  executor().parallel_for(shape_.kv_heads,
                          [&](std::size_t head) { append_head(pass, first_head(layer) + head, positions); });
  attend_tokens(pass);
  LayerState& state = layers_[layer];
  for (std::size_t t = 0; t < tokens.q.count; ++t)
    state.drafted.insert(state.drafted.end(), tokens.q[t].begin(), tokens.q[t].end());
  if (needs_.external_scores)
    state.drafted_scores.insert(state.drafted_scores.end(), tokens.scores.begin(), tokens.scores.end());
  state.drafted_tokens += tokens.q.count;
}

inline void CacheCore::Impl::accept(std::size_t tokens) {
  for (const LayerState& state : layers_)
    if (state.drafted_tokens != layers_[0].drafted_tokens || tokens > state.drafted_tokens)
      fail(ErrorCode::invalid_argument, "accept: asked for " + std::to_string(tokens) + " of " +
                                            std::to_string(state.drafted_tokens) +
                                            " drafted tokens; every layer must have drafted the same");
  for (std::size_t layer = 0; layer < shape_.layers; ++layer) {
    LayerState& state = layers_[layer];
    const std::size_t rejected = state.drafted_tokens - tokens;
    for (std::size_t head = first_head(layer); head < first_head(layer) + shape_.kv_heads; ++head)
      heads_[head].truncate(heads_[head].size() - rejected, rejected);
    state.seen -= rejected;
    state.next_position -= static_cast<Position>(rejected);
    const std::vector<float> queries = std::exchange(state.drafted, {}),
                             scores = std::exchange(state.drafted_scores, {});
    state.drafted_tokens = 0;
    for (std::size_t head = first_head(layer); head < first_head(layer) + shape_.kv_heads; ++head)
      index_head(head, heads_[head].size() - tokens, Event::decode);
    if (tokens == 0) continue;
    const std::size_t dim = shape_.query_heads * shape_.head_dim;
    const Tokens observed{.q = {queries.data(), tokens, dim}, .k = {nullptr, tokens, 0}, .v = {}, .scores = scores};
    Pass pass{.layer = layer, .event = Event::decode, .tokens = &observed, .feed = needs_.decode};
    attend_tokens(pass);
    executor().parallel_for(shape_.kv_heads, [&](std::size_t head) {
      observe_head(pass, first_head(layer) + head, heads_[first_head(layer) + head].size() - tokens);
    });
    act(layer, Event::decode);
  }
}

inline void CacheCore::Impl::probe(std::size_t layer, const Tokens& tokens, Rows<float> out, Position begin,
                                   Position end) {
  check_tokens("probe", layer, tokens, out, true);
  check_no_drafts("probe");
  Pass pass{.layer = layer,
            .event = Event::probe,
            .tokens = &tokens,
            .out = out,
            .probe_begin = begin,
            .probe_end = end,
            .feed = needs_.probe};
  const LayerState before{.seen = layers_[layer].seen, .next_position = layers_[layer].next_position};
  const auto positions = begin_pass(pass);
  executor().parallel_for(shape_.kv_heads,
                          [&](std::size_t head) { append_head(pass, first_head(layer) + head, positions); });
  attend_tokens(pass);
  executor().parallel_for(shape_.kv_heads, [&](std::size_t local) {
    const std::size_t head = first_head(layer) + local;
    const std::size_t slots = heads_[head].size() - tokens.k.count;
    observe_head(pass, head, slots);
    heads_[head].truncate(slots, tokens.k.count);
  });
  layers_[layer].seen = before.seen;
  layers_[layer].next_position = before.next_position;
}

inline void CacheCore::Impl::attend(std::size_t layer, ConstRows queries, Rows<float> out, float* lse) const {
  check_layer(layer);
  check_rows("attend", "queries", queries, queries.count, shape_.query_heads * shape_.head_dim);
  if (out.count != queries.count || out.dim != shape_.query_heads * shape_.values_dim())
    fail(ErrorCode::shape_mismatch, "attend: out: got [" + std::to_string(out.count) + ", " + std::to_string(out.dim) +
                                        "], expected [" + std::to_string(queries.count) + ", " +
                                        std::to_string(shape_.query_heads * shape_.values_dim()) + "]");
  const std::size_t group = shape_.group(), value_dim = shape_.values_dim();
  for (std::size_t head = 0; head < shape_.kv_heads; ++head) {
    const HeadStore& store = heads_[first_head(layer) + head];
    const attention::HeadReader reader(store, settings(), {}, head + 1 < shape_.kv_heads ? &store + 1 : nullptr);
    for (std::size_t t = 0; t < queries.count; ++t) {
      auto memory = detail::scratch<struct AttendQueries>(group * shape_.head_dim);
      attention::Queries one = attention::load_queries(shape_, queries.subrows(t, 1), head, memory);
      const auto shift = static_cast<std::int32_t>(store.size()) - layers_[layer].next_position;
      if (in_cache_) one.shifts = {&shift, 1};
      auto state_memory = detail::scratch<struct AttendState>(attention::Partial::floats(group, value_dim));
      auto state = attention::Partial::empty_in(state_memory, group, value_dim);
      attention::attend(reader, 0, reader.rows(), one, reader.rows(), state);
      for (std::size_t g = 0; g < group; ++g) {
        state.finish(g, out[t].subspan((head * group + g) * value_dim, value_dim));
        if (lse) lse[t * shape_.query_heads + head * group + g] = state.log_sum_exp(g);
      }
    }
  }
}

/// Counts the tokens in and says at which positions they stand.
inline std::span<const Position> CacheCore::Impl::begin_pass(const Pass& pass) {
  LayerState& state = layers_[pass.layer];
  const std::size_t count = pass.tokens->k.count;
  // Positions that the engine names may be far apart; the ramp then only serves heads without gaps.
  const std::size_t next = pass.tokens->positions.empty() ? static_cast<std::size_t>(state.next_position) : 0;
  const std::size_t needed = std::max(state.seen, next) + count + 1;
  if (ramp_.size() < needed) {
    const std::size_t known = ramp_.size();
    ramp_.resize(needed + needed / 2 + 64);
    for (std::size_t i = known; i < ramp_.size(); ++i) ramp_[i] = static_cast<Position>(i);
  }
  std::span<const Position> positions = pass.tokens->positions;
  if (positions.empty())
    positions = std::span<const Position>(ramp_).subspan(static_cast<std::size_t>(state.next_position), count);
  state.seen += count;
  if (count != 0) state.next_position = positions[count - 1] + 1;
  return positions;
}

inline void CacheCore::Impl::append_head(const Pass& pass, std::size_t head, std::span<const Position> positions) {
  const std::size_t local = head % shape_.kv_heads, count = pass.tokens->k.count;
  if (count == 0) return;
  heads_[head].append(pass.tokens->k.columns(local * shape_.head_dim, shape_.head_dim),
                      pass.tokens->v.columns(local * shape_.values_dim(), shape_.values_dim()), positions, pass.behind);
  if (pass.event != Event::probe) index_head(head, heads_[head].size() - count, pass.event);
}

/// Parts that the rows of a head fall into, the token that is about to come included.
inline std::size_t CacheCore::Impl::parts_of(std::size_t head) const {
  if (!heads_[head].in_step()) return 1;
  return divide_up(heads_[head].keys().rows() + 1, detail::PartRows);
}

/// Everything that a pass does once begin_pass() has counted its tokens in.
inline void CacheCore::Impl::run_pass(Pass& pass, std::span<const Position> positions) {
  const std::size_t layer = pass.layer, count = pass.tokens->k.count, first = first_head(layer);
  LayerState& state = layers_[layer];
  const bool token = pass.event == Event::decode && count == 1;
  pass.serial = executor_ == &serial_;

  std::size_t parts = 1;
  if (token && shape_.kv_heads < 64)
    for (std::size_t head = first; head < first + shape_.kv_heads; ++head) parts = std::max(parts, parts_of(head));
  if (token && (parts == 1 || pass.feed != Feed::none || selects_)) {
    executor().parallel_for(shape_.kv_heads, [&](std::size_t head) { token_pass(pass, positions, first + head); });
    if (acts_alone_) return finish_layer(layer, pass.event);
    return act(layer, pass.event);
  }

  executor().parallel_for(shape_.kv_heads, [&](std::size_t head) { append_head(pass, first + head, positions); });
  if (pass.event != Event::decode && needs_.query_window != 0)
    remember_window(state, pass.tokens->q, needs_.query_window);
  parts > 1 ? attend_parts(pass, parts) : attend_tokens(pass);
  if (observes_ || pass.feed != Feed::none)
    executor().parallel_for(shape_.kv_heads, [&](std::size_t head) {
      observe_head(pass, first + head, heads_[first + head].size() - count);
    });
  act(layer, pass.event);
}

/// The head that will be read after this one; null if other threads may be writing to it, or take it.
inline const HeadStore* CacheCore::Impl::next_head(const Pass& pass, std::size_t head) const {
  return pass.serial && (head + 1) % shape_.kv_heads != 0 ? &heads_[head + 1] : nullptr;
}

/// One token of one head, from append to the policy's act, on one thread.
inline void CacheCore::Impl::token_pass(const Pass& pass, std::span<const Position> positions, std::size_t head) {
  append_head(pass, head, positions);
  const std::size_t group = shape_.group(), value_dim = shape_.values_dim(), local = head % shape_.kv_heads;
  HeadStore& store = heads_[head];
  HeadWork& memory = work(head);
  auto query_memory = detail::scratch<struct TokenQueries>(group * shape_.head_dim);
  attention::Queries queries = attention::load_queries(shape_, pass.tokens->q, local, query_memory);
  std::int32_t shift = 0;
  if (in_cache_) {
    load_shifts(store, 1, {&shift, 1});
    queries.shifts = {&shift, 1};
  }
  const auto selected = select(head, pass.tokens->q.columns(local * group * shape_.head_dim, group * shape_.head_dim));
  const attention::HeadReader reader(store, settings(), selected, next_head(pass, head));

  const std::size_t rows = reader.rows();
  attention::KeptScores kept;
  if (pass.feed != Feed::none) kept = attention::room_for_scores(group, rows);
  auto state_memory = detail::scratch<struct TokenState>(attention::Partial::floats(group, value_dim));
  auto state = attention::Partial::empty_in(state_memory, group, value_dim);
  if (pass.feed == Feed::none && selected.empty())
    attend_token(reader, queries, state);
  else
    attention::attend(reader, 0, rows, queries, rows, state, kept);
  for (std::size_t g = 0; g < group; ++g)
    state.finish(g, pass.out[0].subspan((local * group + g) * value_dim, value_dim));
  if (pass.feed != Feed::none) {
    const std::size_t shown = attention_rows(pass);
    auto probabilities = detail::scratch<struct TokenAttention>(shown * store.size());
    attention::kept_probabilities(store, kept, state, pass.feed == Feed::group_sums, probabilities);
    memory.attention = {probabilities.data(), shown, store.size()};
  }
  observe_head(pass, head, store.size() - 1);
  if (acts_alone_) act_alone(head, pass.event);
}

/// Adds all rows of a head, part by part as attend_parts does, so that the result is the same whoever shares the work.
inline void CacheCore::Impl::attend_token(const attention::HeadReader& reader, const attention::Queries& queries,
                                          attention::Partial& state) const {
  const std::size_t rows = reader.rows();
  if (rows <= detail::PartRows || !reader.head().in_step())
    return attention::attend(reader, 0, rows, queries, rows, state);
  attention::attend(reader, 0, detail::PartRows, queries, rows, state);
  const std::size_t value_dim = shape_.values_dim();
  auto memory = detail::scratch<struct TokenPart>(attention::Partial::floats(queries.rows(), value_dim));
  for (std::size_t begin = detail::PartRows; begin < rows; begin += detail::PartRows) {
    auto part = attention::Partial::empty_in(memory, queries.rows(), value_dim);
    attention::attend(reader, begin, std::min(begin + detail::PartRows, rows), queries, rows, part);
    state.merge(part);
  }
}

/// Rows of Observation::attention that column sums take.
inline std::size_t CacheCore::Impl::attention_rows(const Pass& pass) const {
  return pass.feed == Feed::group_sums ? 1 : shape_.group();
}

/// Where the last `tokens` tokens stand in the cache, minus their positions in the text.
inline void CacheCore::Impl::load_shifts(const HeadStore& head, std::size_t tokens,
                                         std::span<std::int32_t> shifts) const {
  const std::size_t first = head.size() - tokens;
  for (std::size_t t = 0; t < tokens; ++t) shifts[t] = static_cast<std::int32_t>(first + t) - head.position(first + t);
}

/// Causal attention of all tokens of the pass, tile by tile of queries, and what policies will ask of it.
inline void CacheCore::Impl::attend_tokens(const Pass& pass) {
  for (HeadWork& memory : work_) memory.window_tokens = 0;
  if (pass.feed == Feed::sums || pass.feed == Feed::group_sums) {
    attend_strips(pass);
  } else if (pass.out.data != nullptr) {
    const std::size_t tokens = pass.tokens->q.count, window = needs_.query_window;
    const bool asks = pass.event == Event::prompt_end && window != 0 && window <= tokens;
    const std::size_t tiled = asks ? tokens - window : tokens, windows = asks ? shape_.kv_heads : 0;
    std::size_t at_once = attention::ChunkRows;  // key rows; a head out of step scores all of them
    for (std::size_t head = first_head(pass.layer); head < first_head(pass.layer) + shape_.kv_heads; ++head)
      if (!heads_[head].in_step()) at_once = std::max(at_once, heads_[head].keys().rows());
    const std::size_t tile_tokens = attention::tile_tokens(tiled, shape_.group(), at_once);
    const std::size_t tiles = divide_up(tiled, tile_tokens);
    executor().parallel_for(windows + shape_.kv_heads * tiles, [&](std::size_t task) {
      if (task < windows) return attend_window(pass, task, window);
      // The longest tiles first: they decide when the last thread is done.
      const std::size_t tile = tiles - 1 - (task - windows) / shape_.kv_heads, first = tile * tile_tokens;
      attend_tile(pass, task % shape_.kv_heads, first, std::min(tile_tokens, tiled - first), nullptr, 0);
    });
  }
  if (pass.feed == Feed::rows) observe_rows(pass);
}

/// The last `window` tokens of the pass; their column sums are kept for HeadView::window_sums, which adds them up in the same
/// order if it has to compute them.
inline void CacheCore::Impl::attend_window(const Pass& pass, std::size_t local, std::size_t window) {
  const std::size_t head = first_head(pass.layer) + local, tokens = pass.tokens->q.count, group = shape_.group();
  const HeadStore& store = heads_[head];
  const std::size_t slots = store.size();
  HeadWork& memory = work_[local];
  const bool keeps = attention::rows_are_slots(store);
  memory.window_sums.assign(keeps ? group * slots : 0, 0.0f);
  const std::size_t step = attention::tile_tokens(window, group, slots);
  for (std::size_t first = tokens - window; first < tokens; first += step)
    attend_tile(pass, local, first, step, keeps ? memory.window_sums.data() : nullptr, slots);
  memory.window_tokens = keeps ? window : 0;
  memory.window_head = head;
}

/// The tokens [first, first + most) of the pass, as many as there are. Unless `sums` is null, adds what they gave each key
/// row to it [attention_rows(pass), stride].
inline void CacheCore::Impl::attend_tile(const Pass& pass, std::size_t local, std::size_t first, std::size_t most,
                                         float* sums, std::size_t stride) {
  const std::size_t group = shape_.group(), value_dim = shape_.values_dim(), tokens = pass.tokens->q.count,
                    count = std::min(most, tokens - first);
  const HeadStore& store = heads_[first_head(pass.layer) + local];
  auto query_memory = detail::scratch<struct TileQueries>(count * group * shape_.head_dim);
  attention::Queries queries =
      attention::load_queries(shape_, pass.tokens->q.subrows(first, count), local, query_memory);
  auto shifts = detail::scratch<struct TileShifts, std::int32_t>(tokens);
  if (in_cache_) {
    load_shifts(store, tokens, shifts);
    queries.shifts = shifts.subspan(first, count);
  }
  const attention::HeadReader reader(store, settings());
  const std::size_t rows = queries.rows(), limit_first = reader.rows() - tokens + 1 + first;
  const std::size_t end = store.in_step() ? limit_first + count - 1 : reader.rows();
  attention::KeptScores kept;
  if (sums) kept = attention::room_for_scores(rows, end);
  auto state_memory = detail::scratch<struct TileState>(attention::Partial::floats(rows, value_dim));
  auto state = attention::Partial::empty_in(state_memory, rows, value_dim);
  float* values = state.values;
  if (pass.out.data == nullptr) state.values = nullptr;
  attention::attend(reader, 0, end, queries, limit_first, state, kept);
  state.values = values;
  if (pass.out.data != nullptr)
    for (std::size_t row = 0; row < rows; ++row)
      state.finish(row, pass.out[first + row / group].subspan((local * group + row % group) * value_dim, value_dim));
  if (sums) attention::add_kept_sums(kept, state, end, attention_rows(pass), sums, stride);
}

/// Attention with the column sums that policies want: every strip takes each `strips`-th tile and adds up its own sums, so
/// that they are the same however many threads share the strips.
inline void CacheCore::Impl::attend_strips(const Pass& pass) {
  const std::size_t tokens = pass.tokens->q.count, first = first_head(pass.layer), kept_rows = attention_rows(pass);
  std::size_t most = 1;
  for (std::size_t local = 0; local < shape_.kv_heads; ++local)
    most = std::max(most, heads_[first + local].keys().rows());
  const std::size_t tile_tokens = attention::tile_tokens(tokens, shape_.group(), most);
  const std::size_t tiles = divide_up(tokens, tile_tokens), strips = std::min(detail::Strips, tiles);
  const std::size_t strip_floats = kept_rows * most;
  sums_.resize(shape_.kv_heads * strips * strip_floats);
  executor().parallel_for(shape_.kv_heads * strips, [&](std::size_t task) {
    const std::size_t strip = task / shape_.kv_heads, local = task % shape_.kv_heads;
    float* sums = sums_.data() + (local * strips + strip) * strip_floats;
    std::fill_n(sums, strip_floats, 0.0f);
    for (std::size_t tile = strip; tile < tiles; tile += strips)
      attend_tile(pass, local, (tiles - 1 - tile) * tile_tokens, tile_tokens, sums, most);
  });
  executor().parallel_for(shape_.kv_heads, [&](std::size_t local) {
    HeadWork& memory = work_[local];
    const HeadStore& store = heads_[first + local];
    memory.prompt_attention.assign(kept_rows * store.size(), 0.0f);
    memory.attention = {memory.prompt_attention.data(), kept_rows, store.size()};
    float* sums = sums_.data() + local * strips * strip_floats;
    for (std::size_t strip = 1; strip < strips; ++strip)
      for (std::size_t i = 0; i < strip_floats; ++i) sums[i] += sums[strip * strip_floats + i];
    for (std::size_t row = 0; row < kept_rows && strips != 0; ++row)
      attention::to_slots(store, sums + row * most, memory.prompt_attention.data() + row * store.size());
  });
}

/// One token over heads so long that several threads share one.
inline void CacheCore::Impl::attend_parts(const Pass& pass, std::size_t parts) {
  const std::size_t group = shape_.group(), value_dim = shape_.values_dim(), first = first_head(pass.layer);
  const std::size_t floats = attention::Partial::floats(group, value_dim);
  partials_.resize(shape_.kv_heads * parts * floats);
  const auto part_of = [&](std::size_t task) { return std::span<float>(partials_).subspan(task * floats, floats); };
  const auto state_in = [&](std::size_t task) {
    float* memory = part_of(task).data();
    const std::size_t stride = round_up(value_dim, TileLanes);
    return attention::Partial{memory + group * stride, memory + group * stride + group, memory, group, stride};
  };
  executor().parallel_for(shape_.kv_heads * parts, [&](std::size_t task) {
    const std::size_t local = task / parts, part = task % parts;
    const HeadStore& store = heads_[first + local];
    auto query_memory = detail::scratch<struct PartQueries>(group * shape_.head_dim);
    attention::Queries queries = attention::load_queries(shape_, pass.tokens->q, local, query_memory);
    std::int32_t shift = 0;
    if (in_cache_) {
      load_shifts(store, 1, {&shift, 1});
      queries.shifts = {&shift, 1};
    }
    const attention::HeadReader reader(store, settings(), {}, next_head(pass, first + local));
    auto state = attention::Partial::empty_in(part_of(task), group, value_dim);
    const std::size_t begin = part * detail::PartRows, rows = reader.rows();
    if (!store.in_step()) {
      if (part == 0) attention::attend(reader, 0, rows, queries, rows, state);
    } else if (begin < rows) {
      attention::attend(reader, begin, std::min(begin + detail::PartRows, rows), queries, rows, state);
    }
  });
  executor().parallel_for(shape_.kv_heads, [&](std::size_t local) {
    attention::Partial whole = state_in(local * parts);
    for (std::size_t part = 1; part < parts; ++part) whole.merge(state_in(local * parts + part));
    for (std::size_t g = 0; g < group; ++g)
      whole.finish(g, pass.out[0].subspan((local * group + g) * value_dim, value_dim));
  });
}

/// Observation::attention as every query's row of probabilities: a second look at the scores.
inline void CacheCore::Impl::observe_rows(const Pass& pass) {
  const std::size_t group = shape_.group(), tokens = pass.tokens->q.count, first = first_head(pass.layer);
  executor().parallel_for(shape_.kv_heads, [&](std::size_t local) {
    HeadWork& memory = work_[local];
    const HeadStore& store = heads_[first + local];
    std::vector<float> query_memory(tokens * group * shape_.head_dim);
    attention::Queries queries = attention::load_queries(shape_, pass.tokens->q, local, query_memory);
    std::vector<std::int32_t> shifts(in_cache_ ? tokens : 0);
    if (in_cache_) load_shifts(store, tokens, shifts);
    queries.shifts = shifts;
    memory.prompt_attention.resize(tokens * group * store.size());
    memory.attention = {memory.prompt_attention.data(), tokens * group, store.size()};
    const attention::HeadReader reader(store, settings());
    attention::slot_logits(reader, queries, store.size() - tokens + 1, memory.prompt_attention);
    attention::softmax_rows(memory.prompt_attention, tokens * group, store.size());
  });
}

inline void CacheCore::Impl::remember_window(LayerState& state, ConstRows queries, std::size_t capacity) const {
  const std::size_t dim = shape_.query_heads * shape_.head_dim;
  const std::size_t fresh = std::min(capacity, queries.count), old = std::min(state.window_tokens, capacity - fresh);
  std::vector<float> window((old + fresh) * dim);
  std::copy_n(state.window.data() + (state.window_tokens - old) * dim, old * dim, window.data());
  for (std::size_t t = 0; t < fresh; ++t)
    std::ranges::copy(queries[queries.count - fresh + t], window.begin() + std::ptrdiff_t((old + t) * dim));
  state.window = std::move(window);
  state.window_tokens = old + fresh;
}

/// The slots a read-time selector wants for this query group; none: all of them.
inline std::span<const std::uint8_t> CacheCore::Impl::select(std::size_t head, ConstRows queries) {
  if (!selects_) return {};
  HeadWork& memory = work(head);
  memory.selection.reset(heads_[head].size());
  detail::HeadFeed feed = feed_of(head);
  for (std::size_t stage = 0; stage < stages_.size(); ++stage)
    if (stages_[stage]->verbs().select)
      stages_[stage]->select(any_head(stage, head, Event::decode, feed),
                             {queries.data, shape_.group(), shape_.head_dim}, memory.selection);
  const auto chosen = memory.selection.chosen();
  return detail::first_unset(chosen) == chosen.size() ? std::span<const std::uint8_t>() : chosen;
}

}  // namespace kvc
