#include "golden/runner.hpp"

namespace golden {

extern const Runner H2ORunner, KIVIRunner, MiniCacheRunner, SnapKVRunner, StreamingLLMRunner;

std::span<const Runner* const> all_runners() {
  static constexpr const Runner* All[] = {
      &H2ORunner, &SnapKVRunner, &StreamingLLMRunner, &KIVIRunner, &MiniCacheRunner,
  };
  return All;
}

}  // namespace golden
