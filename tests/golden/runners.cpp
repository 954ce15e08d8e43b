#include "golden/runner.hpp"

namespace golden {

extern const Runner H2ORunner, KIVIRunner, SnapKVRunner, StreamingLLMRunner;

std::span<const Runner* const> all_runners() {
  static constexpr const Runner* All[] = {
      &H2ORunner,
      &SnapKVRunner,
      &StreamingLLMRunner,
      &KIVIRunner,
  };
  return All;
}

}  // namespace golden
