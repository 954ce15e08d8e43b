#include "catch_shim.hpp"

#include "codec/halving_codec.hpp"
#include "kvc/codec/make.hpp"
#include "support/naive_rows.hpp"
#include "support/oracle.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;

namespace {

constexpr std::size_t Capacity = 320;

/// A block of Capacity rows in a format, with the rows that went in and those that should come out.
struct Sample {
  std::shared_ptr<const Codec> codec;
  std::vector<float> rows;
  std::vector<double> expected;
  std::vector<std::byte> block;

  Sample(const Format& format, Role role, std::size_t dim) : codec(make_codec(format, role, dim)) {
    rows = support::Dice(static_cast<unsigned>(dim)).row(Capacity * dim);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = rows[i] * (i % 3 ? 1.0f : 3.0f) + 0.5f;
    std::vector<naive::Row> model;
    for (std::size_t r = 0; r < Capacity; ++r)
      model.emplace_back(rows.begin() + std::ptrdiff_t(r * dim), rows.begin() + std::ptrdiff_t((r + 1) * dim));
    if (const auto* dense = format.get_if<Dense>()) {
      for (naive::Row& row : model)
        for (double& x : row) x = naive::rounded(dense->type, x);
    } else {
      std::vector<naive::Row*> pointers;
      for (naive::Row& row : model) pointers.push_back(&row);
      naive::quantize_together(pointers, *format.get_if<GroupQuant>());
    }
    for (const naive::Row& row : model) expected.insert(expected.end(), row.begin(), row.end());
    block = encoded_in_steps(Capacity);
  }

  std::size_t dim() const { return codec->dim(); }
  ConstRows view(std::size_t first, std::size_t count) const { return {rows.data() + first * dim(), count, dim()}; }
  std::vector<std::byte> encoded_in_steps(std::size_t step) const {
    std::vector<std::byte> bytes(codec->block_bytes(Capacity));
    for (std::size_t first = 0; first < Capacity; first += step)
      codec->encode(view(first, std::min(step, Capacity - first)), bytes.data(), Capacity, first);
    return bytes;
  }
  std::vector<float> decoded(std::size_t first, std::size_t count) const {
    std::vector<float> out(count * dim());
    codec->decode(block.data(), Capacity, first, {out.data(), count, dim()});
    return out;
  }
};

/// All built-in formats that rows of `dim` floats can have.
std::vector<Format> formats(std::size_t dim) {
  std::vector<Format> all{Dense{Scalar::f32}, Dense{Scalar::f16}, Dense{Scalar::bf16}};
  for (unsigned bits : {2u, 3u, 4u, 8u})
    for (Axis axis : {Axis::channel, Axis::token})
      for (std::size_t group : {8u, 16u, 20u, 32u, 40u, 64u, 80u, 128u})
        for (Scalar metadata : {Scalar::f16, Scalar::f32})
          if ((axis == Axis::channel && Capacity % group == 0) || (axis == Axis::token && dim % group == 0))
            all.push_back(GroupQuant{bits, axis, group, metadata});
  return all;
}

constexpr std::initializer_list<Role> BothRoles = {Role::key, Role::value};

/// Calls verify(sample, format) for every format of every dimension, in each of the roles, at every instruction set.
template <class Check>
void for_all(std::initializer_list<std::size_t> dims, std::initializer_list<Role> roles, Check verify) {
  for (const std::size_t dim : dims)
    for (const Format& format : formats(dim))
      for (const Role role : roles) {
        Sample sample(format, role, dim);  // the naive model is the slow part: once for all instruction sets
        oracle::at_every_isa([&](Isa isa) {
          INFO(to_string(isa) << ", " << sample.codec->name() << (role == Role::key ? " keys" : " values") << " of "
                              << dim);
          sample.block = sample.encoded_in_steps(Capacity);
          verify(sample, format);
        });
      }
}

/// Sums of coefficient * element against a kernel's, which rounds codes and minima apart: the error is small against the
/// coefficients times the largest element, however small the element itself.
class ProductCheck {
 public:
  explicit ProductCheck(const Sample& sample) {
    for (const double x : sample.expected) largest_ = std::max(largest_, std::fabs(x));
  }
  void add(double coefficient, double element) {
    sum_.value += coefficient * element;
    sum_.magnitude += std::fabs(coefficient) * largest_;
  }
  void add_one() { sum_.add(1); }
  void compare(float got) {
    worst_ = std::max(worst_, std::fabs(double(got) - sum_.value) / (2e-6 * sum_.magnitude));
    sum_ = {};
  }
  double worst() const { return worst_; }

