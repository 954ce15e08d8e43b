#include "catch_shim.hpp"

#include <kvc/tensors.hpp>

#include <random>
#include <vector>

#include "kvc/policies/all.hpp"
#include "support/fake_head.hpp"
#include "support/sequence.hpp"

// An engine's tensors, in any layout and type, are to a cache what rows of f32 are.

using namespace kvc;
using namespace support;

namespace {

const CacheShape Shape = small_shape();

/// Numbers that f16 and bf16 hold exactly, so that the way in changes nothing.
std::vector<float> short_numbers(std::size_t count, std::mt19937& random) {
  std::uniform_int_distribution<int> numbers(-120, 120);
  std::vector<float> list(count);
  for (float& x : list) x = static_cast<float>(numbers(random)) / 64;
  return list;
}

/// [tokens, heads, dim] floats in memory of another type and layout.
class Stored {
 public:
  Stored(Scalar type, bool heads_first, std::size_t tokens, std::size_t heads, std::size_t dim)
      : bytes_(tokens * heads * dim * scalar_bytes(type)),
        tensor_(heads_first ? Tensor::heads_first(bytes_.data(), type, tokens, heads, dim)
                            : Tensor::tokens_first(bytes_.data(), type, tokens, heads, dim)) {}
  void put(const std::vector<float>& rows) {
    for_each([&](std::size_t at, std::size_t from) {
      if (tensor_.type == Scalar::f32)
        static_cast<float*>(tensor_.data)[at] = rows[from];
      else
        static_cast<std::uint16_t*>(tensor_.data)[at] =
            tensor_.type == Scalar::f16 ? to_half(rows[from]) : to_bfloat(rows[from]);
    });
  }
  std::vector<float> get() const {
    std::vector<float> rows(tensor_.tokens * tensor_.heads * tensor_.dim);
    for_each([&](std::size_t at, std::size_t to) {
      if (tensor_.type == Scalar::f32) {
        rows[to] = static_cast<const float*>(tensor_.data)[at];
      } else {
        const std::uint16_t element = static_cast<const std::uint16_t*>(tensor_.data)[at];
        rows[to] = tensor_.type == Scalar::f16 ? from_half(element) : from_bfloat(element);
      }
    });
    return rows;
  }
  const Tensor& tensor() const { return tensor_; }
  ConstTensor constant() const {
    return {tensor_.data, tensor_.type,         tensor_.tokens,     tensor_.heads,
            tensor_.dim,  tensor_.token_stride, tensor_.head_stride};
  }

 private:
  template <class Visit>
  void for_each(Visit visit) const {
    for (std::size_t token = 0; token < tensor_.tokens; ++token)
      for (std::size_t head = 0; head < tensor_.heads; ++head)
        for (std::size_t i = 0; i < tensor_.dim; ++i)
          visit(token * tensor_.token_stride + head * tensor_.head_stride + i,
                (token * tensor_.heads + head) * tensor_.dim + i);
  }
  std::vector<std::byte> bytes_;
  Tensor tensor_;
};

float rounded(float x, Scalar type) {
  return type == Scalar::f32 ? x : type == Scalar::f16 ? from_half(to_half(x)) : from_bfloat(to_bfloat(x));
}

}  // namespace

