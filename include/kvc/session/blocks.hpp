#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "kvc/cache/inside.hpp"
#include "kvc/session/options.hpp"
#include "kvc/session/wire.hpp"

// Which codec a block is of, in a way that another cache understands; and which blocks two layers share.
namespace kvc::inline KVC_ABI::session {

/// One side of a head.
struct Side {
  std::size_t head = 0;
  Role role = Role::key;

  const RowTable& in(const cache::Inside& in) const {
    const HeadStore& store = in.heads[head];
    return (role == Role::key ? store.keys() : store.values()).table();
  }
};

/// A codec as one of those that a head's streams have. Directions that two layers share are of either layer's.
struct CodecPlace {
  enum class Whose : std::uint8_t { own, below, above };
  enum class Which : std::uint8_t { plain, wide, sealed };

  Whose whose = Whose::own;
  Which which = Which::plain;
  std::uint8_t number = 0;  ///< of sealed ones: the class of precision
  bool of_rows = false;     ///< what Codec::of_rows makes of that for as many rows as the block has room for
};

inline bool has_head(const cache::Inside& in, const Side& side, CodecPlace::Whose whose) {
  if (whose == CodecPlace::Whose::below) return side.head >= in.shape.kv_heads;
  return whose == CodecPlace::Whose::own || side.head + in.shape.kv_heads < in.heads.size();
}
inline Side side_of(const cache::Inside& in, const Side& side, CodecPlace::Whose whose) {
  if (whose == CodecPlace::Whose::own) return side;
  const std::size_t other = in.shape.kv_heads;
  return {whose == CodecPlace::Whose::below ? side.head - other : side.head + other, side.role};
}

/// The codec at a place; null if there is none.
inline std::shared_ptr<const Codec> codec_at(const cache::Inside& in, const Side& side, const CodecPlace& place,
                                             std::size_t capacity) {
  if (!has_head(in, side, place.whose)) return nullptr;
  const RowTable& table = side_of(in, side, place.whose).in(in);
  std::shared_ptr<const Codec> codec;
  if (place.which == CodecPlace::Which::plain) codec = table.plain;
  if (place.which == CodecPlace::Which::wide) codec = table.wide;
  if (place.which == CodecPlace::Which::sealed && place.number < table.sealed.size())
    codec = table.sealed[place.number].codec;
  return codec && place.of_rows ? codec->of_rows(capacity) : codec;
}

/// Calls visit(place) for the places of all codecs that a block of this side may be of, until it returns true.
template <class Visit>
bool any_place(const cache::Inside& in, const Side& side, Visit visit) {
  for (const auto whose : {CodecPlace::Whose::own, CodecPlace::Whose::below, CodecPlace::Whose::above}) {
    if (!has_head(in, side, whose)) continue;
    const std::size_t classes = side_of(in, side, whose).in(in).sealed.size();
    if (visit(CodecPlace{whose, CodecPlace::Which::plain}) || visit(CodecPlace{whose, CodecPlace::Which::wide}))
      return true;
    for (std::size_t number = 0; number < classes; ++number)
      if (visit(CodecPlace{whose, CodecPlace::Which::sealed, static_cast<std::uint8_t>(number)})) return true;
  }
  return false;
}

/// Whether another codec reads a block as its own does.
inline bool reads_alike(const Block& block, const Codec& other) {
  const Codec& own = block.codec();
  const std::size_t capacity = block.capacity();
  if (own.name() != other.name() || own.granule() != other.granule() || own.dim() != other.dim() ||
      own.block_bytes(capacity) != other.block_bytes(capacity))
    return false;
  std::vector<float> a(capacity * own.dim()), b(capacity * own.dim());
  own.decode(block.data(), capacity, 0, {a.data(), capacity, own.dim()});
  other.decode(block.data(), capacity, 0, {b.data(), capacity, own.dim()});
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Where a block's codec stands. Throws Error(incompatible) where it is none of the streams'.
inline CodecPlace place_of(const cache::Inside& in, const Side& side, const Block& block) {
  CodecPlace found;
  const auto is_its = [&](const CodecPlace& place) {
    found = place;
    return codec_at(in, side, place, block.capacity()).get() == &block.codec();
  };
  if (any_place(in, side, is_its)) return found;
  const auto makes_it = [&](CodecPlace place) {
    place.of_rows = true;
    found = place;
    const auto made = codec_at(in, side, place, block.capacity());
    return made && reads_alike(block, *made);
  };
  if (any_place(in, side, makes_it)) return found;
  const auto is_like_it = [&](const CodecPlace& place) {
    found = place;
    const auto codec = codec_at(in, side, place, block.capacity());
    return codec && reads_alike(block, *codec);
  };
  if (any_place(in, side, is_like_it)) return found;
  const HeadId id = in.id_of(side.head);
  fail(ErrorCode::incompatible, {"save: layer ", id.layer, ", head ", id.head, " has a block of ", block.codec().name(),
                                 ", which none of the head's streams makes"});
}

/// The blocks that two layers, or two forks, share, by numbers that both know.
class SharedBlocks {
 public:
  SharedBlocks() = default;
  /// Finds what caches that are saved together share.
  SharedBlocks(std::span<const cache::Inside* const> caches, const LayerRange& layers) {
    if (caches.size() < 2) return;
    std::map<const Block*, std::size_t> last;  // the last cache that was seen to have it
    for (std::size_t number = 0; number < caches.size(); ++number)
      for_each_segment(*caches[number], layers, [&](const Segment& segment) {
        const auto [entry, is_new] = last.emplace(segment.block.get(), number);
        if (!is_new && entry->second != number) forked_.insert(segment.block.get());
        entry->second = number;
      });
  }
  /// Whether a segment's block is one that somebody else may read too.
  bool has(const Segment& segment) const { return segment.norms || forked_.contains(segment.block.get()); }

  /// The number of a block that is saved, and whether it is new.
  std::pair<std::size_t, bool> number_of(const Block& block) {
    const auto [entry, is_new] = numbers_.emplace(&block, numbers_.size());
    return {entry->second, is_new};
  }

  /// Blocks that are loaded, in the order of their numbers.
  std::vector<std::shared_ptr<Block>> loaded;

 private:
  template <class Visit>
  static void for_each_segment(const cache::Inside& in, const LayerRange& layers, Visit visit) {
    for (std::size_t head = in.first_head(layers.first); head < in.first_head(layers.first + layers.count); ++head)
      for (const Role role : {Role::key, Role::value})
        for (const Segment& segment : Side{head, role}.in(in).segments.all()) visit(segment);
  }

  std::map<const Block*, std::size_t> numbers_;
  std::set<const Block*> forked_;
};

}  // namespace kvc::inline KVC_ABI::session