 private:
  oracle::Sum sum_;
  double largest_ = 0, worst_ = 0;
};

void rows_read_back(std::initializer_list<std::size_t> dims) {
  for_all(dims, BothRoles, [](const Sample& sample, const Format&) {
    std::size_t wrong = 0;
    for (const auto& [first, count] :
         {std::pair<std::size_t, std::size_t>{0, Capacity}, {7, 1}, {33, 100}, {Capacity - 1, 1}}) {
      const std::vector<float> read = sample.decoded(first, count);
      for (std::size_t i = 0; i < read.size(); ++i)
        wrong += read[i] != static_cast<float>(sample.expected[first * sample.dim() + i]);
    }
    CHECK(wrong == 0);
  });
}

void scores_are_dot_products(std::initializer_list<std::size_t> dims) {
  for_all(dims, {Role::key}, [](const Sample& sample, const Format&) {
    const std::size_t dim = sample.dim(), granule = sample.codec->range_granule();
    for (const std::size_t heads : {1u, 3u, 16u}) {
      const std::vector<float> queries = oracle::normal_floats(heads * dim, 3);
      for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, Capacity}, {granule, 77}, {0, 1}}) {
        std::vector<float> results(heads * count, 1.0f);
        sample.codec->scores(sample.block.data(), Capacity, first, count, {queries.data(), heads, dim},
                             {results.data(), count, heads == 3});
        ProductCheck check(sample);
        for (std::size_t h = 0; h < heads; ++h)
          for (std::size_t r = 0; r < count; ++r) {
            if (heads == 3) check.add_one();
            for (std::size_t c = 0; c < dim; ++c)
              check.add(double(queries[h * dim + c]), sample.expected[(first + r) * dim + c]);
            check.compare(results[h * count + r]);
          }
        CHECK(check.worst() <= 1);
      }
    }
  });
}

void accumulated_values_are_weighted_sums(std::initializer_list<std::size_t> dims) {
  for_all(dims, {Role::value}, [](const Sample& sample, const Format&) {
    const std::size_t dim = sample.dim(), granule = sample.codec->range_granule();
    for (const std::size_t heads : {1u, 5u, 16u}) {
      for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, Capacity}, {granule, 77}, {0, 1}}) {
        const std::vector<float> weights = oracle::normal_floats(heads * count, 4);
        std::vector<float> results(heads * dim, 1.0f);
        sample.codec->accumulate(sample.block.data(), Capacity, first, count, {weights.data(), heads, count},
                                 {results.data(), dim, heads == 5});
        ProductCheck check(sample);
        for (std::size_t h = 0; h < heads; ++h)
          for (std::size_t c = 0; c < dim; ++c) {
            if (heads == 5) check.add_one();
            for (std::size_t r = 0; r < count; ++r)
              check.add(double(weights[h * count + r]), sample.expected[(first + r) * dim + c]);
            check.compare(results[h * dim + c]);
          }
        CHECK(check.worst() <= 1);
      }
    }
  });
}

}  // namespace

TEST_CASE("Rows of 16 floats read back as the definition of their format says, from any row on") {
  rows_read_back({16});
}

TEST_CASE("Rows of every other length read back as the definition of their format says", "[exhaustive]") {
  rows_read_back({8, 64, 72, 80, 96, 128, 256});
}

TEST_CASE("Scores are dot products with the rows as they read back, of 16 floats") {
  scores_are_dot_products({16});
}

