#pragma once
#include <cstddef>
#include <span>

#include "kvc/attention/layer_pass.hpp"

// Attention of queries whose tokens are in no cache.
namespace kvc::inline KVC_ABI::attention {

/// Each of the queries [tokens, query_heads * head_dim] sees every slot of its head that the next token sees, which comes to the
/// position `next`. `lse` is empty, or [tokens, query_heads].
inline void attend_all(std::span<const HeadStore> heads, const Settings& settings, Position next, ConstRows queries,
                       Rows<float> out, std::span<float> lse, Workspace& workspace) {
  const CacheShape& shape = *settings.shape;
  const std::size_t group = shape.group();
  const LayerPass pass{
      .heads = heads, .settings = settings, .queries = queries, .out = out, .lse = lse, .in_turn = true};
  for (std::size_t head = 0; head < heads.size(); ++head) {
    const HeadStore& store = heads[head];
    Workspace::Frame reading(workspace);
    const HeadReader reader(store, settings, reading, {}, pass.after(head));
    const auto shift = static_cast<std::int32_t>(store.size()) - next;
    for (std::size_t t = 0; t < queries.count; ++t) {
      Workspace::Frame frame(workspace);
      Queries one = load_queries(settings, queries.subrows(t, 1), head, frame.take(group * shape.head_dim));
      if (settings.in_cache) one.shifts = {&shift, 1};
      one.positions = {&next, 1};
      Partial state = start_state(store, one, frame);
      PreparedQueries prepared = reader.prepare(one, frame);
      attend(reader, 0, reader.rows(), prepared, reader.rows(), state);
      write_out(pass, head, t, state);
    }
  }
}

}  // namespace kvc::inline KVC_ABI::attention
