#pragma once
#include <utility>

#include "kvc/cache/core.hpp"
#if !defined(KVC_COMPILED)
#include "kvc/cache/implementation.hpp"
#endif

namespace kvc::inline KVC_ABI {

/// The KV cache of one sequence under `PolicyType`: a policy, a pipeline of policies (`SnapKV{} | KIVI{}`), or AnyPolicy.
/// Everything an engine calls is in CacheCore.
template <Composable PolicyType>
class KVCache : public CacheCore {
 public:
  /// Throws Error if the policy cannot work on this shape: never later, after a prompt has been computed.
  KVCache(const CacheShape& shape, PolicyType policy, const CacheOptions& options = {})
      : CacheCore(shape, stages_of(policy), options), policy_(std::move(policy)) {}
  KVCache(KVCache&&) = default;
  KVCache& operator=(KVCache&&) = default;

  /// A second sequence that starts as this one is now. Blocks are shared; whoever changes one copies it first.
  [[nodiscard]] KVCache fork() const { return KVCache(*this); }

  const PolicyType& policy() const { return policy_; }

 private:
  KVCache(const KVCache&) = default;

  PolicyType policy_;
};

}  // namespace kvc::inline KVC_ABI
