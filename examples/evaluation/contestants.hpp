#pragma once
#include <string>
#include <vector>

#include "kvc/named/any_policy.hpp"

namespace evaluation {

/// A policy that is compared, at one keep fraction.
struct Contestant {
  std::string name;  ///< as policy texts are written, without the keep fraction
  double keep = 1;   ///< fraction that stages without a budget of their own keep; 1 where there is none
  kvc::AnyPolicy policy;
};

/// The policies of a text such as "full; snapkv | kivi:bits=2". A policy with a stage that takes a budget, but was given
/// none, comes once for every fraction in `keeps`; any other policy comes once. Throws kvc::Error pointing at the wrong
/// word.
std::vector<Contestant> read_contestants(const std::string& policies, const std::vector<double>& keeps);

/// Every token, in f32: what the others are measured against.
Contestant full_cache();

}  // namespace evaluation