TEST_CASE("Scores are dot products with rows of every other length", "[exhaustive]") {
  scores_are_dot_products({8, 64, 72, 80, 96, 128, 256});
}

TEST_CASE("Accumulated values are weighted sums of the rows as they read back, of 16 floats") {
  accumulated_values_are_weighted_sums({16});
}

TEST_CASE("Accumulated values are weighted sums of rows of every other length", "[exhaustive]") {
  accumulated_values_are_weighted_sums({8, 64, 72, 80, 96, 128, 256});
}

TEST_CASE("Quantized rows read back within half a step", "[exhaustive]") {
  for_all({80, 128}, BothRoles, [](const Sample& sample, const Format& format) {
    const auto* quant = format.get_if<GroupQuant>();
    if (!quant) return;
    const std::vector<float> read = sample.decoded(0, Capacity);
    const std::size_t dim = sample.dim(), groups = sample.rows.size() / quant->group;
    // f16 metadata moves the ends of the range by up to its own rounding, once for the minimum and once per step.
    const double slack = quant->metadata == Scalar::f16 ? 1.0 / 1024 : 1e-6;
    double worst = 0;
    for (std::size_t g = 0; g < groups; ++g) {
      double low = HUGE_VAL, high = -HUGE_VAL, error = 0;
      for (std::size_t e = 0; e < quant->group; ++e) {
        const std::size_t token = g / dim * quant->group + e,
                          place = quant->axis == Axis::token ? g * quant->group + e : token * dim + g % dim;
        low = std::min(low, double(sample.rows[place]));
        high = std::max(high, double(sample.rows[place]));
        error = std::max(error, std::fabs(double(sample.rows[place]) - double(read[place])));
      }
      const double step = (high - low) / double((1u << quant->bits) - 1);
      worst = std::max(worst, error / (step / 2 + slack * (high - low + std::fabs(low))));
    }
    CHECK(worst <= 1);
  });
}

TEST_CASE("Rows encoded one granule at a time give the bytes of all at once", "[exhaustive]") {
  for_all({16, 72, 80, 128}, BothRoles, [](const Sample& sample, const Format&) {
    const std::size_t granule = sample.codec->granule();
    CHECK(sample.encoded_in_steps(granule) == sample.block);
    CHECK(sample.encoded_in_steps(3 * granule) == sample.block);
  });
}

TEST_CASE("Encoding a row again leaves its neighbours alone", "[exhaustive]") {
  for_all({16, 80}, BothRoles, [](const Sample& sample, const Format&) {
    if (sample.codec->granule() > 1) return;
    Sample changed = sample;
    for (const std::size_t row : {5u, 18u, 131u})
      changed.codec->encode(sample.view(200, 1), changed.block.data(), Capacity, row);
    std::size_t wrong = 0;
    // Rows that share their dwords with a rewritten one come after it when tokens are appended; only those before must stay.
    const std::vector<float> read = changed.decoded(131, 1), source = sample.decoded(200, 1),
                             before = changed.decoded(0, 5);
    wrong += read != source;
    wrong += before != sample.decoded(0, 5);
    CHECK(wrong == 0);
  });
}

TEST_CASE("A block costs its codes, two numbers per group, and no more than padding besides") {
  constexpr std::size_t Dim = 128, Elements = Capacity * Dim;
  for (const Format& format : formats(Dim)) {
    const auto* quant = format.get_if<GroupQuant>();
    // Others are padded: to whole registers, with 3 bits along p to units of 32.
    if (!quant || quant->group % (quant->bits == 3 ? 32 : 16) != 0) continue;
    const std::size_t least = Elements * quant->bits / 8 + Elements / quant->group * 2 * scalar_bytes(quant->metadata);
    for (const Role role : {Role::key, Role::value}) {
      const auto codec = make_codec(format, role, Dim);
      INFO(codec->name());
      CHECK(codec->block_bytes(Capacity) >= least);
      CHECK(codec->block_bytes(Capacity) <= least + least / 10);
    }
  }
}

