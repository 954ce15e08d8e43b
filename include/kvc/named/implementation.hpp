#pragma once
// What kvc/named/any_policy_class.hpp declares, for one file of a build with KVC_COMPILED and every file of another one.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/named/any_policy_class.hpp"
#include "kvc/named/parser.hpp"

namespace kvc::inline KVC_ABI {

namespace detail {

KVC_FORWARD void add_entry(PolicyEntry entry) {
  Registry::instance().add(std::move(entry));
}

/// The value that a parameter has before a text changes it; empty: none.
inline std::string fallback_of(const PolicyEntry& entry, const ParameterRow& row) {
  if (row.kind != ParameterRow::Kind::member) return "";
  return row.type->write(static_cast<const std::byte*>(entry.start.get()) + row.offset);
}

}  // namespace detail

KVC_FORWARD std::optional<Member> TextOf<Member>::read(std::string_view text) {
  const Stages stages = AnyPolicy::parse(text).stages();
  return stages.size() == 1 ? std::optional(Member(stages.front())) : std::nullopt;
}
KVC_FORWARD std::string TextOf<Member>::write(const Member& member) {
  const detail::PolicyEntry* entry = member ? detail::Registry::instance().find(member.stage()) : nullptr;
  if (!entry) return "";
  const std::string words = detail::write_parameters(entry->rows, entry->policy(member.stage()), entry->start.get());
  return words.empty() ? entry->name : joined({"(", entry->name, ":", words, ")"});
}

KVC_FORWARD AnyPolicy AnyPolicy::parse(std::string_view text) {
  AnyPolicy policy;
  policy.parts_ = detail::PolicyParser(text).stages();
  return policy;
}

KVC_FORWARD std::vector<std::string> AnyPolicy::names() {
  return detail::Registry::instance().names();
}

KVC_FORWARD std::vector<ParameterText> AnyPolicy::parameters(std::string_view name) {
  const detail::PolicyEntry& entry = detail::Registry::instance().at(name);
  std::vector<ParameterText> all;
  for (const detail::ParameterRow& row : entry.rows)
    all.push_back({row.name, detail::fallback_of(entry, row), row.type->expected(), row.help});
  return all;
}

KVC_FORWARD std::string AnyPolicy::describe(std::string_view name) {
  constexpr std::size_t Width = 26;
  const detail::PolicyEntry& entry = detail::Registry::instance().at(name);
  std::string text = joined({entry.name, ": ", entry.help, "\n"});
  for (const ParameterText& parameter : parameters(name)) {
    std::string left = joined({parameter.name, parameter.fallback.empty() ? "" : "=", parameter.fallback});
    left.resize(std::max(Width, left.size() + 1), ' ');
    text += joined({"  ", left, parameter.help, " [", parameter.expected, "]\n"});
  }
  return text;
}

KVC_FORWARD std::string AnyPolicy::markdown(std::string_view name) {
  const detail::PolicyEntry& entry = detail::Registry::instance().at(name);
  std::string text = joined({"### `", entry.name, "`\n\n", entry.help, "\n\n",
                             "| parameter | default | takes | meaning |\n|---|---|---|---|\n"});
  const auto cell = [&](const std::string& content) {
    text += "| ";
    for (const char letter : content) text.append(letter == '|' ? "\\" : "").append(1, letter);
    text += content.empty() ? "" : " ";
  };
  for (const ParameterText& parameter : parameters(name)) {
    cell(joined({"`", parameter.name, "`"}));
    cell(parameter.fallback);
    cell(parameter.expected);
    cell(parameter.help);
    text += "|\n";
  }
  return text;
}

KVC_FORWARD bool AnyPolicy::wants(std::string_view type) const {
  for (const detail::Default& given : defaults_)
    if (given.type->name == type) return false;
  return std::any_of(parts_.begin(), parts_.end(), [&](const auto& part) { return part->takes(type); });
}

KVC_FORWARD void AnyPolicy::set_default(const detail::ValueType& type, std::shared_ptr<const void> value) {
  std::erase_if(defaults_, [&](const detail::Default& given) { return given.type->name == type.name; });
  defaults_.push_back({&type, std::move(value)});
}

KVC_FORWARD Stages AnyPolicy::stages() const {
  Stages all;
  for (const auto& part : parts_)
    for (auto& stage : part->stages(defaults_)) all.push_back(std::move(stage));
  return all;
}

KVC_FORWARD std::string AnyPolicy::to_string() const {
  std::string text;
  for (const auto& part : parts_) text.append(text.empty() ? "" : " | ").append(part->to_string(defaults_));
  return text;
}

}  // namespace kvc::inline KVC_ABI
