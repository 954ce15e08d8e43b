#include <kvc/kvc.hpp>

#include "catch_shim.hpp"
#include "support/random_tokens.hpp"

// Two files of a program may each have a policy of the same name of their own. custom_policy_test.cpp has the other one.

kvc::TypeName type_of_another_counter();

namespace {

struct Counter {
  struct Slot {
    double large[8] = {};
  };
  void observe(kvc::Head<Counter>&, const kvc::Observation&) const {}
};

}  // namespace

TEST_CASE("Policies of one name in the anonymous namespaces of two files are not taken for each other") {
  const kvc::TypeName own = kvc::type_of<Counter>(), other = type_of_another_counter();
  CHECK(own.text == other.text);
  CHECK_FALSE(own == other);
  const kvc::CacheShape shape{.head_dim = 16};
  kvc::KVCache cache(shape, Counter{});
  cache.prefill(0, support::RandomTokens(shape, 5, 1).tokens(0, 5), {});
  CHECK(cache.slots<Counter>({0, 0}).size() == 5);
}

TEST_CASE("The name of a policy's type is its name in the program") {
  CHECK(kvc::type_name<int>() == "int");
  CHECK(kvc::type_of<Counter>().text.ends_with("Counter"));
}
