#include <kvc/policies/snapkv.hpp>

#include <algorithm>
#include <numeric>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using kvc::Event;
using kvc::Pooling;
using kvc::Position;
using kvc::Reduce;
using kvc::SnapKV;
using support::FakeHead;
using support::positions_between;

namespace {

/// Votes of the last `window` queries of one query head for the tokens before them.
std::vector<double> votes(const FakeHead<SnapKV>& head, std::size_t member) {
  std::vector<double> sum(head.positions.size() - head.policy.window);
  for (std::size_t back = 0; back < head.policy.window; ++back) {
    const std::vector<double> row = head.attention(back, member);
    for (std::size_t j = 0; j < sum.size(); ++j) sum[j] += row[j];
  }
  return sum;
}

/// Pooling by the book: the padding is 0 for averages and -infinity for maxima, the divisor always the kernel.
std::vector<double> pooled(const std::vector<double>& in, std::size_t kernel, Pooling how) {
  std::vector<double> padded(in.size() + kernel - 1, how == Pooling::max ? -INFINITY : 0.0), out;
  std::copy(in.begin(), in.end(), padded.begin() + std::ptrdiff_t(kernel / 2));
  for (std::size_t j = 0; j < in.size(); ++j) {
    const auto begin = padded.begin() + std::ptrdiff_t(j), end = begin + std::ptrdiff_t(kernel);
    out.push_back(how == Pooling::max ? *std::max_element(begin, end)
                                      : std::accumulate(begin, end, 0.0) / double(kernel));
  }
  return out;
}

std::vector<double> reduced(const std::vector<std::vector<double>>& rows, Reduce how) {
  std::vector<double> out = rows[0];
  for (std::size_t r = 1; r < rows.size(); ++r)
    for (std::size_t j = 0; j < out.size(); ++j)
      out[j] = how == Reduce::max ? std::max(out[j], rows[r][j]) : out[j] + rows[r][j];
  if (how == Reduce::mean)
    for (double& x : out) x /= double(rows.size());
  return out;
}

std::vector<double> naive_scores(const FakeHead<SnapKV>& head) {
  const SnapKV& policy = head.policy;
  std::vector<std::vector<double>> rows;
  for (std::size_t g = 0; g < head.shape.group(); ++g) rows.push_back(votes(head, g));
  if (policy.order == SnapKV::Order::before_pooling)
    return pooled(reduced(rows, policy.reduce), policy.kernel, policy.pooling);
  for (std::vector<double>& row : rows) row = pooled(row, policy.kernel, policy.pooling);
  return reduced(rows, policy.reduce);
}

std::vector<float> scores(FakeHead<SnapKV>& head) {
  std::vector<float> result(head.positions.size());
  head.policy.score(head.head(Event::prompt_end), result);
  return result;
}

}  // namespace

TEST_CASE("SnapKV scores a token by the pooled votes of the prompt's last queries") {
  const Pooling pooling = GENERATE(Pooling::average, Pooling::max);
  const Reduce reduce = GENERATE(Reduce::sum, Reduce::mean, Reduce::max);
  const SnapKV::Order order = GENERATE(SnapKV::Order::before_pooling, SnapKV::Order::after_pooling);
  FakeHead head(SnapKV{.window = 6, .kernel = 5, .pooling = pooling, .reduce = reduce, .order = order},
                {.query_heads = 3, .kv_heads = 1, .head_dim = 8});
  head.append(50);
  const std::vector<double> expected = naive_scores(head);
  const std::vector<float> got = scores(head);
  REQUIRE(expected.size() == 44);
  for (std::size_t j = 0; j < expected.size(); ++j) CHECK(std::abs(got[j] - expected[j]) < 1e-5);
}

TEST_CASE("SnapKV keeps the best tokens and the window, once") {
  FakeHead head(SnapKV{.budget = 16, .window = 6, .kernel = 3});
  head.append(50);
  std::vector<double> expected_scores = naive_scores(head);
  std::vector<Position> best = positions_between(0, 44);
  std::stable_sort(best.begin(), best.end(), [&](Position a, Position b) {
    return expected_scores[std::size_t(a)] > expected_scores[std::size_t(b)];
  });
  best.resize(10);
  std::sort(best.begin(), best.end());

  head.apply(head.plan(Event::prompt_end));
  CHECK(head.positions == support::joined(best, positions_between(44, 50)));
  head.pass(Event::decode, 1);
  CHECK(head.positions.size() == 17);  // generated tokens all stay
}

