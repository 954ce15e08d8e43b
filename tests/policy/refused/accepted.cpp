// accepted
#include <kvc/policies/kivi.hpp>
#include <kvc/policy/pipeline.hpp>
#include <kvc/policies/snapkv.hpp>

auto pipeline() {
  return kvc::SnapKV{.budget = kvc::Budget::fraction(0.25)} | kvc::KIVI{};
}
