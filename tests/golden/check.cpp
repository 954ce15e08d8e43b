#include "golden/check.hpp"

#include <fmt/format.h>
#include <kvc/error.hpp>

#include <cmath>
#include <iterator>
#include <utility>

namespace golden {
namespace {

/// NaN differs from everything; equal infinities do not.
double difference_of(double got, double expected) {
  if (got == expected) return 0;
  const double difference = std::abs(got - expected);
  return std::isnan(difference) ? INFINITY : difference;
}

double allowed(Tolerance tolerance, double expected) {
  return tolerance.absolute + (std::isfinite(expected) ? tolerance.relative * std::abs(expected) : 0);
}

}  // namespace

const Tensor& Check::expected(const std::string& name, std::size_t first, std::size_t count) {
  const Tensor& tensor = golden_.tensor(name);
  if (first > tensor.elements() || count > tensor.elements() - first)
    kvc::fail(kvc::ErrorCode::shape_mismatch, fmt::format("{}: got elements {} to {}, but the tensor has {}", name,
                                                          first, first + count, tensor.elements()));
  return tensor;
}

std::vector<std::uint8_t>& Check::touched(const Tensor& tensor) {
  std::vector<std::uint8_t>& flags = touched_[tensor.name];
  flags.resize(tensor.elements());
  return flags;
}
void Check::touch(const Tensor& tensor, std::size_t first, std::size_t count) {
  std::fill_n(touched(tensor).begin() + static_cast<std::ptrdiff_t>(first), count, std::uint8_t{1});
}

Tolerance Check::stated(const std::string& tensor) const {
  const std::optional<double> tolerance = golden_.tensor(tensor).tolerance;
  if (!tolerance) kvc::fail(kvc::ErrorCode::bad_file, tensor + ": the manifest states no tolerance");
  return {*tolerance};
}

void Check::compare(const std::string& name, std::size_t place, double difference, double tolerance) {
  Finding& finding = findings_[name];
  ++compared_in_way_;
  const bool first = finding.compared++ == 0, failed = !(difference <= tolerance);
  finding.failed |= failed;
  // The worst is what exceeds its tolerance most.
  if (!first && !(difference - tolerance > finding.difference - finding.tolerance)) return;
  finding.difference = difference;
  finding.tolerance = tolerance;
  finding.place = place;
  finding.way = way_;
}

void Check::values(const std::string& tensor, std::span<const float> got, std::size_t first) {
  values(tensor, got, first, stated(tensor));
}
void Check::values(const std::string& tensor, std::span<const float> got, std::size_t first, Tolerance tolerance) {
  const std::vector<float>& all = golden_.floats(expected(tensor, first, got.size()).name);
  for (std::size_t i = 0; i < got.size(); ++i)
    compare(tensor, first + i, difference_of(got[i], all[first + i]), allowed(tolerance, all[first + i]));
  touch(golden_.tensor(tensor), first, got.size());
}

void Check::values_where(const std::string& tensor, std::span<const float> got, std::span<const std::uint8_t> flags) {
  const std::vector<float>& all = golden_.floats(tensor);
  if (got.size() != all.size() || flags.size() != all.size())
    kvc::fail(kvc::ErrorCode::shape_mismatch,
              fmt::format("{}: got {} values, expected {}", tensor, got.size(), all.size()));
  const Tolerance tolerance = stated(tensor);
  std::size_t left_out = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (flags[i] != 0)
      compare(tensor, i, difference_of(got[i], all[i]), allowed(tolerance, all[i]));
    else
      ++left_out;
  }
  if (left_out != 0) left_out_[tensor]["their codes differ by one level"] = left_out;
  touch(golden_.tensor(tensor), 0, got.size());
}

void Check::quantized_values(const std::string& tensor, std::span<const float> got, std::span<const float> steps,
                             CodeRule rule) {
  const std::vector<float>& all = golden_.floats(tensor);
  if (got.size() != all.size() || steps.size() != all.size())
    kvc::fail(kvc::ErrorCode::shape_mismatch,
              fmt::format("{}: got {} values, expected {}", tensor, got.size(), all.size()));
  const Tolerance tolerance = stated(tensor);
  double budget = rule.share * double(all.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double difference = difference_of(got[i], all[i]), limit = allowed(tolerance, all[i]);
    const bool tie = !rule.ties.empty() && rule.ties[i] != 0;
    const bool one_step = difference > limit && difference <= std::abs(double(steps[i])) * (1 + 1e-3) + limit;
    if (one_step && !tie) budget -= 1;
    compare(tensor, i, difference, one_step && (tie || budget >= 0) ? difference : limit);
  }
  touch(golden_.tensor(tensor), 0, got.size());
}

void Check::integers(const std::string& tensor, std::span<const std::int32_t> got, std::size_t first) {
  const std::vector<std::int32_t> all = golden_.integers(expected(tensor, first, got.size()).name);
  for (std::size_t i = 0; i < got.size(); ++i) compare(tensor, first + i, difference_of(got[i], all[first + i]), 0);
  touch(golden_.tensor(tensor), first, got.size());
}