TEST_CASE("SnapKV leaves a prompt within its budget untouched, and waits for the prompt's end") {
  FakeHead head(SnapKV{.budget = 50, .window = 6});
  head.append(50);
  CHECK(head.plan(Event::prompt_end).kept_count() == 50);
  head.append(30);
  CHECK(head.plan(Event::prompt_chunk).kept_count() == 80);
  CHECK(head.plan(Event::prompt_end).kept_count() == 50);
}

TEST_CASE("SnapKV's average divides by the kernel at the borders too") {
  FakeHead head(SnapKV{.budget = 20, .window = 2, .kernel = 5});
  head.append(30);
  for (std::vector<float>& query : head.queries) std::fill(query.begin(), query.end(), 0.0f);
  const std::vector<float> got = scores(head);
  for (const std::size_t j : {0u, 27u}) CHECK(std::abs(got[j] / got[10] - 0.6f) < 1e-5f);
  for (const std::size_t j : {1u, 26u}) CHECK(std::abs(got[j] / got[10] - 0.8f) < 1e-5f);
  CHECK(std::abs(got[2] / got[10] - 1.0f) < 1e-5f);
}

TEST_CASE("SnapKV keeps the older of equal votes") {
  FakeHead head(SnapKV{.budget = 10, .window = 2, .kernel = 1});
  head.append(30);
  for (std::vector<float>& query : head.queries) std::fill(query.begin(), query.end(), 0.0f);
  head.apply(head.plan(Event::prompt_end));
  CHECK(head.positions == support::joined(positions_between(0, 8), positions_between(28, 30)));
}

TEST_CASE("SnapKV's window survives keys that poison every vote") {
  FakeHead head(SnapKV{.budget = 10, .window = 4, .kernel = 3});
  head.append(30);
  head.stored_keys[3][0] = std::nanf("");
  head.apply(head.plan(Event::prompt_end));
  CHECK(head.positions.size() == 10);
  CHECK(std::vector<Position>(head.positions.end() - 4, head.positions.end()) == positions_between(26, 30));
}

TEST_CASE("SnapKV's choice does not depend on the order of the query heads of a group") {
  FakeHead head(SnapKV{.budget = 12, .window = 4}), swapped(head);
  head.append(40);
  swapped.append(40);
  for (std::vector<float>& query : swapped.queries) std::rotate(query.begin(), query.begin() + 8, query.end());
  head.apply(head.plan(Event::prompt_end));
  swapped.apply(swapped.plan(Event::prompt_end));
  CHECK(head.positions == swapped.positions);
}

TEST_CASE("SnapKV with a fraction below its window keeps the window") {
  FakeHead head(SnapKV{.budget = kvc::Budget::fraction(0.1), .window = 8});
  head.append(40);
  head.apply(head.plan(Event::prompt_end));
  CHECK(head.positions == positions_between(32, 40));
}

TEST_CASE("SnapKV asks for the window's queries and for nothing else") {
  const kvc::Needs needs = SnapKV{.window = 17}.needs();
  CHECK(needs.query_window == 17);
  CHECK(needs.prompt == kvc::Feed::none);
  CHECK(needs.decode == kvc::Feed::none);
}

TEST_CASE("SnapKV refuses an even kernel, an empty window and a budget that the window fills") {
  const kvc::CacheShape shape{};
  CHECK(support::error_text([&] { SnapKV{.kernel = 4}.validate(shape); }) == "SnapKV: kernel must be odd, got 4");
  CHECK(support::error_text([&] { SnapKV{.window = 0}.validate(shape); }) ==
        "SnapKV: window must lie between 1 and 2147483647, got 0");
  CHECK(support::error_text([&] { SnapKV{.budget = 32, .window = 32}.validate(shape); }) ==
        "SnapKV: window + 1 (33) must not exceed the budget (32)");
  CHECK(support::error_text([&] { SnapKV{.budget = 33, .window = 32}.validate(shape); }) == "none");
}
