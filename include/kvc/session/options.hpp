#pragma once
#include <concepts>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>

#include "kvc/byte_stream.hpp"

namespace kvc::inline KVC_ABI {

/// Neighbouring layers.
struct LayerRange {
  static constexpr std::size_t All = static_cast<std::size_t>(-1);

  std::size_t first = 0, count = All;  ///< All: to the last layer
};

struct SessionOptions {
  /// What is saved, or loaded: a session of some layers is loaded by a call that names the same ones. Layers that share rows
  /// (MiniCache) are saved together.
  LayerRange layers = {};
  /// The policy as a text, for the sentence that refuses a session of another one. A cache under AnyPolicy knows its text.
  std::string_view policy = {};
};

/// A session that lies in memory in one piece, such as a file that is mapped. Blocks are not copied where they lie at multiples
/// of Alignment, as all of a session do that begins at one: they are attended to where they are, and copied when somebody writes to
/// them. `owner` is let go of when the last of these blocks is; until then the bytes may not change.
struct SessionInMemory {
  static constexpr std::size_t Alignment = 64;

  std::span<const std::byte> bytes = {};
  std::shared_ptr<const void> owner = {};
};

/// Where load() takes a session from.
class SessionSource {
 public:
  /// A function as ByteSource is one.
  template <class Read>
  requires std::is_invocable_r_v<std::size_t, Read&, std::span<std::byte>> SessionSource(Read&& read)
      : source_(ByteSource(read)) {}                                     // NOLINT: implicit, as a parameter type
  SessionSource(SessionInMemory memory) : memory_(std::move(memory)) {}  // NOLINT: implicit, as a parameter type

  const std::optional<ByteSource>& source() const { return source_; }
  /// Where there is no function.
  const SessionInMemory& memory() const { return memory_; }

 private:
  std::optional<ByteSource> source_;
  SessionInMemory memory_;
};

}  // namespace kvc::inline KVC_ABI
