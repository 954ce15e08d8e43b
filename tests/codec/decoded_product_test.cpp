// Scores and sums of codecs that only encode and decode.
#include "catch_shim.hpp"

#include "codec/halving_codec.hpp"
#include "kvc/codec/make.hpp"
#include "support/oracle.hpp"

using namespace kvc;

namespace {

constexpr std::size_t Capacity = 300;

/// A block of a codec with kernels of its own for nothing, and its rows as they read back.
struct Block {
  std::shared_ptr<const Codec> codec;
  std::vector<std::byte> bytes;
  std::vector<float> rows;

  explicit Block(std::shared_ptr<const Codec> of) : codec(std::move(of)) {
    rows = oracle::normal_floats(Capacity * codec->dim(), 1);
    bytes.resize(codec->block_bytes(Capacity));
    codec->encode({rows.data(), Capacity, codec->dim()}, bytes.data(), Capacity, 0);
    codec->decode(bytes.data(), Capacity, 0, {rows.data(), Capacity, codec->dim()});
  }
  std::size_t dim() const { return codec->dim(); }

  std::vector<float> scores(std::size_t first, std::size_t count, const std::vector<float>& queries, bool add) const {
    const std::size_t heads = queries.size() / dim();
    std::vector<float> results(heads * count, 0.5f);
    codec->scores(bytes.data(), Capacity, first, count, {queries.data(), heads, dim()}, {results.data(), count, add});
    return results;
  }
  /// Of rows [first, first + count), one row of weights per head.
  std::vector<float> sums(std::size_t first, std::size_t count, const std::vector<float>& weights, bool add) const {
    const std::size_t heads = weights.size() / count;
    std::vector<float> results(heads * dim(), 0.5f);
    codec->accumulate(bytes.data(), Capacity, first, count, {weights.data(), heads, count},
                      {results.data(), dim(), add});
    return results;
  }
};

std::vector<Block> blocks() {
  std::vector<Block> all;
  for (const std::size_t dim : {1u, 8u, 31u, 72u, 128u, 513u, 1040u})
    all.emplace_back(std::make_shared<const support::HalvingCodec>(dim));
  for (int type = 0; type <= static_cast<int>(GgmlType::nvfp4); ++type)
    all.emplace_back(make_codec(GgmlBlocks{static_cast<GgmlType>(type)}, Role::key, 192));
  return all;
}

/// Calls verify(block) for every block at every instruction set.
template <class Check>
void for_all(Check verify) {
  const std::vector<Block> all = blocks();
  oracle::at_every_isa([&](Isa isa) {
    for (const Block& block : all) {
      INFO(to_string(isa) << ", " << block.codec->name() << " of " << block.dim());
      verify(block);
    }
  });
}

}  // namespace

TEST_CASE("Scores of decoded rows are dot products, added where asked") {
  for_all([](const Block& block) {
    for (const std::size_t heads : {1u, 3u, 16u})
      for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, Capacity}, {7, 77}, {299, 1}}) {
        const bool add = heads == 3;
        const std::vector<float> queries = oracle::normal_floats(heads * block.dim(), 2);
        const std::vector<float> got = block.scores(first, count, queries, add);
        oracle::Worst worst;
        for (std::size_t h = 0; h < heads; ++h)
          for (std::size_t r = 0; r < count; ++r) {
            oracle::Sum sum;
            if (add) sum.add(0.5);
            for (std::size_t c = 0; c < block.dim(); ++c)
              sum.add(double(queries[h * block.dim() + c]) * double(block.rows[(first + r) * block.dim() + c]));
            worst.add(got[h * count + r], sum.value, 2e-6 * sum.magnitude + 1e-30);
          }
        CHECK(worst.value() <= 1);
      }
  });
}

TEST_CASE("Sums of decoded rows are weighted sums, added where asked") {
  for_all([](const Block& block) {
    for (const std::size_t heads : {1u, 5u, 16u})
      for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, Capacity}, {7, 77}, {299, 1}}) {
        const bool add = heads == 5;
        const std::vector<float> weights = oracle::normal_floats(heads * count, 3);
        const std::vector<float> got = block.sums(first, count, weights, add);
        oracle::Worst worst;
        for (std::size_t h = 0; h < heads; ++h)
          for (std::size_t c = 0; c < block.dim(); ++c) {
            oracle::Sum sum;
            if (add) sum.add(0.5);
            for (std::size_t r = 0; r < count; ++r)
              sum.add(double(weights[h * count + r]) * double(block.rows[(first + r) * block.dim() + c]));
            worst.add(got[h * block.dim() + c], sum.value, 2e-6 * sum.magnitude + 1e-30);
          }
        CHECK(worst.value() <= 1);
      }
  });
}

TEST_CASE("Results on decoded rows are the same bits however rows and heads are split over calls") {
  for_all([](const Block& block) {
    constexpr std::size_t Heads = 5, Cut = 113;
    const std::vector<float> queries = oracle::normal_floats(Heads * block.dim(), 2);
    const std::vector<float> whole = block.scores(0, Capacity, queries, false);
    const std::vector<float> left = block.scores(0, Cut, queries, false),
                             right = block.scores(Cut, Capacity - Cut, queries, false);
    const std::vector<float> third(queries.begin() + std::ptrdiff_t(2 * block.dim()),
                                   queries.begin() + std::ptrdiff_t(3 * block.dim()));
    const std::vector<float> alone = block.scores(0, Capacity, third, false);
    std::size_t wrong = 0;
    for (std::size_t h = 0; h < Heads; ++h)
      for (std::size_t r = 0; r < Capacity; ++r)
        wrong += whole[h * Capacity + r] != (r < Cut ? left[h * Cut + r] : right[h * (Capacity - Cut) + r - Cut]);
    for (std::size_t r = 0; r < Capacity; ++r) wrong += whole[2 * Capacity + r] != alone[r];

    const std::vector<float> weights = oracle::normal_floats(Capacity, 3);
    const std::vector<float> sums = block.sums(0, Capacity, weights, false);
    std::vector<float> parts = block.sums(0, Cut, {weights.begin(), weights.begin() + Cut}, false);
    block.codec->accumulate(block.bytes.data(), Capacity, Cut, Capacity - Cut,
                            {weights.data() + Cut, 1, Capacity - Cut}, {parts.data(), block.dim(), true});
    wrong += sums != parts;
    CHECK(wrong == 0);
  });
}

TEST_CASE("A sum over no rows is zero, or what was there") {
  for_all([](const Block& block) {
    std::vector<float> results(block.dim(), 0.5f);
    block.codec->accumulate(block.bytes.data(), Capacity, 0, 0, {nullptr, 1, 0}, {results.data(), block.dim(), true});
    CHECK(results == std::vector<float>(block.dim(), 0.5f));
    block.codec->accumulate(block.bytes.data(), Capacity, 0, 0, {nullptr, 1, 0}, {results.data(), block.dim(), false});
    CHECK(results == std::vector<float>(block.dim(), 0.0f));
  });
}

TEST_CASE("Rows too long for a tile need a codec with kernels of its own") {
  const support::HalvingCodec codec(8193);
  std::string message = "nothing";
  try {
    codec.scores(nullptr, 1, 0, 1, {}, {});
  } catch (const Error& error) {
    message = error.what();
  }
  CHECK(message == "Codec halving: rows of 8193 floats, more than 8192, need scores() and accumulate() of their own");
}