void Check::index_set(const std::string& tensor, std::span<const kvc::Position> got, std::size_t first,
                      std::size_t count) {
  const std::vector<std::int32_t> wanted = golden_.indices(expected(tensor, first, count).name, first, count);
  std::vector<std::int32_t> found(got.begin(), got.end()), different;
  std::sort(found.begin(), found.end());
  std::set_symmetric_difference(wanted.begin(), wanted.end(), found.begin(), found.end(),
                                std::back_inserter(different));
  compare(tensor, first, double(different.size()), 0);
  findings_[tensor].compared += std::max<std::size_t>(wanted.size(), 1) - 1;
  touch(golden_.tensor(tensor), first, count);
}

std::vector<std::uint8_t> Check::codes(const std::string& tensor, std::span<const std::int32_t> got,
                                       std::span<const std::int32_t> expected, CodeRule rule) {
  if (got.size() != expected.size())
    kvc::fail(kvc::ErrorCode::shape_mismatch,
              fmt::format("{}: got {} codes, expected {}", tensor, got.size(), expected.size()));
  std::vector<std::uint8_t> agree(got.size());
  double budget = rule.share * double(got.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    agree[i] = got[i] == expected[i];
    const double difference = difference_of(got[i], expected[i]);
    const bool tie = !rule.ties.empty() && rule.ties[i] != 0;
    if (difference == 1 && !tie) budget -= 1;
    compare(tensor, i, difference, difference == 1 && (tie || budget >= 0) ? 1 : 0);
  }
  touch(golden_.tensor(tensor), 0, golden_.tensor(tensor).elements());
  return agree;
}

void Check::multiset(const std::string& tensor, std::size_t first, std::size_t count, std::vector<float> got,
                     std::vector<float> expected, Tolerance tolerance) {
  this->expected(tensor, first, count);
  if (got.size() != expected.size()) {
    fail(fmt::format("{}: got {} scores, expected {}", tensor, got.size(), expected.size()));
    return;
  }
  std::sort(got.begin(), got.end());
  std::sort(expected.begin(), expected.end());
  for (std::size_t i = 0; i < got.size(); ++i)
    compare(tensor, first, difference_of(got[i], expected[i]), allowed(tolerance, expected[i]));
  touch(golden_.tensor(tensor), first, count);
}

void Check::figure(const std::string& name, double got, double expected, Tolerance tolerance) {
  compare(name, 0, difference_of(got, expected), allowed(tolerance, expected));
}

void Check::not_compared(const std::string& tensor, std::size_t first, std::size_t count, const std::string& reason) {
  touch(expected(tensor, first, count), first, count);
  left_out_[tensor][reason] += count;
}
void Check::not_compared(const std::string& tensor, const std::string& reason) {
  not_compared(tensor, 0, golden_.tensor(tensor).elements(), reason);
}

void Check::fail(const std::string& sentence) {
  const std::string text = way_.empty() ? sentence : sentence + " [" + way_ + "]";
  if (std::find(failures_.begin(), failures_.end(), text) == failures_.end()) failures_.push_back(text);
}

void Check::begin_way(const std::string& name) {
  if (!way_.empty()) end_way();
  way_ = name;
  compared_in_way_ = 0;
  touched_.clear();
  left_out_.clear();
}

void Check::end_way() {
  if (compared_in_way_ == 0) return fail("nothing was compared");
  for (const Tensor& tensor : golden_.tensors()) {
    if (tensor.role != TensorRole::expected) continue;
    const std::vector<std::uint8_t>& flags = touched(tensor);
    const auto missing = std::count(flags.begin(), flags.end(), std::uint8_t{0});
    if (missing != 0) fail(fmt::format("{}, {} of {} elements were not compared", tensor.name, missing, flags.size()));
  }
}

void Check::finish() {
  if (std::exchange(finished_, true)) return;
  end_way();
  for (const auto& [name, finding] : findings_)
    if (finding.failed)
      failures_.push_back(fmt::format("{}, worst difference {:.3g}, tolerance {:.3g} (element {}{}{})", name,
                                      finding.difference, finding.tolerance, finding.place,
                                      finding.way.empty() ? "" : ", ", finding.way));
}

std::size_t Check::compared() const {
  std::size_t sum = 0;
  for (const auto& [name, finding] : findings_) sum += finding.compared;
  return sum;
}
std::vector<std::string> Check::notes() const {
  std::vector<std::string> lines;
  for (const auto& [tensor, reasons] : left_out_)
    for (const auto& [reason, count] : reasons)
      lines.push_back(fmt::format("{}: {} of {} elements not compared, {}", tensor, count,
                                  golden_.tensor(tensor).elements(), reason));
  return lines;
}
std::vector<std::string> Check::details() const {
  std::vector<std::string> lines;
  for (const auto& [name, finding] : findings_)
    lines.push_back(fmt::format("{}: {} compared, worst difference {:.3g}, tolerance {:.3g}", name, finding.compared,
                                finding.difference, finding.tolerance));
  return lines;
}

}  // namespace golden
