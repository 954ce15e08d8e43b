#include <kvc/policies/mini_cache.hpp>

#include <cmath>
#include <numbers>

#include "catch_shim.hpp"
#include "kvc/named/any_policy.hpp"
#include "support/fake_head.hpp"

using kvc::choose_retained;
using kvc::compare_rows;
using kvc::LayerPair;
using kvc::MiniCache;
using kvc::Retention;
using kvc::RowPair;

namespace {

using Row = std::vector<float>;
using Flags = std::vector<std::uint8_t>;

const kvc::CacheShape Shape{.layers = 30, .query_heads = 9, .kv_heads = 3, .head_dim = 8};

Row direction_of(const Row& below, const Row& here, double t) {
  Row direction(below.size());
  kvc::slerp(below, here, compare_rows(below, here), t, direction);
  return direction;
}
double norm_of(const Row& x) {
  double squares = 0;
  for (const float value : x) squares += double(value) * double(value);
  return std::sqrt(squares);
}
std::vector<std::size_t> upper_layers(const MiniCache& policy, const kvc::CacheShape& shape) {
  std::vector<std::size_t> layers;
  for (std::size_t layer = 1; layer < shape.layers; ++layer)
    if (policy.pairs(layer, shape)) layers.push_back(layer);
  return layers;
}
/// The slots whose keys, and values, two random heads of `tokens` slots share from `first` on.
struct Shared {
  std::vector<std::size_t> keys, values;
};
Shared merge(const MiniCache& policy, std::size_t tokens, std::size_t first = 0, bool same_keys = false) {
  support::FakeHead<MiniCache> below(policy, Shape, {14, 0}), here(policy, Shape, {15, 1});
  below.append(tokens);
  here.append(tokens);
  if (same_keys) here.stored_keys = below.stored_keys;
  kvc::PairPlan plan(first);
  policy.merge(below.head(kvc::Event::prompt_end), here.head(kvc::Event::prompt_end), plan);
  Shared shared;
  for (const auto& row : plan.keys()) shared.keys.push_back(row.slot);
  for (const auto& row : plan.values()) shared.values.push_back(row.slot);
  return shared;
}

}  // namespace

TEST_CASE("A direction lies on the arc between two rows, whatever their norms: t of the way to the upper one") {
  const Row below{3, 0, 0}, here{0, 0.5f, 0};
  for (const double t : {0.0, 0.25, 0.6, 1.0}) {
    const Row direction = direction_of(below, here, t);
    CHECK(double(direction[0]) == Approx(std::cos(t * std::numbers::pi / 2)).margin(1e-7));
    CHECK(double(direction[1]) == Approx(std::sin(t * std::numbers::pi / 2)).margin(1e-7));
    CHECK(direction[2] == 0);
  }
  const RowPair pair = compare_rows(below, here);
  CHECK(pair.norm_below == 3);
  CHECK(pair.norm_here == 0.5);
  CHECK(pair.distance() == Approx(0.5));
}

TEST_CASE("Distances go from 0 to 1; the angle of parallel rows is that of a cosine of 1 - 1e-6") {
  const double least = std::acos(1 - 1e-6) / std::numbers::pi;
  CHECK(compare_rows(Row{1, 2}, Row{2, 4}).distance() == Approx(least));
  CHECK(compare_rows(Row{1, 2}, Row{-2, -4}).distance() == Approx(1 - least));
  CHECK(compare_rows(Row{1, 0}, Row{-1, 1}).distance() == Approx(0.75));
}

TEST_CASE("Where rows are parallel, or an angle has no sine, interpolation is linear") {
  CHECK(norm_of(direction_of({1, 2, 3}, {2, 4, 6}, 0.6)) == Approx(1));
  Row direction(2);
  kvc::slerp(Row{2, 0}, Row{0, 1}, {.norm_below = 2, .norm_here = 1, .angle = 0}, 0.25, direction);
  CHECK(double(direction[1] / direction[0]) == Approx(1.0 / 3));
  CHECK(norm_of(direction) == Approx(1));
}

TEST_CASE("Rows that oppose each other get a finite unit direction at every t") {
  for (const double t : {0.0, 0.3, 0.5, 0.6, 1.0}) {
    CHECK(norm_of(direction_of({1, -2, 3}, {-2, 4, -6}, t)) == Approx(1));
    CHECK(norm_of(direction_of({1, 0}, {-1, 1e-4f}, t)) == Approx(1));
  }
}

TEST_CASE("A row of zeros takes the direction of the other one, and keeps a norm that is nothing") {
  const Row zeros{0, 0, 0}, row{0, 4, 3};
  for (const double t : {0.0, 0.6, 1.0}) {
    CHECK(norm_of(direction_of(zeros, row, t)) == Approx(1));
    CHECK(direction_of(zeros, row, t)[1] == Approx(0.8f));
    CHECK(direction_of(row, zeros, t)[1] == Approx(0.8f));
  }
  CHECK(compare_rows(zeros, row).norm_below == 1e-6);
  CHECK(direction_of(zeros, zeros, 0.6) == zeros);
}

TEST_CASE("far retains the most distant tokens, literal the nearest, both strictly") {
  const std::vector<double> distances{0.1, 0.5, 0.45, 0.12, 0.3};
  CHECK(choose_retained(distances, Retention::far, 0.2, 0) == Flags{0, 1, 1, 0, 0});
  CHECK(choose_retained(distances, Retention::literal, 0.2, 0) == Flags{1, 0, 0, 1, 0});
  CHECK(choose_retained(distances, Retention::none, 0.2, 1) == Flags(5));
  CHECK(choose_retained(distances, Retention::far, 0, 0) == Flags(5));
  CHECK(choose_retained(distances, Retention::literal, 0, 0) == Flags(5));
  CHECK(choose_retained(distances, Retention::far, 1, 0) == Flags{0, 1, 1, 1, 1});
  CHECK(choose_retained(distances, Retention::literal, 1, 0) == Flags{1, 0, 1, 1, 1});
}

