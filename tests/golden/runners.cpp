#include "golden/runner.hpp"

namespace golden {

// The six policies, then the codecs.
extern const Runner H2ORunner, KIVIRunner, MiniCacheRunner, RazorRunner, SnapKVRunner, StreamingLLMRunner;
extern const Runner AffineCodecRunner, CodecAttentionRunner, GgmlRunner, GroupQuantRunner;

std::span<const Runner* const> all_runners() {
  static constexpr const Runner* All[] = {
      &H2ORunner,   &SnapKVRunner, &StreamingLLMRunner, &KIVIRunner,        &MiniCacheRunner,
      &RazorRunner, &GgmlRunner,   &GroupQuantRunner,   &AffineCodecRunner, &CodecAttentionRunner,
  };
  return All;
}

}  // namespace golden
