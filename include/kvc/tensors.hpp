#pragma once
/// For engines whose queries, keys and values are not rows of f32: tensors of f32, f16 or bf16 in any layout, tokens or heads
/// outermost. An adaptor, paid for by who includes it.
///
///     kvc::TensorCalls calls(cache);
///     calls.decode(layer, {.q = kvc::ConstTensor::heads_first(q, kvc::Scalar::bf16, tokens, query_heads, head_dim),
///                          .k = ..., .v = ...}, kvc::Tensor::heads_first(out, kvc::Scalar::bf16, tokens, ...));
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <vector>

#include "kvc/cache/core.hpp"
#include "kvc/format.hpp"
#include "kvc/half.hpp"

namespace kvc::inline KVC_ABI {

/// A view of [tokens, heads, dim] elements of the engine's memory; the elements of a head's row lie together. `Bytes` is void, or
/// const void for what is only read. Strides count elements.
template <class Bytes>
struct BasicTensor {
  Bytes* data = nullptr;
  Scalar type = Scalar::f32;
  std::size_t tokens = 0, heads = 0, dim = 0;
  std::size_t token_stride = 0, head_stride = 0;

  /// [tokens, heads, dim], one token behind the other.
  static constexpr BasicTensor tokens_first(Bytes* data, Scalar type, std::size_t tokens, std::size_t heads,
                                            std::size_t dim) {
    return {data, type, tokens, heads, dim, heads * dim, dim};
  }
  /// [heads, tokens, dim], as after the transposition that attention in most frameworks begins with.
  static constexpr BasicTensor heads_first(Bytes* data, Scalar type, std::size_t tokens, std::size_t heads,
                                           std::size_t dim) {
    return {data, type, tokens, heads, dim, dim, tokens * dim};
  }
  /// Whether a token is one row of floats.
  constexpr bool is_rows() const { return type == Scalar::f32 && (heads == 1 || head_stride == dim); }
};
using Tensor = BasicTensor<void>;
using ConstTensor = BasicTensor<const void>;

/// What one call appends to one layer, as Tokens is it for rows of f32.
struct TensorTokens {
  ConstTensor q;                             ///< [tokens, query_heads, head_dim]
  ConstTensor k;                             ///< [tokens, kv_heads, head_dim]
  ConstTensor v;                             ///< [tokens, kv_heads, value_dim]
  std::span<const float> scores = {};        ///< as in Tokens
  std::span<const Position> positions = {};  ///< as in Tokens
};

/// The calls of a cache that take queries, keys and values, for tensors. Elements are converted to f32 and back once per call:
/// exactly on the way in, to the nearest, or to infinity beyond f16's range, on the way out. Rows of f32 are passed on as they lie.
/// The converted rows are kept for the next call, so after one of a size, calls of that size allocate nothing. One thread at a time.
///
/// Errors are those of the cache. Besides, Error(shape_mismatch) where a tensor has other heads than the model, or another
/// dimension; where the cache refuses a call, `out` is not written.
class TensorCalls {
 public:
  /// The cache must outlive this object, and stay where it is.
  explicit TensorCalls(CacheCore& cache) : cache_(&cache) {}

  /// An `out` without data says that the engine did the attention itself, as in CacheCore::prefill.
  void prefill(std::size_t layer, const TensorTokens& tokens, const Tensor& out, bool last_chunk = true,
               std::span<float> lse = {}) {
    answer("prefill", out, tokens.q.tokens,
           [&](Rows<float> rows) { cache_->prefill(layer, rows_of("prefill", tokens), rows, last_chunk, lse); });
  }
  void decode(std::size_t layer, const TensorTokens& tokens, const Tensor& out, std::span<float> lse = {}) {
    answer("decode", out, tokens.q.tokens,
           [&](Rows<float> rows) { cache_->decode(layer, rows_of("decode", tokens), rows, lse); });
  }
  void draft(std::size_t layer, const TensorTokens& tokens, const Tensor& out, std::span<float> lse = {}) {
    answer("draft", out, tokens.q.tokens,
           [&](Rows<float> rows) { cache_->draft(layer, rows_of("draft", tokens), rows, lse); });
  }
  void probe(std::size_t layer, const TensorTokens& tokens, const Tensor& out, Position begin, Position end) {
    answer("probe", out, tokens.q.tokens,
           [&](Rows<float> rows) { cache_->probe(layer, rows_of("probe", tokens), rows, begin, end); });
  }
  /// One token of each of several sequences, as the function decode_batch: row b belongs to caches[b].
  void decode_batch(std::span<CacheCore* const> caches, std::size_t layer, const TensorTokens& tokens,
                    const Tensor& out, Executor& executor, std::span<float> lse = {}) {
    answer("decode_batch", out, tokens.q.tokens, [&](Rows<float> rows) {
      kvc::decode_batch(caches, layer, rows_of("decode_batch", tokens), rows, executor, lse);
    });
  }
  /// A pure read of any cache, which several threads may do at once: what is converted is so in memory of the call's own.
  static void attend(const CacheCore& cache, std::size_t layer, const ConstTensor& queries, const Tensor& out,
                     std::span<float> lse = {}) {
    const CacheShape& shape = cache.shape();
    std::vector<float> converted, results;
    answer("attend", out, queries.tokens, shape, results, [&](Rows<float> rows) {
      cache.attend(layer, read({"attend", "queries"}, queries, shape.query_heads, shape.head_dim, converted), rows,
                   lse);
    });
  }

