#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/compiled.hpp"
#include "kvc/named/text.hpp"
#include "kvc/policy/parameters.hpp"
#include "kvc/policy/pipeline.hpp"
#include "kvc/policy/stage.hpp"

// A policy's parameters with the types of the policy and of its values erased, so that one piece of code that is no template
// reads, writes and describes the parameters of all policies.
namespace kvc::inline KVC_ABI {

/// A policy inside another one. AnyPolicy's own parser reads it; by itself, a text of one stage is read.
template <>
struct TextOf<Member> {
  static std::string expected() { return "a policy, in parentheses if it has parameters"; }
  static std::optional<Member> read(std::string_view text);
  static std::string write(const Member& member);
};

namespace detail {

template <class T>
struct WithoutOptional {
  using type = T;
};
template <class T>
struct WithoutOptional<std::optional<T>> {
  using type = T;
};

/// What the parser does with values of one type; `value` points at one.
struct ValueType {
  std::string_view name;  ///< of the type itself, without std::optional around it
  std::string (*expected)();
  bool (*read)(std::string_view text, void* value);
  std::string (*write)(const void* value);
  void (*assign)(void* value, const void* given);  ///< from a value of the type without std::optional around it
};

/// A value that a program gives to stages whose text does not say it.
struct Default {
  const ValueType* type;
  std::shared_ptr<const void> value;
};

template <class T>
bool read_value(std::string_view text, void* value) {
  std::optional<T> read = TextOf<T>::read(text);
  if (read) *static_cast<T*>(value) = std::move(*read);
  return read.has_value();
}
template <class T>
std::string write_value(const void* value) {
  return TextOf<T>::write(*static_cast<const T*>(value));
}
template <class T>
void assign_value(void* value, const void* given) {
  *static_cast<T*>(value) = *static_cast<const typename WithoutOptional<T>::type*>(given);
}

template <class T>
inline constexpr ValueType TypeOf{.name = type_name<typename WithoutOptional<T>::type>(),
                                  .expected = TextOf<T>::expected,
                                  .read = read_value<T>,
                                  .write = write_value<T>,
                                  .assign = assign_value<T>};

/// A parameter of some policy.
struct ParameterRow {
  enum class Kind : std::uint8_t {
    member,   ///< a data member
    setter,   ///< derives data members from a value
    keep,     ///< a fraction for the policy's Budget
    pyramid,  ///< turns the policy's Budget into a pyramid
  };
  using Function = void (*)();

  const char* name = nullptr;
  const char* help = nullptr;
  const char* replaced = nullptr;  ///< the parameter that this one is given instead of
  Kind kind = Kind::member;
  const ValueType* type = nullptr;
  std::size_t offset = 0;             ///< of the member in the policy; of keep and pyramid: of the Budget
  const ValueType* budget = nullptr;  ///< of keep: the type of the Budget
  Function function = nullptr;        ///< what a setter calls
  bool (*set)(Function function, void* policy,
              std::string_view text) = nullptr;  ///< reads a setter's value and, unless policy is null, calls it
};

template <class P, class T>
bool call_setter(ParameterRow::Function function, void* policy, std::string_view text) {
  std::optional<T> value = TextOf<T>::read(text);
  if (value && policy) reinterpret_cast<void (*)(P&, T)>(function)(*static_cast<P*>(policy), std::move(*value));
  return value.has_value();
}

template <class P, class T>
ParameterRow row_of(const Parameter<P, T>& parameter, const P& policy) {
  ParameterRow row{.name = parameter.name, .help = parameter.help, .replaced = parameter.replaced, .type = &TypeOf<T>};
  if (parameter.member) {
    row.offset = static_cast<std::size_t>(reinterpret_cast<const std::byte*>(&(policy.*parameter.member)) -
                                          reinterpret_cast<const std::byte*>(&policy));
  } else {
    row.kind = ParameterRow::Kind::setter;
    row.function = reinterpret_cast<ParameterRow::Function>(parameter.set);
    row.set = call_setter<P, T>;
  }
  return row;
}

/// The parameters of P, as it declares them.
template <HasParameters P>
std::vector<ParameterRow> rows_of(const P& policy) {
  std::vector<ParameterRow> rows;
  P::parameters()([&](const auto& parameter) { rows.push_back(row_of(parameter, policy)); });
  return rows;
}

/// A policy that texts can name.
struct PolicyEntry {
  std::string name, help;
  std::vector<ParameterRow> rows;
  std::shared_ptr<const void> start;                            ///< the policy before a text changes it
  std::shared_ptr<void> (*copy)(const void* policy) = nullptr;  ///< of a policy of this entry's type
  Stages (*stages)(const void* policy) = nullptr;               ///< one or more, which act in this order
  TypeName type;                                        ///< Stage::type() of its stages
  const void* (*policy)(const Stage& stage) = nullptr;  ///< inside a stage of that type
};

template <class P>
std::shared_ptr<void> copy_policy(const void* policy) {
  return std::make_shared<P>(*static_cast<const P*>(policy));
}
template <class P>
Stages stages_of_entry(const void* policy) {
  return stages_of(*static_cast<const P*>(policy));
}

template <class P>
const void* policy_of(const Stage& stage) {
  if constexpr (HasStages<P>)
    return nullptr;  // its stage is another policy's, which says its own name
  else
    return &static_cast<const StageOf<P>&>(stage).policy();
}

template <class P>
PolicyEntry entry_of(std::string name, std::string help, const P& start = {}) {
  return {.name = std::move(name),
          .help = std::move(help),
          .rows = rows_of(start),
          .start = copy_policy<P>(&start),
          .copy = copy_policy<P>,
          .stages = stages_of_entry<P>,
          .type = type_of<P>(),
          .policy = policy_of<P>};
}

/// The parameters of `policy` that differ from those of `start`, as a text has them: "budget=128,window=16".
inline std::string write_parameters(const std::vector<ParameterRow>& rows, const void* policy, const void* start) {
  std::string text;
  for (const ParameterRow& row : rows) {
    if (row.kind != ParameterRow::Kind::member) continue;
    const std::string value = row.type->write(static_cast<const std::byte*>(policy) + row.offset);
    if (value.empty() || value == row.type->write(static_cast<const std::byte*>(start) + row.offset)) continue;
    text.append(text.empty() ? "" : ",").append(row.name).append("=").append(value);
  }
  return text;
}

}  // namespace detail

/// The text of a policy: AnyPolicy::parse reads it as the same policy, unless a parameter has a value that no text can say.
template <class P>
requires HasName<P> && HasParameters<P> std::string policy_text(const P& policy) {
  const P start{};
  const std::string words = detail::write_parameters(detail::rows_of(policy), &policy, &start);
  return joined({P::name.word, words.empty() ? "" : ":", words});
}

}  // namespace kvc::inline KVC_ABI