TEST_CASE("Nothing is retained where all distances are equal, or of a single token") {
  for (const Retention rule : {Retention::far, Retention::literal}) {
    CHECK(choose_retained(std::vector<double>(4, 0.5), rule, 0.05, 0) == Flags(4));
    CHECK(choose_retained(std::vector<double>{0.5}, rule, 0.05, 0) == Flags(1));
    CHECK(choose_retained({}, rule, 0.05, 0).empty());
  }
}

TEST_CASE("count retains the ceil(ratio * tokens) farthest, the older of equals") {
  const std::vector<double> distances{0.2, 0.5, 0.3, 0.5, 0.5};
  CHECK(choose_retained(distances, Retention::count, 0, 0.2) == Flags{0, 1, 0, 0, 0});
  CHECK(choose_retained(distances, Retention::count, 0, 0.21) == Flags{0, 1, 0, 1, 0});
  CHECK(choose_retained(distances, Retention::count, 0, 0) == Flags(5));
  CHECK(choose_retained(distances, Retention::count, 0, 1) == Flags{1, 1, 1, 1, 1});
}

TEST_CASE("Pairs begin at the start depth and follow each other; an odd last layer stays alone") {
  CHECK(upper_layers({}, Shape) == std::vector<std::size_t>{16, 18, 20, 22, 24, 26, 28});
  CHECK(upper_layers({.start = 0}, {.layers = 4}) == std::vector<std::size_t>{1, 3});
  CHECK(upper_layers({.start = 0.29}, {.layers = 100}).front() == 30);
  CHECK(upper_layers({.start = 1}, Shape).empty());
  CHECK(upper_layers({}, {.layers = 1}).empty());
}

TEST_CASE("Chosen pairs replace those from the start depth on") {
  CHECK(upper_layers({.chosen = {{2, 3}, {7, 8}}}, Shape) == std::vector<std::size_t>{3, 8});
}

TEST_CASE("Keys and values are merged apart, each with retained tokens of its own") {
  const Shared shared = merge({.retention = Retention::count, .ratio = 0.1}, 60);
  CHECK(shared.keys.size() == 54);
  CHECK(shared.values.size() == 54);
  CHECK(shared.keys != shared.values);
  const Shared same_keys = merge({}, 60, 0, true);
  CHECK(same_keys.keys.size() == 60);
  CHECK(same_keys.values.size() < 60);
}

TEST_CASE("Tokens that were offered before are left alone") {
  const Shared shared = merge({.retention = Retention::none}, 60, 50);
  CHECK(shared.keys == std::vector<std::size_t>{50, 51, 52, 53, 54, 55, 56, 57, 58, 59});
  CHECK(merge({}, 60, 60).keys.empty());
}

TEST_CASE("MiniCache refuses parameters that mean nothing, and no model") {
  const auto error = [](const MiniCache& policy) { return support::error_text([&] { policy.validate(Shape); }); };
  CHECK(error({}) == "none");
  CHECK(error({.t = 0, .start = 1, .gamma = 1, .ratio = 1}) == "none");
  CHECK(error({.t = 1.5}) == "MiniCache: t must lie between 0 and 1, got 1.500000");
  CHECK(error({.start = -0.1}) != "none");
  CHECK(error({.gamma = std::nan("")}) != "none");
  CHECK(error({.ratio = 2}) != "none");
  CHECK(error({.chosen = {{0, 1}, {2, 3}}}) == "none");
  CHECK(error({.chosen = {{3, 2}}}) == "MiniCache: pair 3-2 is not two adjacent layers, the lower one first");
  CHECK(error({.chosen = {{29, 30}}}) == "MiniCache: pair 29-30 is beyond the model's last layer, 29");
  CHECK(error({.chosen = {{4, 5}, {5, 6}}}) == "MiniCache: pair 5-6 shares a layer with another pair");
  CHECK(support::error_text([] { MiniCache{}.validate({.layers = 1}); }) == "none");
}

TEST_CASE("Texts name MiniCache's parameters, pairs among them") {
  const auto parsed = [](const char* text) {
    const auto stages = kvc::AnyPolicy::parse(text).stages();
    return static_cast<const kvc::StageOf<MiniCache>&>(*stages[0]).policy();
  };
  CHECK(parsed("mini_cache").retention == Retention::far);
  const MiniCache policy = parsed("mini_cache:t=0.5,start=0.25,retention=count,ratio=0.1,gamma=0.2");
  CHECK((policy.t == 0.5 && policy.start == 0.25 && policy.ratio == 0.1 && policy.gamma == 0.2));
  CHECK(policy.retention == Retention::count);
  CHECK(parsed("mini_cache:pairs=15-16+20-21").chosen == std::vector<LayerPair>{{15, 16}, {20, 21}});
  for (const char* wrong : {"15", "15-", "-16", "15-16+", "15-16-17", "a-b", ""}) {
    const std::string text = "mini_cache:pairs=" + std::string(wrong);
    CHECK(support::error_text([&] { kvc::AnyPolicy::parse(text); }).find("pairs of layers") != std::string::npos);
  }
}
