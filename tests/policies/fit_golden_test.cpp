// The fit against vectors that another program produced: tests/data/README.md says which.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/kvc.hpp"
#include "kvc/policies/refit.hpp"
#include "support/multiplicity_listener.hpp"

using namespace kvc;
using support::MultiplicityListener;

namespace {

constexpr std::size_t Prompt = 128, Probe = 96, Dim = 16, Group = 2;
const CacheShape Shape{
    .layers = 1, .query_heads = Group, .kv_heads = 1, .head_dim = Dim, .rotary = Rotary::standard(Dim)};

/// The tables of a file, each under a line with its name, its rows and its columns.
class Tables {
 public:
  explicit Tables(const std::string& name) : file_(std::string(KVC_TEST_DATA) + "/fit/" + name) {
    std::string comment;
    std::getline(file_, comment);
  }
  /// The next table, which must have this name and size, each number times `scale`.
  std::vector<float> next(const std::string& name, std::size_t rows, std::size_t columns, float scale = 1) {
    std::string found;
    std::size_t found_rows = 0, found_columns = 0;
    file_ >> found >> found_rows >> found_columns;
    INFO("looking for " << name << ", found " << found);
    REQUIRE((found == name && found_rows == rows && found_columns == columns));
    std::vector<float> numbers(rows * columns);
    for (float& x : numbers) {
      REQUIRE(file_ >> x);
      x *= scale;
    }
    return numbers;
  }

 private:
  std::ifstream file_;
};

/// What a file gives of a head, and what the fit made of it there.
struct Golden {
  std::vector<float> keys, values, queries, kept, multiplicities, fitted_keys, fitted_values;
  Golden(const std::string& name, std::size_t slots, bool coded) {
    constexpr float Step = 1.0f / 64;
    Tables tables(name);
    keys = tables.next("keys", Prompt + Probe, Dim, Step);
    values = tables.next("values", Prompt + Probe, Dim, Step);
    queries = tables.next("queries", Prompt + Probe, Group * Dim, Step);
    kept = tables.next("kept", slots, 1);
    multiplicities = tables.next("multiplicities", slots, 1);
    if (coded) fitted_keys = tables.next("fitted_keys", slots, Dim);
    fitted_values = tables.next("fitted_values", slots, Dim);
  }
  Tokens tokens(std::size_t first, std::size_t count) const {
    return {.q = {queries.data() + first * Group * Dim, count, Group * Dim},
            .k = {keys.data() + first * Dim, count, Dim},
            .v = {values.data() + first * Dim, count, Dim}};
  }
};

/// Runs Refit over the tokens that the golden head keeps, and returns what the cache then reads.
struct Fitted {
  std::vector<float> keys, values, multiplicities;
  std::vector<Position> positions;
  Fitted(const Golden& golden, Refit refit) {
    refit.policy = ExternalScores{};
    refit.budget = golden.kept.size();
    CacheCore cache(Shape, stages_of(refit | MultiplicityListener{}),
                    {.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact});
    std::vector<float> scores(Prompt + Probe);
    for (const float slot : golden.kept) scores[std::size_t(slot)] = 1;
    Tokens prompt = golden.tokens(0, Prompt), probe = golden.tokens(Prompt, Probe);
    prompt.scores = std::span(scores).first(Prompt);
    probe.scores = std::span(scores).subspan(Prompt);
    cache.prefill(0, prompt, {}, false);
    cache.probe(0, probe, {}, 0, Position(Prompt));
    cache.compress();
    positions = cache.positions({0, 0});
    multiplicities = cache.state<MultiplicityListener>({0, 0}).tokens;
    keys.resize(positions.size() * Dim);
    values.resize(positions.size() * Dim);
    cache.gather({0, 0}, {keys.data(), positions.size(), Dim}, {values.data(), positions.size(), Dim});
  }
};

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return std::numeric_limits<float>::infinity();
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

void check_kept(const Golden& golden, const Fitted& fitted) {
  REQUIRE(fitted.positions.size() == golden.kept.size());
  for (std::size_t i = 0; i < golden.kept.size(); ++i) CHECK(fitted.positions[i] == Position(golden.kept[i]));
}

}  // namespace

TEST_CASE("The fit of dense rows gives the prototype's multiplicities, some of them at their bounds, and its values") {
  const Golden golden("head_16_bits.txt", 24, false);
  const Fitted fitted(golden, {.bits = 16, .least = 0.5, .most = 4});
  check_kept(golden, fitted);
  CHECK(std::ranges::count(golden.multiplicities, 0.5f) + std::ranges::count(golden.multiplicities, 4.0f) == 4);
  // Numbers up to 4 have steps of 1/512 in half precision, and either side may round to the next one.
  CHECK(largest_difference(fitted.multiplicities, golden.multiplicities) <= 1.0f / 256);
  CHECK(largest_difference(fitted.values, golden.fitted_values) < 2e-3f);
}

TEST_CASE("The fit over keys of three bits gives the prototype's codes, of values too") {
  const Golden golden("head_3_bits.txt", 33, true);
  const Fitted fitted(golden, {.bits = 3});
  check_kept(golden, fitted);
  CHECK(largest_difference(fitted.keys, golden.fitted_keys) < 1e-5f);
  CHECK(largest_difference(fitted.multiplicities, golden.multiplicities) <= 1.0f / 128);
  // A step between codes is 0.3 and more. The scales of codes are in half precision, and either side may round one to the next: seven
  // steps of a scale below 1 then make 0.0034. The first value is not coded, but in half precision there.
  CHECK(largest_difference(fitted.values, golden.fitted_values) < 4e-3f);
}
