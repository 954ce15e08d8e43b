#include "catch_shim.hpp"

#include <set>

#include "support/all_policies.hpp"

// The list itself: complete, parseable, and honest about what it leaves out.

using namespace support;

TEST_CASE("Every policy that a text can name is in the list") {
  std::set<std::string> listed;
  for (const PolicyCase& entry : all_policies()) listed.insert(entry.policy().to_string());
  const auto is_listed = [&](const std::string& name) {
    return std::any_of(listed.begin(), listed.end(), [&](const std::string& text) { return text.rfind(name, 0) == 0; });
  };
  for (const std::string& name : kvc::AnyPolicy::names()) {
    INFO(name);
    CHECK(is_listed(name));
  }
  CHECK(listed.size() == all_policies().size());
}

TEST_CASE("An invariant that is not promised has its reason") {
  std::size_t promised = 0;
  for (const PolicyCase& entry : all_policies()) {
    INFO(entry.text);
    std::set<Invariant> named;
    for (const Exemption& exemption : entry.exempt) {
      CHECK(exemption.why.size() > 10);
      CHECK(named.insert(exemption.invariant).second);
    }
    promised += InvariantCount - named.size();
    CHECK(named.size() + 5 <= InvariantCount);
    CHECK((entry.acts == Acts::never) == (entry.exemption(Invariant::budget) != nullptr));
    CHECK((entry.first + entry.last == 0) == (entry.exemption(Invariant::protection) != nullptr));
    CHECK(entry.roomy.empty() == (entry.exemption(Invariant::room) != nullptr));
  }
  INFO(all_policies().size() << " policies, " << promised << " pairs");
  CHECK(promised > 10 * all_policies().size());
}
