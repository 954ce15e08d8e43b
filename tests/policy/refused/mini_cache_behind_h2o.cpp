// refused: cross-layer merging needs stages that keep the same positions
#include <kvc/policies/h2o.hpp>
#include <kvc/policies/mini_cache.hpp>
#include <kvc/policy/pipeline.hpp>

auto pipeline() {
  return kvc::H2O{} | kvc::MiniCache{};
}
