#pragma once
#include <cstddef>
#include <optional>
#include <vector>

#include "kvc/format.hpp"

namespace kvc::inline KVC_ABI {

/// When and how the keys, or the values, of a head are sealed into their codec's blocks. After every pass the oldest dense
/// slots are sealed, `batch` at a time, as long as that spares the first `sinks` and the newest `recent` slots.
/// Keys and values seal apart: of 100 tokens KIVI (R = 32) holds 96 sealed keys (batch 32) and 68 sealed values (recent 32).
struct Stream {
  /// Format of sealed rows. None: rows stay dense in the cache's own type. A Dense format is never sealed: it only
  /// chooses the element type in which rows are stored from the start.
  std::optional<Format> format = std::nullopt;
  std::size_t sinks = 0, recent = 0, batch = 1;
  /// Slots are sealed at the end of a prompt only: those of generated tokens stay dense until the next prompt ends.
  bool prompt_only = false;
  /// At the end of a prompt all slots but the sinks and the newest `recent` are sealed, also the last ones, which do not fill
  /// a group of the format: they share scales among themselves, together with the group before them where they are at most half
  /// of one. A format of groups along the tokens must be able to make them of any length (Codec::of_rows), as GroupQuant is.
  bool whole_prompt = false;
  /// Formats of the classes of precision 1, 2, … of a head's slots; class 0 is `format`. Slots of a class without a format,
  /// or with a Dense one, stay dense. Every class counts its own batches.
  std::vector<std::optional<Format>> classes = {};
};

/// The two streams of one head.
struct Streams {
  Stream key, value;
};

}  // namespace kvc