TEST_CASE("Tensors of every type and layout give the answers that rows of f32 give, rounded on the way out") {
  for (const Scalar type : {Scalar::f32, Scalar::f16, Scalar::bf16})
    for (const bool heads_first : {false, true}) {
      INFO(name_of(type) << (heads_first ? ", heads first" : ", tokens first"));
      std::mt19937 random(5);
      KVCache cache(Shape, H2O{.budget = 20}), plain(Shape, H2O{.budget = 20});
      TensorCalls calls(cache);
      const auto feed = [&](std::size_t tokens, auto call, auto plain_call) {
        for (std::size_t layer = 0; layer < Shape.layers; ++layer) {
          const auto q = short_numbers(tokens * Shape.query_heads * Shape.head_dim, random);
          const auto k = short_numbers(tokens * Shape.kv_heads * Shape.head_dim, random);
          const auto v = short_numbers(tokens * Shape.kv_heads * Shape.values_dim(), random);
          Stored stored_q(type, heads_first, tokens, Shape.query_heads, Shape.head_dim);
          Stored stored_k(type, heads_first, tokens, Shape.kv_heads, Shape.head_dim);
          Stored stored_v(type, heads_first, tokens, Shape.kv_heads, Shape.values_dim());
          Stored out(type, heads_first, tokens, Shape.query_heads, Shape.values_dim());
          stored_q.put(q);
          stored_k.put(k);
          stored_v.put(v);
          call(layer, TensorTokens{.q = stored_q.constant(), .k = stored_k.constant(), .v = stored_v.constant()},
               out.tensor());
          std::vector<float> expected(tokens * Shape.query_heads * Shape.values_dim());
          plain_call(layer,
                     Tokens{.q = {q.data(), tokens, Shape.query_heads * Shape.head_dim},
                            .k = {k.data(), tokens, Shape.kv_heads * Shape.head_dim},
                            .v = {v.data(), tokens, Shape.kv_heads * Shape.values_dim()}},
                     Rows<float>(expected.data(), tokens, Shape.query_heads * Shape.values_dim()));
          for (float& x : expected) x = rounded(x, type);
          REQUIRE(out.get() == expected);
        }
      };
      feed(
          30, [&](std::size_t layer, const TensorTokens& t, const Tensor& out) { calls.prefill(layer, t, out); },
          [&](std::size_t layer, const Tokens& t, Rows<float> out) { plain.prefill(layer, t, out); });
      for (int step = 0; step < 5; ++step)
        feed(
            1, [&](std::size_t layer, const TensorTokens& t, const Tensor& out) { calls.decode(layer, t, out); },
            [&](std::size_t layer, const Tokens& t, Rows<float> out) { plain.decode(layer, t, out); });
      feed(
          3, [&](std::size_t layer, const TensorTokens& t, const Tensor& out) { calls.draft(layer, t, out); },
          [&](std::size_t layer, const Tokens& t, Rows<float> out) { plain.draft(layer, t, out); });
      cache.accept(2);
      plain.accept(2);
      feed(
          2,
          [&](std::size_t layer, const TensorTokens& t, const Tensor& out) {
            TensorCalls::attend(cache, layer, t.q, out);
          },
          [&](std::size_t layer, const Tokens& t, Rows<float> out) { plain.attend(layer, t.q, out); });
      feed(
          2, [&](std::size_t layer, const TensorTokens& t, const Tensor& out) { calls.probe(layer, t, out, 0, 9); },
          [&](std::size_t layer, const Tokens& t, Rows<float> out) { plain.probe(layer, t, out, 0, 9); });
      for (const HeadId id : Sequence::heads(Shape)) CHECK(cache.positions(id) == plain.positions(id));
    }
}

TEST_CASE("Tensors of other heads or dimensions than the model's are refused, and nothing is appended") {
  KVCache cache(Shape, Full{});
  TensorCalls calls(cache);
  const std::size_t tokens = 2;
  Stored q(Scalar::f16, true, tokens, Shape.query_heads, Shape.head_dim);
  Stored k(Scalar::f16, true, tokens, Shape.kv_heads, Shape.head_dim);
  Stored v(Scalar::f16, true, tokens, Shape.kv_heads, Shape.values_dim());
  Stored out(Scalar::f16, true, tokens, Shape.query_heads, Shape.values_dim());
  Stored long_out(Scalar::f16, true, tokens + 1, Shape.query_heads, Shape.values_dim());
  const TensorTokens right{.q = q.constant(), .k = k.constant(), .v = v.constant()};
  TensorTokens wrong = right;
  wrong.k.heads += 1;
  CHECK(error_text([&] { calls.prefill(0, wrong, out.tensor()); }).starts_with("prefill: k: got [tokens, "));
  wrong = right;
  wrong.q.dim -= 1;
  CHECK(error_text([&] { calls.decode(0, wrong, out.tensor()); }).starts_with("decode: q: got [tokens, "));
  wrong = right;
  wrong.v.data = nullptr;
  CHECK(error_text([&] { calls.prefill(0, wrong, out.tensor()); }) == "prefill: v: its data is null");
  CHECK(error_text([&] { calls.prefill(0, right, long_out.tensor()); }) == "prefill: out: got 3 tokens, expected 2");
  CHECK(cache.stats().seen == 0);
  calls.prefill(0, right, Tensor{});
  CHECK(cache.stats(0).seen == 2);
}