namespace {

template <class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing";
}

}  // namespace

TEST_CASE("A user's own codec needs block_bytes, encode and decode only; scores and sums follow") {
  for (const std::size_t dim : {8u, 72u, 1024u, 2048u, 8192u}) {
    const auto codec = make_codec(Format(std::make_shared<const support::HalvingCodec>(dim)), Role::key, dim);
    constexpr std::size_t Count = 29;
    const std::vector<float> rows = oracle::normal_floats(Count * dim, 5), queries = oracle::normal_floats(3 * dim, 6),
                             weights = oracle::normal_floats(3 * Count, 7);
    std::vector<std::byte> block(codec->block_bytes(Count));
    codec->encode({rows.data(), Count, dim}, block.data(), Count, 0);
    std::vector<float> scores(3 * Count, 1.0f), sums(3 * dim, 1.0f);
    codec->scores(block.data(), Count, 0, Count, {queries.data(), 3, dim}, {scores.data(), Count, true});
    codec->accumulate(block.data(), Count, 0, Count, {weights.data(), 3, Count}, {sums.data(), dim, false});
    double worst = 0;
    for (std::size_t h = 0; h < 3; ++h) {
      for (std::size_t r = 0; r < Count; ++r) {
        oracle::Sum sum;
        sum.add(1);
        for (std::size_t c = 0; c < dim; ++c) sum.add(double(queries[h * dim + c]) * double(rows[r * dim + c]) / 2);
        worst = std::max(worst, std::fabs(double(scores[h * Count + r]) - sum.value) / sum.magnitude);
      }
      for (std::size_t c = 0; c < dim; ++c) {
        oracle::Sum sum;
        for (std::size_t r = 0; r < Count; ++r) sum.add(double(weights[h * Count + r]) * double(rows[r * dim + c]) / 2);
        worst = std::max(worst, std::fabs(double(sums[h * dim + c]) - sum.value) / sum.magnitude);
      }
    }
    INFO("rows of " << dim);
    CHECK(worst < 1e-5);
  }
}

TEST_CASE("A type of the user's is a format where a function beside it makes its codec") {
  const Format format = support::Halving{.times = 1};
  const auto codec = make_codec(format, Role::value, 24);
  CHECK(codec->name() == "halving");
  CHECK(codec->dim() == 24);
  REQUIRE(format.get_if<support::Halving>());
  CHECK(format.get_if<support::Halving>()->times == 1);
  CHECK_FALSE(format.get_if<GroupQuant>());
}

TEST_CASE("A codec for other rows, or none, is refused, and so is a format that cannot be encoded") {
  CHECK(message_of([] { make_codec(Format(std::make_shared<const support::HalvingCodec>(16)), Role::key, 32); }) ==
        "Format: codec halving encodes rows of 16 floats, the cache has rows of 32");
  CHECK(message_of([] { make_codec(Format(std::shared_ptr<const Codec>()), Role::key, 32); }) ==
        "Format: the codec is null");
  CHECK(message_of([] { make_codec(GroupQuant{.bits = 5}, Role::key, 32); }) ==
        "GroupQuant: bits must be 2, 3, 4 or 8, got 5");
  CHECK(message_of([] { make_codec(GroupQuant{.axis = Axis::token, .group = 20}, Role::key, 32); }) ==
        "GroupQuant: group (20) must divide the head dimension (32)");
}

TEST_CASE("Codecs tell what they are") {
  CHECK(make_codec(Dense{Scalar::bf16}, Role::key, 16)->name() == "bf16");
  CHECK(make_codec(GroupQuant{.bits = 2, .axis = Axis::channel, .group = 32}, Role::key, 16)->name() ==
        "q2-channel-g32");
  CHECK(make_codec(GroupQuant{.bits = 8, .axis = Axis::token, .group = 16, .metadata = Scalar::f32}, Role::value, 16)
            ->name() == "q8-token-g16-f32");
}
