// refused: two quantizers in one pipeline
#include <kvc/policies/full.hpp>
#include <kvc/policies/kivi.hpp>
#include <kvc/policy/pipeline.hpp>

auto pipeline() {
  return kvc::KIVI{} | kvc::Full{.bits = 8};
}
