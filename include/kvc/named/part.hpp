#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/named/pieces.hpp"
#include "kvc/named/registry.hpp"
#include "kvc/policy/pipeline.hpp"

namespace kvc::inline KVC_ABI::detail {

/// One `name=value` of a policy text, as it stands there; the value of a bare name is empty.
struct Word {
  std::string name, value;
};

/// The parameter that a row belongs to: several ways to say one thing are one group, and a text may use one of them.
inline std::string_view group_of(const ParameterRow& row) {
  return row.replaced ? row.replaced : row.name;
}
/// Whether the row is a policy inside the policy, or several.
inline bool is_member(const ParameterRow& row) {
  return row.kind == ParameterRow::Kind::member && row.type->name == TypeOf<Member>.name;
}
inline bool is_members(const ParameterRow& row) {
  return row.kind == ParameterRow::Kind::member && row.type->name == TypeOf<std::vector<Member>>.name;
}

/// One stage of a policy text.
struct Part {
  /// Policies inside this one that the text names.
  struct Inner {
    const ParameterRow* row;
    std::vector<Part> parts;
  };
  struct Layers {
    std::size_t first, last;
  };

  const PolicyEntry* entry = nullptr;
  std::shared_ptr<void> policy;  ///< with the plain data members that the words name
  std::vector<Word> words;
  std::vector<Inner> inner;
  std::optional<Layers> layers;
  std::string layers_text;  ///< "[0-3] "

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
  /// Whether this policy, or one inside it, takes a default of this type. The Budget of one inside does not count.
  bool takes(std::string_view type) const {
    for (const ParameterRow& row : entry->rows)
      if (takes(row, type)) return true;
    if (type == TypeOf<Budget>.name) return false;
    for (const Inner& members : inner)
      for (const Part& part : members.parts)
        if (part.takes(type)) return true;
    return false;
  }

  Stages stages(std::span<const Default> defaults) const {
    const std::shared_ptr<void> made = entry->copy(policy.get());
    const auto place = [&](std::size_t offset) { return static_cast<std::byte*>(made.get()) + offset; };
    for (const ParameterRow& row : entry->rows)
      for (const Default& given : defaults)
        if (takes(row, given.type->name)) row.type->assign(place(row.offset), given.value.get());
    for (const Inner& members : inner) set_members(members, place(members.row->offset), defaults);
    // Setters look at data members, and a pyramid at the budget that any of the others has set.
    for (const ParameterRow& row : entry->rows)
      if (const Word* said = row.kind == ParameterRow::Kind::member ? nullptr : word(row.name))
        derive(row, without_parentheses(said->value), made.get());
    Stages stages = entry->stages(made.get());
    for (auto& stage : stages)
      if (layers) stage = std::make_shared<const StageOnLayers>(std::move(stage), layers->first, layers->last);
    return stages;
  }

  std::string to_string(std::span<const Default> defaults) const {
    std::string text;
    const auto append = [&](std::string_view name, std::string_view value) {
      text.append(text.empty() ? ":" : ",").append(name);
      if (!value.empty()) text.append("=").append(value);
    };
    for (const ParameterRow& row : entry->rows)
      for (const Default& given : defaults)
        if (takes(row, given.type->name))
          if (const std::string value = given.type->write(given.value.get()); !value.empty()) append(row.name, value);
    for (const Word& said : words) append(said.name, said.value);
    return joined({layers_text, entry->name, text});
  }

 private:
  void set_members(const Inner& members, std::byte* place, std::span<const Default> defaults) const {
    std::vector<Default> facts;  // a default Budget is for this policy, not for those inside it
    for (const Default& given : defaults)
      if (given.type->name != TypeOf<Budget>.name) facts.push_back(given);
    std::vector<Member> made;
    // Of a word that stands for several stages, the first one scores; a policy that is inside another one evicts nothing.
    for (const Part& part : members.parts) made.emplace_back(part.stages(facts).front());
    if (is_members(*members.row))
      *reinterpret_cast<std::vector<Member>*>(place) = std::move(made);
    else
      *reinterpret_cast<Member*>(place) = std::move(made.front());
  }

  void derive(const ParameterRow& row, std::string_view value, void* made) const {
    std::byte* const place = static_cast<std::byte*>(made) + row.offset;
    if (row.kind == ParameterRow::Kind::setter) {
      row.set(row.function, made, value);
    } else if (row.kind == ParameterRow::Kind::keep) {
      const Budget kept = Budget::fraction(KeptShare::parse(value)->share);
      row.budget->assign(place, &kept);
    } else {
      Budget& budget = *reinterpret_cast<Budget*>(place);
      budget = Budget::pyramid(budget, window(made), PyramidBeta::parse(value)->beta);
    }
  }

  /// The slots that every layer keeps under a pyramid: the window of the policy, or of the one inside it.
  std::size_t window(const void* made) const {
    for (const ParameterRow& row : entry->rows) {
      const std::byte* const place = static_cast<const std::byte*>(made) + row.offset;
      if (std::string_view(row.name) == "window" && row.type->name == TypeOf<std::size_t>.name)
        return *reinterpret_cast<const std::size_t*>(place);
      if (is_member(row))
        if (const Member& member = *reinterpret_cast<const Member*>(place)) return member.stage().needs().query_window;
    }
    return 0;
  }
};

}  // namespace kvc::inline KVC_ABI::detail
