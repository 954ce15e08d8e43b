#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/named/registry.hpp"

namespace kvc::inline KVC_ABI::detail {

/// One `name=value` of a policy text; the value of a bare name is empty.
struct Word {
  std::string name, value;
};

/// The parameter that a row belongs to: several ways to say one thing are one group, and a text may use one of them.
inline std::string_view group_of(const ParameterRow& row) {
  return row.replaced ? row.replaced : row.name;
}

/// One stage of a policy text.
struct Part {
  const PolicyEntry* entry = nullptr;
  std::shared_ptr<const void> policy;  ///< with the data members that the words name
  std::vector<Word> words;             ///< as they stand in the text

  const Word* word(std::string_view name) const {
    for (const Word& known : words)
      if (known.name == name) return &known;
    return nullptr;
  }
  /// Whether the words say what the row says, in one of its ways.
  bool says(const ParameterRow& row) const {
    for (const ParameterRow& other : entry->rows)
      if (group_of(other) == group_of(row) && word(other.name)) return true;
    return false;
  }
  /// Whether the row takes a default of this type.
  bool takes(const ParameterRow& row, std::string_view type) const {
    return row.kind == ParameterRow::Kind::member && row.type->name == type && !says(row);
  }
  bool takes(std::string_view type) const {
    for (const ParameterRow& row : entry->rows)
      if (takes(row, type)) return true;
    return false;
  }

  std::shared_ptr<const Stage> stage(std::span<const Default> defaults) const {
    const std::shared_ptr<void> made = entry->copy(policy.get());
    const auto place = [&](std::size_t offset) { return static_cast<std::byte*>(made.get()) + offset; };
    for (const ParameterRow& row : entry->rows)
      for (const Default& given : defaults)
        if (takes(row, given.type->name)) row.type->assign(place(row.offset), given.value.get());
    // Setters look at members, and a pyramid at the budget that any of the others has set.
    for (const ParameterRow& row : entry->rows) {
      const Word* said = row.kind == ParameterRow::Kind::member ? nullptr : word(row.name);
      if (!said) continue;
      if (row.kind == ParameterRow::Kind::setter) row.set(row.function, made.get(), said->value);
      if (row.kind == ParameterRow::Kind::keep) {
        const Budget kept = Budget::fraction(KeptShare::parse(said->value)->share);
        row.budget->assign(place(row.offset), &kept);
      }
      if (row.kind == ParameterRow::Kind::pyramid) {
        Budget& budget = *reinterpret_cast<Budget*>(place(row.offset));
        budget = Budget::pyramid(budget, window(made.get()), PyramidBeta::parse(said->value)->beta);
      }
    }
    return entry->stage(made.get());
  }

  std::string to_string(std::span<const Default> defaults) const {
    std::string text;
    const auto append = [&](std::string_view name, std::string_view value) {
      text.append(text.empty() ? ":" : ",").append(name);
      if (!value.empty()) text.append("=").append(value);
    };
    if (!entry->base.empty()) append("base", entry->base);
    for (const ParameterRow& row : entry->rows)
      for (const Default& given : defaults)
        if (takes(row, given.type->name))
          if (const std::string value = given.type->write(given.value.get()); !value.empty()) append(row.name, value);
    for (const Word& said : words) append(said.name, said.value);
    return entry->name + text;
  }

 private:
  /// The slots that every layer keeps under a pyramid: the policy's window, if it has one.
  std::size_t window(const void* made) const {
    for (const ParameterRow& row : entry->rows)
      if (std::string_view(row.name) == "window" && row.type == &TypeOf<std::size_t>)
        return *reinterpret_cast<const std::size_t*>(static_cast<const std::byte*>(made) + row.offset);
    return 0;
  }
};

}  // namespace kvc::inline KVC_ABI::detail
