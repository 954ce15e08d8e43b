#pragma once
#include <concepts>
#include <cstddef>
#include <limits>
#include <utility>

#include "kvc/error.hpp"
#include "kvc/shape.hpp"

namespace kvc::inline KVC_ABI {

// A policy declares its parameters once, in a static member function; from it come the policy texts, their help, {} of fmt
// and the tables of the documentation:
//
//   static constexpr PolicyName name{"snapkv", "Keeps the tokens that the last queries of a prompt attend to."};
//   static constexpr auto parameters() {
//     return list(parameter("budget", &SnapKV::budget, "Slots that a head keeps when a prompt ends."),
//                 parameter("window", &SnapKV::window, "So many newest queries vote, and their tokens stay."));
//   }
//
// A parameter of type Budget brings two more words to a text: `keep=0.25` for a fraction, and `pyramid=20` for budgets that
// fall over the layers. The name is optional: AnyPolicy::add can give one.

/// What a policy is called in texts, and what it does, in one sentence whose subject is the policy.
struct PolicyName {
  const char* word;
  const char* help;
};

/// One parameter of policy P: a data member, or a setter for a second way to say something (see alias).
template <class P, class T>
struct Parameter {
  using Policy = P;
  using Value = T;

  const char* name;
  const char* help;                ///< what it means, in one plain English sentence
  T P::*member = nullptr;          ///< where the value lies; null: `set` does what the parameter means
  void (*set)(P&, T) = nullptr;    ///< called after all members have their values
  const char* replaced = nullptr;  ///< the parameter that this one is given instead of

  /// The same parameter, which a text may give instead of `other`, but not together with it.
  constexpr Parameter instead_of(const char* other) const {
    Parameter changed = *this;
    changed.replaced = other;
    return changed;
  }
};

/// A parameter that is a data member.
template <class P, class T>
constexpr Parameter<P, T> parameter(const char* name, T P::*member, const char* help) {
  return {.name = name, .help = help, .member = member};
}
/// Another word for something that data members say: `set` derives them from the value.
template <class P, class T>
constexpr Parameter<P, T> alias(const char* name, void (*set)(P&, T), const char* help) {
  return {.name = name, .help = help, .set = set};
}

/// Several parameters, in the order of the help: calling the result with a visitor calls visitor(parameter) for each.
template <class... Parameters>
constexpr auto list(Parameters... parameters) {
  return [=](auto&& visit) { (visit(parameters), ...); };
}

template <class P>
concept HasParameters = requires {
  P::parameters();
};
template <class P>
concept HasName = requires {
  { P::name.word } -> std::convertible_to<const char*>;
};

/// The largest number of tokens that a parameter may say: a cache cannot hold more. Sums of a few such numbers do not
/// overflow, so policies may add them.
inline constexpr std::size_t MostTokens = static_cast<std::size_t>(std::numeric_limits<Position>::max());

/// For validate(): throws Error(invalid_argument) unless `value` lies in [least, most]. `what` names the parameter:
/// "Quest: page".
inline void require_between(const char* what, std::size_t value, std::size_t least, std::size_t most = MostTokens) {
  if (value >= least && value <= most) return;
  fail(ErrorCode::invalid_argument, {what, " must lie between ", least, " and ", most, ", got ", value});
}
/// The same for a number of neighbouring tokens with one in the middle, which must be odd.
inline void require_odd(const char* what, std::size_t value) {
  require_between(what, value, 1);
  if (value % 2 == 0) fail(ErrorCode::invalid_argument, {what, " must be odd, got ", value});
}
/// The same for a share, which must lie in [0, 1].
inline void require_share(const char* what, double value) {
  if (value >= 0 && value <= 1) return;
  fail(ErrorCode::invalid_argument, {what, " must lie between 0 and 1, got ", value});
}

}  // namespace kvc::inline KVC_ABI
