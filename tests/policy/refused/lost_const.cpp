// refused: evict must be: void evict
#include <kvc/policy/pipeline.hpp>

struct LostConst {
  void observe(kvc::Head<LostConst>&, const kvc::Observation&) const {}
  void evict(kvc::Head<LostConst>&, kvc::Plan&) {}
};

kvc::Stages stages() {
  return kvc::stages_of(LostConst{});
}
