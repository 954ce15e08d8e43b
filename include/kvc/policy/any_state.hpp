#pragma once
#include <cstddef>
#include <memory>
#include <type_traits>

#include "kvc/policy/fields.hpp"
#include "kvc/policy/head.hpp"

namespace kvc::inline KVC_ABI {

/// One head's State and PromptState of one stage, type erased.
class AnyState {
 public:
  virtual ~AnyState() = default;
  virtual std::unique_ptr<AnyState> clone() const = 0;
  /// Becomes a copy of `other`, which belongs to the same stage; a state that stays about as large asks for no memory.
  virtual void copy_from(const AnyState& other) = 0;
  /// Bytes that the state holds: State::bytes() if it has that member, else its size; likewise of the PromptState.
  virtual std::size_t bytes() const = 0;
  /// Whether there is anything to hold.
  virtual bool empty() const = 0;
  /// Makes an empty PromptState unless there is one, or drops it.
  virtual void open_prompt() = 0;
  virtual void close_prompt() = 0;
  virtual bool has_prompt() const = 0;
  /// Saves or loads the State, without a PromptState. Returns false, and does nothing, where the State does not declare its
  /// fields.
  virtual bool exchange(Fields& fields) = 0;
};

namespace detail {
template <class T>
std::size_t bytes_held(const T& value) {
  if constexpr (requires { value.bytes(); })
    return value.bytes();
  else
    return std::is_same_v<T, Nothing> ? 0 : sizeof(T);
}
}  // namespace detail

/// What AnyState erases.
template <class P>
struct StateBox final : AnyState {
  static constexpr bool HasState = !std::is_same_v<State<P>, Nothing>,
                        HasPrompt = !std::is_same_v<PromptState<P>, Nothing>;

  State<P> value{};
  std::unique_ptr<PromptState<P>> prompt = nullptr;

  std::unique_ptr<AnyState> clone() const override {
    auto copy = std::make_unique<StateBox>();
    copy->copy_from(*this);
    return copy;
  }
  void copy_from(const AnyState& other) override {
    const auto& box = static_cast<const StateBox&>(other);
    value = box.value;
    if (!box.prompt)
      prompt.reset();
    else if (prompt)
      *prompt = *box.prompt;
    else
      prompt = std::make_unique<PromptState<P>>(*box.prompt);
  }
  std::size_t bytes() const override { return detail::bytes_held(value) + (prompt ? detail::bytes_held(*prompt) : 0); }
  bool empty() const override { return !HasState && !prompt; }
  void open_prompt() override {
    if constexpr (HasPrompt)
      if (!prompt) prompt = std::make_unique<PromptState<P>>();
  }
  void close_prompt() override { prompt.reset(); }
  bool has_prompt() const override { return prompt != nullptr; }
  bool exchange(Fields& fields) override {
    static_cast<void>(fields);
    if constexpr (HasFields<State<P>>) detail::exchange(fields, value);
    return !HasState || HasFields<State<P>>;
  }
};

}  // namespace kvc::inline KVC_ABI
