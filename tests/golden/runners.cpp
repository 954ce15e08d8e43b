#include "golden/runner.hpp"

namespace golden {

extern const Runner H2ORunner, KIVIRunner, RazorRunner, SnapKVRunner, StreamingLLMRunner;

std::span<const Runner* const> all_runners() {
  static constexpr const Runner* All[] = {
      &H2ORunner, &SnapKVRunner, &StreamingLLMRunner, &KIVIRunner, &RazorRunner,
  };
  return All;
}

}  // namespace golden
