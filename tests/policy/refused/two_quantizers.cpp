// refused: two quantizers in one pipeline
#include <kvc/policy/full.hpp>
#include <kvc/policy/kivi.hpp>
#include <kvc/policy/pipeline.hpp>

auto pipeline() {
  return kvc::KIVI{} | kvc::Full{.bits = 8};
}
