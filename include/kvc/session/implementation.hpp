#pragma once
/// save() and load(): in a header-only build kvc/session.hpp includes this, with KVC_COMPILED one file of the program does, through
/// kvc/implementation.hpp.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kvc/cache/calls.hpp"
#include "kvc/session/load_head.hpp"
#include "kvc/session/sections.hpp"

namespace kvc::inline KVC_ABI {

namespace session {

/// What waits for a decision is no part of a session.
inline void check_rests(const cache::Inside& in, const LayerRange& layers) {
  cache::check_no_drafts(in, "save");
  for (std::size_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
    const cache::LayerState& state = in.layers[layer];
    bool open = state.prompt_tokens != 0 || state.window_tokens != 0;
    for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head)
      for (const auto& memory : in.memory[head].states) open |= memory->has_prompt();
    if (open)
      fail(ErrorCode::invalid_argument,
           {"save: a prompt is open in layer ", layer,
            ", and what policies remember of it is no part of a session; call save() after its last part, or after "
            "compress(), which ends it"});
  }
}
/// Layers that share rows belong together.
inline void check_pairs(const cache::Inside& in, const LayerRange& layers, const char* call) {
  for (const std::size_t upper : {layers.first, layers.first + layers.count})
    if (cache::is_pair(in, upper))
      fail(ErrorCode::incompatible, {call, ": SessionOptions::layers: layers ", upper - 1, " and ", upper,
                                     " share rows, so they are saved and loaded together"});
}

inline void save_layer(const cache::Inside& in, std::size_t layer, SharedBlocks& shared, SectionWriter& writer) {
  const cache::LayerState& state = in.layers[layer];
  Packer packer;
  packer.put_size(state.seen);
  for (const Position position : {state.next_position, state.changed_at, state.merged_until})
    packer.put_size(static_cast<std::size_t>(position));
  std::vector<const Block*> blocks;
  for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head)
    put_head(packer, in, head, shared, blocks);
  writer.whole(Kind::layer, packer.bytes());
  std::uint64_t bytes = 0;
  for (const Block* block : blocks) bytes += block->bytes();
  writer.begin(Kind::rows, bytes);
  for (const Block* block : blocks) writer.add({block->data(), block->bytes()});
  writer.end();
}

inline std::uint64_t save_cache(const cache::Inside& in, ByteSink sink, const SessionOptions& options) {
  const LayerRange layers = layers_of(in, options.layers, "save");
  check_rests(in, layers);
  check_pairs(in, layers, "save");
  SectionWriter writer(sink);
  writer.whole(Kind::heading, heading_of(in, layers, options.policy).bytes());
  SharedBlocks shared;
  for (std::size_t layer = layers.first; layer < layers.first + layers.count; ++layer)
    save_layer(in, layer, shared, writer);
  return writer.written();
}

/// Reads the rows of a layer, block by block, so that no more memory is taken than bytes come.
inline void load_rows(cache::Inside& in, std::vector<AwaitedBlock>& awaited, std::uint64_t bytes, SharedBlocks& shared,
                      SectionReader& reader) {
  std::uint64_t expected = 0;
  for (const AwaitedBlock& block : awaited) expected += block.codec->block_bytes(block.capacity);
  if (bytes != expected)
    fail(ErrorCode::bad_file, {"load: ", reader.where(), " has ", bytes, " bytes, but its blocks have ", expected});
  for (AwaitedBlock& each : awaited) {
    auto block = Block::make(std::move(each.codec), each.capacity, in.block_memory, Block::Content::unwritten);
    reader.read({block->data(), block->bytes()});
    if (each.shared) shared.loaded.push_back(block);
    each.table->segments[each.segment].block = std::move(block);
  }
  reader.end();
}

