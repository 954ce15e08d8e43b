#include "contestants.hpp"

#include <algorithm>

#include "h2o_mask.hpp"

namespace evaluation {

std::vector<Contestant> read_contestants(const std::string& policies, const std::vector<double>& keeps) {
  add_h2o_mask();
  std::vector<Contestant> all;
  for (std::size_t begin = 0; begin <= policies.size();) {
    const std::size_t end = std::min(policies.find(';', begin), policies.size());
    const kvc::AnyPolicy policy = kvc::AnyPolicy::parse(policies.substr(begin, end - begin));
    const std::string name = policy.to_string();
    begin = end + 1;
    if (!policy.wants_budget()) {
      all.push_back({name, 1, policy});
      continue;
    }
    for (const double keep : keeps) {
      Contestant contestant{name, keep, policy};
      contestant.policy.set_default_budget(kvc::Budget::fraction(keep));
      all.push_back(std::move(contestant));
    }
  }
  return all;
}

Contestant full_cache() {
  return {"full:type=f32", 1, kvc::AnyPolicy::parse("full:type=f32")};
}

}  // namespace evaluation
