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
  for (std::size_t layer = layers.first; layer < layers.first + layers.count; ++layer)
    if (cache::has_open_prompt(in, layer))
      fail(ErrorCode::invalid_argument,
           {"save: a prompt is open in layer ", layer,
            ", and what policies remember of it is no part of a session; call save() after its last part, or after "
            "compress(), which ends it"});
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
  for (const Block* block : blocks) bytes += round_up(block->bytes(), BlockAlignment);
  const std::uint64_t behind = writer.written() + SectionWriter::HeadBytes + sizeof(std::uint64_t);
  const std::size_t before = static_cast<std::size_t>(-behind % BlockAlignment);
  Packer zeros;
  zeros.put<std::uint64_t>(before);
  writer.begin(Kind::rows, zeros.bytes().size() + before + bytes);
  writer.add(zeros.bytes());
  writer.add_zeros(before);
  for (const Block* block : blocks) {
    writer.add({block->data(), block->bytes()});
    writer.add_zeros(round_up(block->bytes(), BlockAlignment) - block->bytes());
  }
  writer.end();
}

/// Forks have the same stages, and blocks out of the same memory.
inline void check_forks(std::span<const cache::Inside* const> caches, const char* call) {
  if (caches.empty()) fail(ErrorCode::invalid_argument, {call, ": no cache was given"});
  const cache::Inside& first = *caches.front();
  for (std::size_t i = 1; i < caches.size(); ++i) {
    if (caches[i]->stages != first.stages || caches[i]->block_memory != first.block_memory)
      fail(ErrorCode::invalid_argument, {call, ": caches 0 and ", i, " are not forks of the same cache"});
    if (std::find(caches.begin(), caches.begin() + static_cast<std::ptrdiff_t>(i), caches[i]) !=
        caches.begin() + static_cast<std::ptrdiff_t>(i))
      fail(ErrorCode::invalid_argument, {call, ": cache ", i, " was given twice"});
  }
}

inline std::uint64_t save_caches(std::span<const cache::Inside* const> caches, ByteSink sink,
                                 const SessionOptions& options) {
  check_forks(caches, "save");
  const LayerRange layers = layers_of(*caches.front(), options.layers, "save");
  for (const cache::Inside* in : caches) {
    check_rests(*in, layers);
    check_pairs(*in, layers, "save");
  }
  SectionWriter writer(sink);
  writer.whole(Kind::heading, heading_of(*caches.front(), layers, caches.size(), options.policy).bytes());
  SharedBlocks shared(caches, layers);
  for (const cache::Inside* in : caches)
    for (std::size_t layer = layers.first; layer < layers.first + layers.count; ++layer)
      save_layer(*in, layer, shared, writer);
  return writer.written();
}

/// Reads the rows of a layer, block by block, so that no more memory is taken than bytes come.
inline void load_rows(cache::Inside& in, std::vector<AwaitedBlock>& awaited, std::uint64_t bytes, SharedBlocks& shared,
                      SectionReader& reader, const std::shared_ptr<const void>& owner) {
  std::uint64_t zeros = 0, expected = sizeof(zeros);
  reader.read(std::as_writable_bytes(std::span(&zeros, 1)));
  for (const AwaitedBlock& block : awaited)
    expected += round_up(block.codec->block_bytes(block.capacity), BlockAlignment);
  if (zeros >= BlockAlignment)
    fail(ErrorCode::bad_file, {"load: ", reader.where(), " begins with ", zeros, " bytes before its blocks, where ",
                               BlockAlignment - 1, " can be needed at most"});
  expected += zeros;
  if (bytes != expected)
    fail(ErrorCode::bad_file, {"load: ", reader.where(), " has ", bytes, " bytes, but its blocks have ", expected});
  reader.skip(static_cast<std::size_t>(zeros));
  for (AwaitedBlock& each : awaited) {
    const std::size_t size = each.codec->block_bytes(each.capacity);
    std::shared_ptr<Block> block;
    if (const std::byte* const lying = reader.borrow(size)) {
      block = Block::lend(std::move(each.codec), each.capacity, in.block_memory, lying, owner);
    } else {
      block = Block::make(std::move(each.codec), each.capacity, in.block_memory, Block::Content::unwritten);
      reader.read({block->data(), size});
    }
    reader.skip(round_up(size, BlockAlignment) - size);
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

inline void load_layer(cache::Inside& loaded, std::size_t layer, SharedBlocks& shared, SectionReader& reader,
                       const std::shared_ptr<const void>& owner) {
  const std::string where = joined({"layer ", layer});
  const std::vector<std::byte> content = reader.whole(Kind::layer, where);
  Unpacker from(content, where);
  std::vector<AwaitedBlock> awaited = LayerLoader(loaded, from, shared).run(layer);
  const std::uint64_t bytes = reader.begin(Kind::rows, joined({"the rows of layer ", layer}));
  load_rows(loaded, awaited, bytes, shared, reader, owner);
}

inline std::uint64_t load_caches(std::span<cache::Inside* const> caches, const SessionSource& source,
                                 const SessionOptions& options) {
  check_forks(std::vector<const cache::Inside*>(caches.begin(), caches.end()), "load");
  const cache::Inside& first = *caches.front();
  const LayerRange layers = layers_of(first, options.layers, "load");
  check_pairs(first, layers, "load");
  SectionReader reader = source.source() ? SectionReader(*source.source()) : SectionReader(source.memory().bytes);
  {
    const std::vector<std::byte> heading = reader.whole(Kind::heading, "the heading");
    Unpacker from(heading, "the heading");
    HeadingCheck(from, first).run(layers, caches.size(), options.policy);
  }
  std::vector<std::unique_ptr<cache::Inside>> loaded;
  loaded.push_back(cache::sibling_of(first));
  cache::fill_empty(*loaded.front());
  while (loaded.size() < caches.size()) loaded.push_back(cache::fork_inside(*loaded.front()));
  SharedBlocks shared;
  for (const std::unique_ptr<cache::Inside>& each : loaded) {
    for (std::size_t layer = layers.first; layer < layers.first + layers.count; ++layer)
      load_layer(*each, layer, shared, reader, source.memory().owner);
    fill_ramp(*each);
    check_memory(*each, layers);
  }
  for (std::size_t i = 0; i < caches.size(); ++i) put_in_place(*caches[i], *loaded[i], layers);
  return reader.taken();
}

}  // namespace session

KVC_FORWARD std::uint64_t save(std::span<const CacheCore* const> forks, ByteSink sink, const SessionOptions& options) {
  const auto run = [&] {
    std::vector<const cache::Inside*> caches;
    for (const CacheCore* fork : forks) caches.push_back(fork->inside_.get());
    return session::save_caches(caches, sink, options);
  };
#if defined(__cpp_exceptions)
  try {
    return run();
  } catch (const std::bad_alloc&) {
    fail(ErrorCode::out_of_memory, "save: memory was refused; what the sink has is no whole session");
  }
#else
  return run();
#endif
}
KVC_FORWARD std::uint64_t load(std::span<CacheCore* const> forks, const SessionSource& source,
                               const SessionOptions& options) {
  return cache::guarded("load", [&] {
    std::vector<cache::Inside*> caches;
    for (CacheCore* fork : forks) caches.push_back(fork->inside_.get());
    return session::load_caches(caches, source, options);
  });
}

}  // namespace kvc::inline KVC_ABI
