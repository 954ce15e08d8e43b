#pragma once
#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/policy/head_table.hpp"
#include "kvc/policy/stage.hpp"
#include "kvc/named/text.hpp"

namespace kvc::inline KVC_ABI {

/// One parameter of policy P in policy texts.
template <class P>
struct Parameter {
  std::string name, help;
  std::string expected;                           ///< completes "takes …"
  std::function<bool(P&, std::string_view)> set;  ///< false: the text is not what was expected
  std::function<std::string(const P&)> get;       ///< the value as text, for the default
  bool sets_budget = false;                       ///< one of several ways to say the budget
};

/// A parameter that is a data member: parameter("window", &SnapKV::window, "newest queries that vote").
template <class P, class T>
Parameter<P> parameter(std::string name, T P::*member, std::string help) {
  return {std::move(name),
          std::move(help),
          TextOf<T>::expected(),
          [member](P& policy, std::string_view text) {
            const std::optional<T> value = TextOf<T>::read(text);
            if (value) policy.*member = *value;
            return value.has_value();
          },
          [member](const P& policy) { return TextOf<T>::write(policy.*member); },
          std::is_same_v<T, Budget> || std::is_same_v<T, std::optional<Budget>>};
}

/// A parameter as text.
struct ParameterText {
  std::string name, fallback, expected, help;
  bool sets_budget = false;
};
/// One `name=value` of a policy text; a bare name has no value.
struct Word {
  std::string name, value;
};

/// What a stage gets where its words do not say it.
struct Defaults {
  std::optional<Budget> budget = {};
  std::optional<HeadTable> heads = {};
};

/// What an entry is called and does.
struct EntryName {
  std::string name;
  std::string base = {};  ///< of decorators: the policy they decorate
  std::string help = {};  ///< one line
};

/// How a policy is made from words.
class Entry {
 public:
  explicit Entry(EntryName called) : called_(std::move(called)) {}
  virtual ~Entry() = default;

  const std::string& name() const { return called_.name; }
  const std::string& base() const { return called_.base; }
  const std::string& help() const { return called_.help; }
  virtual std::vector<ParameterText> parameters() const = 0;
  /// Whether parameter `index` can be read from `text`.
  virtual bool reads(std::size_t index, std::string_view text) const = 0;
  /// The policy with these words, which name existing parameters with readable values, and the defaults where it takes
  /// them.
  virtual std::shared_ptr<const Stage> make(const std::vector<Word>& words, const Defaults& defaults) const = 0;
  virtual bool takes_budget() const = 0;
  /// Whether the policy needs to know the model's retrieval heads.
  virtual bool takes_heads() const = 0;

 private:
  EntryName called_;
};

/// Entry of policy P. Words take effect in the order of the parameters, whatever their order in the text.
template <class P>
class EntryOf final : public Entry {
 public:
  EntryOf(EntryName called, std::vector<Parameter<P>> parameters, P start = {})
      : Entry(std::move(called)), parameters_(std::move(parameters)), start_(std::move(start)) {}

  std::vector<ParameterText> parameters() const override {
    std::vector<ParameterText> texts;
    for (const Parameter<P>& parameter : parameters_)
      texts.push_back(
          {parameter.name, parameter.get(start_), parameter.expected, parameter.help, parameter.sets_budget});
    return texts;
  }
  bool reads(std::size_t index, std::string_view text) const override {
    P scratch = start_;
    return parameters_[index].set(scratch, text);
  }
  std::shared_ptr<const Stage> make(const std::vector<Word>& words, const Defaults& defaults) const override {
    P policy = start_;
    if constexpr (HasBudget)
      if (defaults.budget) policy.budget = *defaults.budget;
    if constexpr (HasHeads)
      if (defaults.heads) policy.heads = *defaults.heads;
    for (const Parameter<P>& parameter : parameters_)
      for (const Word& word : words)
        if (word.name == parameter.name) parameter.set(policy, word.value);
    return std::make_shared<const StageOf<P>>(std::move(policy));
  }
  bool takes_budget() const override { return HasBudget; }
  bool takes_heads() const override { return HasHeads; }

 private:
  static constexpr bool HasBudget = requires(P policy, const Budget& budget) { policy.budget = budget; };
  static constexpr bool HasHeads = requires(P policy, const HeadTable& heads) { policy.heads = heads; };

  std::vector<Parameter<P>> parameters_;
  P start_;
};

/// The policies that texts can name. Adding and finding may happen on any thread; entries live to the program's end.
class Registry {
 public:
  /// Throws Error if the name is taken or is no plain word.
  void add(std::unique_ptr<const Entry> entry) {
    const std::lock_guard lock(mutex_);
    if (entry->name().empty() || entry->name().find_first_of(" \t\n|:,=") != std::string::npos)
      fail(ErrorCode::invalid_argument, "AnyPolicy: '" + entry->name() + "' cannot be the name of a policy");
    if (find_unlocked(entry->name(), entry->base()))
      fail(ErrorCode::invalid_argument, "AnyPolicy: a policy named '" + entry->name() + "' exists already");
    entries_.push_back(std::move(entry));
  }
  /// The entry, or null. A decorator without a base named is its first entry.
  const Entry* find(std::string_view name, std::string_view base = {}) const {
    const std::lock_guard lock(mutex_);
    for (const auto& entry : entries_)
      if (base.empty() && entry->name() == name) return entry.get();
    return find_unlocked(name, base);
  }
  /// Every name once, in the order of the alphabet.
  std::vector<std::string> names() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> all;
    for (const auto& entry : entries_) all.push_back(entry->name());
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    return all;
  }
  /// The bases that a decorator can take; empty for others.
  std::vector<std::string> bases(std::string_view name) const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> all;
    for (const auto& entry : entries_)
      if (entry->name() == name && !entry->base().empty()) all.push_back(entry->base());
    return all;
  }

 private:
  const Entry* find_unlocked(std::string_view name, std::string_view base) const {
    for (const auto& entry : entries_)
      if (entry->name() == name && entry->base() == base) return entry.get();
    return nullptr;
  }

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<const Entry>> entries_;
};

}  // namespace kvc
