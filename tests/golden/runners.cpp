#include "golden/runner.hpp"

namespace golden {

extern const Runner StreamingLLMRunner;
std::span<const Runner* const> all_runners() {
  static constexpr const Runner* All[] = {
      &StreamingLLMRunner,
  };
  return All;
}

}  // namespace golden
