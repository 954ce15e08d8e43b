// refused: cross-layer merging needs stages that keep the same positions
#include <kvc/policy/pipeline.hpp>
#include <kvc/policies/snapkv.hpp>

struct PairsLayers {
  bool pairs(std::size_t, const kvc::CacheShape&) const { return true; }
  void merge(const kvc::Head<PairsLayers>&, const kvc::Head<PairsLayers>&, kvc::PairPlan&) const {}
};

auto pipeline() {
  return kvc::SnapKV{} | PairsLayers{};
}
