// A loop whose counter is a constant. Each target has its own, for inlining wants a loop and its body to be of the same one.
// Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// Calls step.operator()<0>() … step.operator()<Steps - 1>(): a loop whose counter is a constant.
template <std::size_t Steps, std::size_t Step = 0, class Call>
KVC_ALWAYS_INLINE constexpr void for_each_step(Call& call) {
  if constexpr (Step < Steps) {
    call.template operator()<Step>();
    for_each_step<Steps, Step + 1>(call);
  }
}

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
