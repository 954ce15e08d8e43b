#pragma once
#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/named/head_table_file.hpp"
#include "kvc/named/parameter_table.hpp"
#include "kvc/named/suggestion.hpp"
#include "kvc/policies/all.hpp"
// These fit matrices. Where Eigen is not to be found, they have no name.
#if __has_include(<Eigen/Cholesky>)
#include "kvc/policies/attention_matching.hpp"
#include "kvc/policies/compact.hpp"
#define KVC_HAS_EIGEN 1
#else
#define KVC_HAS_EIGEN 0
#endif

namespace kvc::inline KVC_ABI::detail {

/// `keep=0.25`: a fraction, by a word that cannot be mistaken for tokens.
struct KeptShare {
  double share = 1;
  static constexpr const char* Expected = "a number in (0, 1]";
  static std::optional<KeptShare> parse(std::string_view text) {
    const auto share = TextOf<double>::read(text);
    return share && *share > 0 && *share <= 1 ? std::optional(KeptShare{*share}) : std::nullopt;
  }
  std::string to_string() const { return TextOf<double>::write(share); }
};
/// `pyramid=20`, or just `pyramid`: the beta of Budget::pyramid.
struct PyramidBeta {
  double beta = 20;
  static constexpr const char* Expected = "a number of at least 1, 20 if left out";
  static std::optional<PyramidBeta> parse(std::string_view text) {
    if (text.empty()) return PyramidBeta{};
    const auto beta = TextOf<double>::read(text);
    return beta && *beta >= 1 ? std::optional(PyramidBeta{*beta}) : std::nullopt;
  }
  std::string to_string() const { return TextOf<double>::write(beta); }
};

/// Adds the parameters that a Budget brings with it.
inline void add_budget_rows(std::vector<ParameterRow>& rows) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].kind != ParameterRow::Kind::member || rows[i].type->name != TypeOf<Budget>.name) continue;
    const ParameterRow budget = rows[i];
    ParameterRow keep{.name = "keep",
                      .help = "The share of the tokens that is kept, instead of a number of slots.",
                      .replaced = budget.name,
                      .kind = ParameterRow::Kind::keep,
                      .type = &TypeOf<KeptShare>,
                      .offset = budget.offset,
                      .budget = budget.type};
    rows.insert(rows.begin() + static_cast<std::ptrdiff_t>(i) + 1, keep);
    if (budget.type != &TypeOf<Budget>) return;  // an optional one may be missing
    rows.push_back(
        {.name = "pyramid",
         .help = "The budget is the mean of budgets that fall over the layers (PyramidKV); the value is beta.",
         .kind = ParameterRow::Kind::pyramid,
         .type = &TypeOf<PyramidBeta>,
         .offset = budget.offset});
    return;
  }
}

#if KVC_HAS_EIGEN
using FittedPolicies = PolicyList<AttentionMatching, Compact, Pursuit, Refit>;
#else
using FittedPolicies = PolicyList<>;
#endif

/// The policies that texts can name. Adding and finding may happen on any thread; entries live to the program's end.
class Registry {
 public:
  /// The one of this program, with every policy of the library in it.
  static Registry& instance() {
    static Registry& registry =
        *new Registry(AllPolicies{}, FittedPolicies{});  // never destroyed: static caches may outlive anything
    return registry;
  }

  void add(PolicyEntry entry) {
    if (entry.name.empty() ||
        entry.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") != std::string::npos)
      fail(ErrorCode::invalid_argument,
           {"AnyPolicy: '", entry.name, "' cannot be the name of a policy; it needs lower-case letters, digits and _"});
    add_budget_rows(entry.rows);
    const std::lock_guard lock(mutex_);
    for (const auto& known : entries_)
      if (known->name == entry.name)
        fail(ErrorCode::invalid_argument, {"AnyPolicy: a policy named '", entry.name, "' exists already"});
    entries_.push_back(std::make_unique<const PolicyEntry>(std::move(entry)));
  }
  /// The entry, or null.
  const PolicyEntry* find(std::string_view name) const {
    const std::lock_guard lock(mutex_);
    for (const auto& entry : entries_)
      if (entry->name == name) return entry.get();
    return nullptr;
  }
  /// The entry that makes stages like this one, or null.
  const PolicyEntry* find(const Stage& stage) const {
    const std::lock_guard lock(mutex_);
    for (const auto& entry : entries_)
      if (entry->type == stage.type()) return entry.get();
    return nullptr;
  }
  /// Throws Error(unknown_name) where find() finds nothing.
  const PolicyEntry& at(std::string_view name) const {
    const PolicyEntry* entry = find(name);
    if (!entry) fail(ErrorCode::unknown_name, {"unknown policy '", name, "'; ", suggestion(name, names())});
    return *entry;
  }
  /// Every name, in the order of the alphabet.
  std::vector<std::string> names() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> all;
    for (const auto& entry : entries_) all.push_back(entry->name);
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  template <class... Policies, class... Fitted>
  Registry(PolicyList<Policies...>, PolicyList<Fitted...>) {
    (add(entry_of<Policies>(Policies::name.word, Policies::name.help)), ...);
    (add(entry_of<Fitted>(Fitted::name.word, Fitted::name.help)), ...);
  }

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<const PolicyEntry>> entries_;
};

}  // namespace kvc::inline KVC_ABI::detail