 private:
  /// An argument of a call, as errors name it.
  struct Named {
    const char *call, *name;
  };

  template <class Bytes>
  static void check(const Named& named, const BasicTensor<Bytes>& tensor, std::size_t heads, std::size_t dim) {
    if (tensor.heads != heads || tensor.dim != dim)
      fail(ErrorCode::shape_mismatch, {named.call, ": ", named.name, ": got [tokens, ", tensor.heads, ", ", tensor.dim,
                                       "], expected [tokens, heads, dim] = [tokens, ", heads, ", ", dim, "]"});
    if (!tensor.data && tensor.tokens != 0)
      fail(ErrorCode::invalid_argument, {named.call, ": ", named.name, ": its data is null"});
  }

  Tokens rows_of(const char* call, const TensorTokens& tokens) {
    const CacheShape& shape = cache_->shape();
    return {.q = read({call, "q"}, tokens.q, shape.query_heads, shape.head_dim, q_),
            .k = read({call, "k"}, tokens.k, shape.kv_heads, shape.head_dim, k_),
            .v = read({call, "v"}, tokens.v, shape.kv_heads, shape.values_dim(), v_),
            .scores = tokens.scores,
            .positions = tokens.positions};
  }

  /// Makes room for `count` floats.
  static void grow(const Named& named, std::vector<float>& memory, std::size_t count) {
    if (memory.size() >= count) return;
#if defined(__cpp_exceptions)
    try {
      memory.resize(count);
    } catch (const std::bad_alloc&) {
      fail(ErrorCode::out_of_memory,
           {named.call, ": ", named.name, ": memory for ", count, " converted numbers was refused"});
    }
#else
    static_cast<void>(named);
    memory.resize(count);
#endif
  }

  static ConstRows read(const Named& named, const ConstTensor& tensor, std::size_t heads, std::size_t dim,
                        std::vector<float>& memory) {
    check(named, tensor, heads, dim);
    if (tensor.is_rows())
      return {static_cast<const float*>(tensor.data), tensor.tokens, heads * dim, tensor.token_stride};
    grow(named, memory, tensor.tokens * heads * dim);
    for_each_row(tensor, [&](std::size_t token, std::size_t head, std::size_t at) {
      float* const to = memory.data() + (token * heads + head) * dim;
      switch (tensor.type) {
        case Scalar::f32:
          convert<float>(tensor.data, at, dim, to, [](float x) { return x; });
          break;
        case Scalar::f16:
          convert<std::uint16_t>(tensor.data, at, dim, to, from_half);
          break;
        case Scalar::bf16:
          convert<std::uint16_t>(tensor.data, at, dim, to, from_bfloat);
          break;
      }
    });
    return {memory.data(), tensor.tokens, heads * dim};
  }

  template <class Call>
  void answer(const char* name, const Tensor& out, std::size_t tokens, Call call) {
    answer(name, out, tokens, cache_->shape(), out_, call);
  }
  /// Calls `call` with rows to write to, and takes them to `out`.
  template <class Call>
  static void answer(const char* name, const Tensor& out, std::size_t tokens, const CacheShape& shape,
                     std::vector<float>& memory, Call call) {
    if (!out.data) return call(Rows<float>());
    const std::size_t heads = shape.query_heads, dim = shape.values_dim();
    const Named named{name, "out"};
    check(named, out, heads, dim);
    if (out.is_rows()) return call({static_cast<float*>(out.data), out.tokens, heads * dim, out.token_stride});
    if (out.tokens != tokens)
      fail(ErrorCode::shape_mismatch, {name, ": out: got ", out.tokens, " tokens, expected ", tokens});
    grow(named, memory, tokens * heads * dim);
    call({memory.data(), tokens, heads * dim});
    for_each_row(out, [&](std::size_t token, std::size_t head, std::size_t at) {
      const float* const from = memory.data() + (token * heads + head) * dim;
      switch (out.type) {
        case Scalar::f32:
          put<float>(from, dim, out.data, at, [](float x) { return x; });
          break;
        case Scalar::f16:
          put<std::uint16_t>(from, dim, out.data, at, to_half);
          break;
        case Scalar::bf16:
          put<std::uint16_t>(from, dim, out.data, at, to_bfloat);
          break;
      }
    });
  }

  template <class Bytes, class Visit>
  static void for_each_row(const BasicTensor<Bytes>& tensor, Visit visit) {
    for (std::size_t token = 0; token < tensor.tokens; ++token)
      for (std::size_t head = 0; head < tensor.heads; ++head)
        visit(token, head, token * tensor.token_stride + head * tensor.head_stride);
  }
  template <class Element, class Read>
  static void convert(const void* from, std::size_t at, std::size_t count, float* to, Read read) {
    const Element* const elements = static_cast<const Element*>(from) + at;
    for (std::size_t i = 0; i < count; ++i) to[i] = read(elements[i]);
  }
  template <class Element, class Write>
  static void put(const float* from, std::size_t count, void* to, std::size_t at, Write write) {
    Element* const elements = static_cast<Element*>(to) + at;
    for (std::size_t i = 0; i < count; ++i) elements[i] = write(from[i]);
  }

  CacheCore* cache_;
  std::vector<float> q_, k_, v_, out_;
};

}  // namespace kvc::inline KVC_ABI
