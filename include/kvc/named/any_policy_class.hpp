#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/named/head_table_file.hpp"
#include "kvc/named/parameter_table.hpp"
#include "kvc/policy/pipeline.hpp"

namespace kvc::inline KVC_ABI {

namespace detail {
struct Part;
/// Makes a policy known to texts. Throws Error if the name is taken or is no plain word.
KVC_FORWARD void add_entry(PolicyEntry entry);
}  // namespace detail

/// A parameter as text.
struct ParameterText {
  std::string name;
  std::string fallback;  ///< the value without a text that changes it; empty: none
  std::string expected;  ///< completes "it takes …"
  std::string help;
};

/// A policy, or a pipeline of policies, chosen at run time by a text:
///
///     stage | stage …      each stage     name:parameter=value,parameter=value
///
/// for example "snapkv:budget=1024,window=32 | kivi:bits=2". names() and describe() say what exists. What was parsed runs as
/// fast as the same policy named in C++.
///
///  * A stage may be limited to some layers: "[0-3] streaming_llm:budget=512 | [4-] snapkv:budget=0.25 | [30] full".
///  * A value in parentheses may hold commas, colons and bars. The value of a parameter that is a policy is the text of a stage:
///    "ada_kv:base=(snapkv:window=16),budget=0.25". Several are joined by +. Where a policy has one such parameter, words that
///    it does not know are its member's: "ada_kv:base=snapkv,window=16".
class AnyPolicy {
 public:
  /// Throws Error (unknown_name or invalid_argument) that points at the wrong word and lists what could stand there.
  static AnyPolicy parse(std::string_view text);

  /// Makes a policy of yours available to parse(), with the parameters that it declares (kvc/policy/parameters.hpp). Texts
  /// change what `start` says. Throws Error if the name is taken or is no plain word.
  template <Policy P>
  requires HasParameters<P>
  static void add(std::string name, std::string help, const P& start = {}) {
    detail::add_entry(detail::entry_of(std::move(name), std::move(help), start));
  }
  /// The same for a policy that declares its name.
  template <Policy P>
  requires(HasParameters<P>&& HasName<P>) static void add(const P& start = {}) {
    add(P::name.word, P::name.help, start);
  }

  /// Every policy that parse() knows.
  static std::vector<std::string> names();
  /// The parameters of a policy, in the order of its help. Throws Error(unknown_name).
  static std::vector<ParameterText> parameters(std::string_view name);
  /// What a policy does and its parameters with their defaults, a line each. Throws Error(unknown_name).
  static std::string describe(std::string_view name);
  /// The same as a section of Markdown with a table. Throws Error(unknown_name).
  static std::string markdown(std::string_view name);

  /// Whether a stage has a parameter of type T that its text does not say and that set_default() did not give yet. T is a
  /// Budget, or a fact about the model that the program can find out, such as a HeadTable.
  template <class T>
  requires std::is_class_v<T>
  bool wants() const { return wants(type_name<T>()); }
  /// Gives `value` to every such stage.
  template <class T>
  requires std::is_class_v<T>
  void set_default(const T& value) { set_default(detail::TypeOf<T>, std::make_shared<const T>(value)); }

  bool wants_budget() const { return wants<Budget>(); }
  void set_default_budget(const Budget& budget) { set_default(budget); }

  /// The stages, for KVCache and pipelines.
  Stages stages() const;

  /// A text that parse() reads as the same policy, unless set_default() gave a value that no text can say.
  std::string to_string() const;

 private:
  AnyPolicy() = default;
  bool wants(std::string_view type) const;
  void set_default(const detail::ValueType& type, std::shared_ptr<const void> value);

  std::vector<std::shared_ptr<const detail::Part>> parts_;
  std::vector<detail::Default> defaults_;
};

}  // namespace kvc::inline KVC_ABI
