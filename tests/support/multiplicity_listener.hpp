#pragma once
#include <vector>

#include "kvc/policy/policy.hpp"

namespace support {

/// Remembers the multiplicities that a head has after the policies before it have acted: a cache does not show them.
struct MultiplicityListener {
  struct State {
    std::vector<float> tokens;
  };
  kvc::When when = kvc::When::prompt_end;
  void evict(kvc::Head<MultiplicityListener>& head, kvc::Plan&) const {
    head.state->tokens.assign(head.multiplicity.begin(), head.multiplicity.end());
  }
};

}  // namespace support
