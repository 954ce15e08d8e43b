// Reports as JSON: each struct has one list of its fields, which is read and written by the same words.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "json.hpp"
#include "kvc/error.hpp"
#include "results.hpp"

namespace evaluation {
namespace {

/// Writes fields into an object.
struct Writer {
  Json json = Json::object();

  template <class T>
  void operator()(const std::string& name, const T& value) {
    json[name] = value;
  }
  void operator()(const std::string& name, const std::optional<double>& value) {
    json[name] = value ? Json(*value) : Json(nullptr);
  }
  void operator()(const std::string& name, const std::optional<Mean>& mean) {
    json[name] = mean ? Json(mean->value) : Json(nullptr);
    json[name + "_error"] = mean && mean->error ? Json(*mean->error) : Json(nullptr);
  }
  void operator()(const std::string& name, const Mean& mean) { (*this)(name, std::optional(mean)); }
};

/// Reads fields out of an object.
struct Reader {
  const Json& json;

  template <class T>
  void operator()(const std::string& name, T& value) const {
    json.at(name).get_to(value);
  }
  void operator()(const std::string& name, std::optional<double>& value) const {
    const Json& field = json.at(name);
    value = field.is_null() ? std::nullopt : std::optional(field.get<double>());
  }
  void operator()(const std::string& name, std::optional<Mean>& mean) const {
    if (json.at(name).is_null()) return mean.reset();
    mean.emplace().value = json.at(name).get<double>();
    (*this)(name + "_error", mean->error);
  }
  void operator()(const std::string& name, Mean& mean) const {
    std::optional<Mean> there;
    (*this)(name, there);
    if (!there) kvc::fail(kvc::ErrorCode::bad_file, fmt::format("'{}' is null", name));
    mean = *there;
  }
};

void protocol_fields(auto& protocol, auto&& field) {
  field("texts", protocol.texts);
  field("tuning", protocol.tuning);
  field("windows", protocol.windows.count);
  field("offset", protocol.windows.offset);
  field("stride", protocol.windows.stride);
  field("decode", protocol.windows.decode);
  field("passkey_prompts", protocol.samples);
  field("needles", protocol.needles);
  field("dense", protocol.dense);
  field("prompt_only", protocol.prompt_only);
  field("fast", protocol.fast);
  field("threads", protocol.threads);
  field("machine", protocol.machine);
  field("commands", protocol.commands);
}

void result_fields(auto& result, auto&& field) {
  field("policy", result.policy);
  field("keep", result.keep);
  field("bytes", result.bytes);
  field("dense_bytes", result.dense_bytes);
  field("bytes_dense_rows", result.parts.dense);
  field("bytes_codes", result.parts.codes);
  field("bytes_scales", result.parts.scales);
  field("bytes_metadata", result.parts.metadata);
  field("bytes_slack", result.parts.slack);
  field("kept_fraction", result.kept_fraction);
  field("nll", result.nll);
  field("perplexity_ratio", result.perplexity_ratio);
  field("kl", result.kl);
  field("kl_first_quarter", result.kl_first);
  field("kl_last_quarter", result.kl_last);
  field("top1", result.top1);
  field("passkey", result.passkey);
  field("passkeys_found", result.found);
  field("passkeys_asked", result.asked);
  field("probed", result.probed);
  field("act_seconds", result.act_seconds);
  field("act_peak_bytes", result.act_peak_bytes);
  field("attend_us", result.attend_us);
  field("token_ms", result.token_ms);
}

Json json_of(const Result& result) {
  Writer write;
  result_fields(result, write);
  write("ratio", result.ratio());
  write("perplexity", result.perplexity());
  write.json["passkeys_by_depth"] = Json::array();
  for (const DepthCount& at : result.by_depth)
    write.json["passkeys_by_depth"].push_back({{"depth", at.depth}, {"found", at.found}, {"asked", at.asked}});
  write("kept_columns", result.kept.columns);
  write("kept_pixels", result.kept.to_text());
  return write.json;
}

/// Throws unless plots can be drawn of the figures.
void check_figures(const Result& result) {
  constexpr double Most = 1e15;
  const auto refuse = [&](const char* name, double figure) {
    kvc::fail(kvc::ErrorCode::bad_file, fmt::format("the result of '{}' has {} = {}", result.policy, name, figure));
  };
  for (const auto& [name, bytes] : {std::pair{"bytes", result.bytes.value}, {"dense_bytes", result.dense_bytes}})
    if (!(bytes >= 1) || bytes > Most) refuse(name, bytes);
  for (const auto& [name, mean] : {std::pair{"kl", result.kl}, {"perplexity_ratio", result.perplexity_ratio}})
    if (mean && !(std::abs(mean->value) < Most)) refuse(name, mean->value);
}

Result result_of(const Json& json) {
  Result result;
  result_fields(result, Reader{json});
  check_figures(result);
  for (const Json& at : json.at("passkeys_by_depth"))
    result.by_depth.push_back(
        {at.at("depth").get<double>(), at.at("found").get<std::size_t>(), at.at("asked").get<std::size_t>()});
  result.kept =
      KeptPicture::from_text(json.at("kept_columns").get<std::size_t>(), json.at("kept_pixels").get<std::string>());
  return result;
}

Json json_of(const PromptResults& length) {
  Writer write;
  write("prompt", length.prompt);
  write("prompt_seconds", length.prompt_seconds);
  write("repeat_seconds", length.repeat_seconds);
  write.json["full"] = json_of(length.full);
  write.json["results"] = Json::array();
  for (const Result& result : length.results) write.json["results"].push_back(json_of(result));
  return write.json;
}

PromptResults prompt_results_of(const Json& json) {
  PromptResults length;
  const Reader read{json};
  read("prompt", length.prompt);
  read("prompt_seconds", length.prompt_seconds);
  read("repeat_seconds", length.repeat_seconds);
  length.full = result_of(json.at("full"));
  for (const Json& result : json.at("results")) length.results.push_back(result_of(result));
  return length;
}

Report report_of(const Json& json) {
  Report report;
  json.at("model").get_to(report.protocol.model);
  protocol_fields(report.protocol, Reader{json.at("protocol")});
  for (const Json& length : json.at("lengths")) report.lengths.push_back(prompt_results_of(length));
  return report;
}

/// What must be the same of two runs whose figures stand side by side, as JSON. Commands and machines may differ.
Json comparable(const Protocol& protocol) {
  Writer write;
  protocol_fields(protocol, write);
  write("model", protocol.model);
  write.json.erase("commands");
  write.json.erase("machine");
  write.json.erase("threads");
  return write.json;
}

void check_same_protocol(const Protocol& first, const Protocol& other, const std::string& path) {
  const Json before = comparable(first), now = comparable(other);
  for (const auto& [key, value] : before.items())
    if (now.at(key) != value)
      kvc::fail(kvc::ErrorCode::bad_file,
                fmt::format("--from: {} was measured otherwise than the file before: {} is {} there and {} here; give "
                            "files of one protocol",
                            path, key, value.dump(), now.at(key).dump()));
}

void take_results(PromptResults& length, const PromptResults& more) {
  length.full = more.full;
  for (const Result& result : more.results) {
    const auto same = std::ranges::find_if(length.results, [&](const Result& other) {
      return other.policy == result.policy && other.keep == result.keep;
    });
    if (same == length.results.end())
      length.results.push_back(result);
    else
      *same = result;
  }
  if (more.prompt_seconds) length.prompt_seconds = more.prompt_seconds;
  if (more.repeat_seconds) length.repeat_seconds = more.repeat_seconds;
}

void take_report(Report& report, const Report& more) {
  for (const std::string& command : more.protocol.commands)
    if (std::ranges::count(report.protocol.commands, command) == 0) report.protocol.commands.push_back(command);
  for (const PromptResults& length : more.lengths) {
    const auto same = std::ranges::find(report.lengths, length.prompt, &PromptResults::prompt);
    if (same == report.lengths.end())
      report.lengths.push_back(length);
    else
      take_results(*same, length);
  }
}

}  // namespace

std::string to_json(const Report& report) {
  Writer write;
  write("model", report.protocol.model);
  Writer protocol;
  protocol_fields(report.protocol, protocol);
  write.json["protocol"] = protocol.json;
  write.json["lengths"] = Json::array();
  for (const PromptResults& length : report.lengths) write.json["lengths"].push_back(json_of(length));
  return to_text(write.json);
}

Report read_reports(const std::vector<std::string>& paths) {
  Report report;
  for (const std::string& path : paths) {
    const Report one = read_json(path, "--from", report_of);
    if (report.lengths.empty()) {
      report = one;
    } else {
      check_same_protocol(report.protocol, one.protocol, path);
      take_report(report, one);
    }
  }
  return report;
}

}  // namespace evaluation