/// Asks every policy whether it can work with what was loaded. An index that is made anew before it is read need not be right.
inline void check_memory(cache::Inside& in, const LayerRange& layers) {
  const WorkspacePool::Lease workspace(*in.workspaces);
  for (std::size_t head = in.first_head(layers.first); head < in.first_head(layers.first + layers.count); ++head) {
    Workspace::Frame frame(*workspace);
    cache::HeadFeed feed(in, head, frame);
    for (std::size_t node = 0; node < in.nodes.size(); ++node) {
      if (!cache::works_on(in, node, in.layer_of(head))) continue;
      if (in.nodes[node].verbs.index && in.memory[head].index_from != Unlimited) continue;
      const Stage& stage = *in.nodes[node].stage;
      if (stage.accepts(cache::any_head(in, node, head, Event::decode, feed))) continue;
      const HeadId id = in.id_of(head);
      fail(ErrorCode::bad_file, {"load: layer ", id.layer, ", head ", id.head, " is damaged: ",
                                 plain_name(stage.type().text), " does not accept its memory of the head"});
    }
  }
}

/// The numbers that positions are read from where they are the slots' own.
inline void fill_ramp(cache::Inside& in) {
  std::size_t longest = 0;
  for (const HeadStore& store : in.heads)
    if (store.slots().positions().identity() && store.size() != 0) longest = std::max(longest, store.size() + 1);
  in.ramp.reserve(longest);
  while (in.ramp.size() < longest) in.ramp.push_back(static_cast<Position>(in.ramp.size()));
}

/// What was loaded takes its place. Nothing here can fail.
inline void put_in_place(cache::Inside& in, cache::Inside& loaded, const LayerRange& layers) noexcept {
  for (std::size_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
    in.layers[layer] = std::move(loaded.layers[layer]);
    for (std::size_t head = in.first_head(layer); head < in.first_head(layer) + in.shape.kv_heads; ++head) {
      in.heads[head] = std::move(loaded.heads[head]);
      in.memory[head] = std::move(loaded.memory[head]);
    }
  }
  if (loaded.ramp.size() > in.ramp.size()) in.ramp.swap(loaded.ramp);
  for (attention::HeadAttention& attention : in.attention) attention.window_tokens = 0;
}

inline std::uint64_t load_cache(cache::Inside& in, ByteSource source, const SessionOptions& options) {
  const LayerRange layers = layers_of(in, options.layers, "load");
  check_pairs(in, layers, "load");
  SectionReader reader(source);
  {
    const std::vector<std::byte> heading = reader.whole(Kind::heading, "the heading");
    Unpacker from(heading, "the heading");
    HeadingCheck(from, in).run(layers, options.policy);
  }
  const std::unique_ptr<cache::Inside> loaded = cache::sibling_of(in);
  cache::fill_empty(*loaded);
  SharedBlocks shared;
  for (std::size_t layer = layers.first; layer < layers.first + layers.count; ++layer) {
    const std::string where = joined({"layer ", layer});
    const std::vector<std::byte> content = reader.whole(Kind::layer, where);
    Unpacker from(content, where);
    std::vector<AwaitedBlock> awaited = LayerLoader(*loaded, from, shared).run(layer);
    const std::uint64_t bytes = reader.begin(Kind::rows, joined({"the rows of layer ", layer}));
    load_rows(*loaded, awaited, bytes, shared, reader);
  }
  fill_ramp(*loaded);
  check_memory(*loaded, layers);
  put_in_place(in, *loaded, layers);
  return reader.taken();
}

}  // namespace session

KVC_FORWARD std::uint64_t save(const CacheCore& cache, ByteSink sink, const SessionOptions& options) {
  const cache::Inside& in = *cache.inside_;
#if defined(__cpp_exceptions)
  try {
    return session::save_cache(in, sink, options);
  } catch (const std::bad_alloc&) {
    fail(ErrorCode::out_of_memory, "save: memory was refused; what the sink has is no whole session");
  }
#else
  return session::save_cache(in, sink, options);
#endif
}
KVC_FORWARD std::uint64_t load(CacheCore& cache, ByteSource source, const SessionOptions& options) {
  return cache::guarded("load", [&] { return session::load_cache(*cache.inside_, source, options); });
}

}  // namespace kvc::inline KVC_ABI
