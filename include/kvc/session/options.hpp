#pragma once
#include <cstddef>
#include <string_view>

#include "kvc/abi.hpp"

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

}  // namespace kvc::inline KVC_ABI
