#pragma once
#include "catch_shim.hpp"
#include "support/all_policies.hpp"

namespace support {

/// Calls check(entry) for every policy of which the invariant is promised.
template <class Check>
void for_each_policy(Invariant invariant, Check check) {
  for (const PolicyCase& entry : all_policies()) {
    if (entry.exemption(invariant)) continue;
    INFO(entry.text);
    check(entry);
  }
}

}  // namespace support
