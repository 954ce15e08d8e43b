#include "golden/runner.hpp"

namespace golden {

extern const Runner H2ORunner, KIVIRunner, SnapKVRunner, StreamingLLMRunner;
extern const Runner AffineCodecRunner, CodecAttentionRunner, GgmlRunner, GroupQuantRunner;

std::span<const Runner* const> all_runners() {
  static constexpr const Runner* All[] = {
      &H2ORunner,  &SnapKVRunner,     &StreamingLLMRunner, &KIVIRunner,
      &GgmlRunner, &GroupQuantRunner, &AffineCodecRunner,  &CodecAttentionRunner,
  };
  return All;
}

}  // namespace golden
