#pragma once
/// The functions of kvc/c_api.h: included by kvc/implementation.hpp, so that kvc::compiled has them. Each makes C++ of its
/// arguments, calls, and makes a status of what was thrown.
#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/c_api.h"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/session.hpp"
#include "kvc/tensors.hpp"
#include "kvc/thread_pool.hpp"
#include "kvc/version.hpp"

namespace kvc::inline KVC_ABI::c_api {

/// The engine's threads. C has no exceptions, so the first one waits here until all bodies are done.
class Callback final : public Executor {
 public:
  Callback(kvc_parallel_for threads, void* user) : parallel_for_(threads), user_(user) {}
  void parallel_for(std::size_t count, FunctionRef<void(std::size_t)> body) override {
    Task task{body, {}, {}};
    parallel_for_(user_, count, &run, &task);
#if defined(__cpp_exceptions)
    if (task.failure) std::rethrow_exception(task.failure);
#endif
  }

 private:
  struct Task {
    FunctionRef<void(std::size_t)> body;
    std::mutex mutex;
    std::exception_ptr failure;
  };
  static void run(void* task, std::size_t i) {
    Task& self = *static_cast<Task*>(task);
#if defined(__cpp_exceptions)
    try {
      self.body(i);
    } catch (...) {
      const std::lock_guard lock(self.mutex);
      if (!self.failure) self.failure = std::current_exception();
    }
#else
    self.body(i);
#endif
  }

  kvc_parallel_for parallel_for_;
  void* user_;
};

/// What kvc_last_error() gives: in memory of its own, for a failure may be one of memory.
inline thread_local char last_error[1024] = "";
inline kvc_status note(kvc_status status, std::string_view sentence) noexcept {
  const std::size_t length = std::min(sentence.size(), sizeof(last_error) - 1);
  std::copy_n(sentence.data(), length, last_error);
  last_error[length] = 0;
  return status;
}

/// Calls, and makes a status of what is thrown.
template <class Call>
kvc_status guarded(Call call) noexcept {
#if defined(__cpp_exceptions)
  try {
    call();
    return KVC_OK;
  } catch (const Error& error) {
    return note(static_cast<kvc_status>(static_cast<int>(error.code()) + 1), error.what());
  } catch (const std::bad_alloc&) {
    return note(KVC_OUT_OF_MEMORY, "memory was refused");
  } catch (const std::exception& error) {
    return note(KVC_FAILED, error.what());
  } catch (...) {
    return note(KVC_FAILED, "an exception that has no words");
  }
#else
  call();
  return KVC_OK;
#endif
}

inline void require(const char* call, const char* name, const void* pointer) {
  if (!pointer) fail(ErrorCode::invalid_argument, {call, ": ", name, " is NULL"});
}

/// The cache of a call.
template <class Cache>
Cache& known(Cache* cache, const char* call) {
  require(call, "cache", cache);
  return *cache;
}

inline CacheShape shape_of(const kvc_shape& shape) {
  CacheShape own{.layers = shape.layers,
                 .query_heads = shape.query_heads,
                 .kv_heads = shape.kv_heads,
                 .head_dim = shape.head_dim,
                 .value_dim = shape.value_dim,
                 .scale = shape.scale,
                 .softcap = shape.softcap};
  own.rotary.interleaved = shape.interleaved != 0;
  if (shape.inv_freq) own.rotary.inv_freq.assign(shape.inv_freq, shape.inv_freq + shape.inv_freq_count);
  if (shape.windows || shape.sink_logits) {
    own.validate();  // before memory is taken by its numbers
    own.each_layer.resize(shape.layers);
  }
  for (std::size_t layer = 0; layer < own.each_layer.size(); ++layer) {
    if (shape.windows) own.each_layer[layer].window = shape.windows[layer];
    if (!shape.sink_logits) continue;
    const float* const logits = shape.sink_logits + layer * shape.query_heads;
    own.each_layer[layer].sink_logits.assign(logits, logits + shape.query_heads);
  }
  return own;
}

inline Scalar scalar_of(kvc_type type, const char* call, const char* name) {
  if (type != KVC_F32 && type != KVC_F16 && type != KVC_BF16)
    fail(ErrorCode::invalid_argument, {call, ": ", name, ": ", static_cast<int>(type), " is no kvc_type"});
  return type == KVC_F32 ? Scalar::f32 : type == KVC_F16 ? Scalar::f16 : Scalar::bf16;
}

inline Scalar scalar_of(std::string_view name) {
  const auto type = TextOf<Scalar>::read(name);
  if (!type)
    fail(ErrorCode::invalid_argument,
         {"create: options.dense: got \"", name, "\", expected ", TextOf<Scalar>::expected()});
  return *type;
}

template <class Bytes>
BasicTensor<Bytes> tensor_of(const kvc_tensor& tensor, const char* call, const char* name) {
  const bool plain = tensor.token_stride == 0 && tensor.head_stride == 0;
  return {tensor.data,
          scalar_of(tensor.type, call, name),
          tensor.tokens,
          tensor.heads,
          tensor.dim,
          plain ? tensor.heads * tensor.dim : tensor.token_stride,
          plain ? tensor.dim : tensor.head_stride};
}
inline TensorTokens tokens_of(const kvc_tokens* tokens, const char* call, const CacheShape& shape) {
  require(call, "tokens", tokens);
  TensorTokens own{.q = tensor_of<const void>(tokens->q, call, "q"),
                   .k = tensor_of<const void>(tokens->k, call, "k"),
                   .v = tensor_of<const void>(tokens->v, call, "v")};
  if (tokens->positions) own.positions = {tokens->positions, tokens->q.tokens};
  if (tokens->scores) own.scores = {tokens->scores, tokens->q.tokens * shape.kv_heads};
  return own;
}
/// Of tokens that are there.
inline std::span<float> lse_of(float* lse, const kvc_tokens* tokens, const CacheShape& shape) {
  return lse && tokens ? std::span<float>(lse, tokens->q.tokens * shape.query_heads) : std::span<float>();
}
inline Tensor out_of(const kvc_tensor* out, const char* call) {
  require(call, "out", out);
  return tensor_of<void>(*out, call, "out");
}

}  // namespace kvc::inline KVC_ABI::c_api

/// A cache, and what it needs to live.
struct kvc_cache {
  std::shared_ptr<kvc::Executor> executor;  ///< shared with the forks
  kvc::KVCache<kvc::AnyPolicy> cache;
  std::string policy;
  kvc::TensorCalls calls;

  kvc_cache(std::shared_ptr<kvc::Executor> threads, kvc::KVCache<kvc::AnyPolicy> own)
      : executor(std::move(threads)), cache(std::move(own)), policy(cache.policy().to_string()), calls(cache) {}
};

extern "C" {

const char* kvc_last_error(void) {
  return kvc::c_api::last_error;
}
const char* kvc_version(void) {
  static const std::string text = std::to_string(KVC_VERSION_MAJOR) + "." + std::to_string(KVC_VERSION_MINOR) + "." +
                                  std::to_string(KVC_VERSION_PATCH);
  return text.c_str();
}

kvc_status kvc_create(const kvc_shape* shape, const char* policy, const kvc_options* options, kvc_cache** cache) {
  return kvc::c_api::guarded([&] {
    using namespace kvc::c_api;
    require("create", "shape", shape);
    require("create", "policy", policy);
    require("create", "cache", cache);
    kvc::CacheOptions own;
    std::shared_ptr<kvc::Executor> executor;
    if (options) {
      if (options->dense) own.dense = {scalar_of(options->dense)};
      own.check_finite = options->skips_finite_checks == 0;
      if (options->parallel_for)
        executor = std::make_shared<Callback>(options->parallel_for, options->user);
      else if (options->threads > 1)
        executor = std::make_shared<kvc::ThreadPool>(options->threads);
    }
    own.executor = executor.get();
    *cache = new kvc_cache(executor, kvc::KVCache(shape_of(*shape), kvc::AnyPolicy::parse(policy), own));
  });
}
void kvc_destroy(kvc_cache* cache) {
  delete cache;
}
kvc_status kvc_fork(const kvc_cache* cache, kvc_cache** fork) {
  return kvc::c_api::guarded([&] {
    kvc::c_api::require("fork", "cache", cache);
    kvc::c_api::require("fork", "fork", fork);
    *fork = new kvc_cache(cache->executor, cache->cache.fork());
  });
}
const char* kvc_policy_names(void) {
  static const std::string names = [] {
    std::string lines;
    for (const std::string& name : kvc::AnyPolicy::names()) lines += name + "\n";
    return lines;
  }();
  return names.c_str();
}
const char* kvc_policy(const kvc_cache* cache) {
  return cache->policy.c_str();
}

kvc_status kvc_prefill(kvc_cache* cache, size_t layer, const kvc_tokens* tokens, const kvc_tensor* out, int last,
                       float* lse) {
  return kvc::c_api::guarded([&] {
    using namespace kvc::c_api;
    kvc_cache& own = known(cache, "prefill");
    own.calls.prefill(layer, tokens_of(tokens, "prefill", own.cache.shape()),
                      out ? out_of(out, "prefill") : kvc::Tensor(), last != 0, lse_of(lse, tokens, own.cache.shape()));
  });
}
kvc_status kvc_decode(kvc_cache* cache, size_t layer, const kvc_tokens* tokens, const kvc_tensor* out, float* lse) {
  return kvc::c_api::guarded([&] {
    using namespace kvc::c_api;
    kvc_cache& own = known(cache, "decode");
    own.calls.decode(layer, tokens_of(tokens, "decode", own.cache.shape()), out_of(out, "decode"),
                     lse_of(lse, tokens, own.cache.shape()));
  });
}
kvc_status kvc_draft(kvc_cache* cache, size_t layer, const kvc_tokens* tokens, const kvc_tensor* out, float* lse) {
  return kvc::c_api::guarded([&] {
    using namespace kvc::c_api;
    kvc_cache& own = known(cache, "draft");
    own.calls.draft(layer, tokens_of(tokens, "draft", own.cache.shape()), out_of(out, "draft"),
                    lse_of(lse, tokens, own.cache.shape()));
  });
}
kvc_status kvc_accept(kvc_cache* cache, size_t tokens) {
  return kvc::c_api::guarded([&] { kvc::c_api::known(cache, "accept").cache.accept(tokens); });
}
kvc_status kvc_probe(kvc_cache* cache, size_t layer, const kvc_tokens* tokens, const kvc_tensor* out, int32_t begin,
                     int32_t end) {
  return kvc::c_api::guarded([&] {
    using namespace kvc::c_api;
    kvc_cache& own = known(cache, "probe");
    own.calls.probe(layer, tokens_of(tokens, "probe", own.cache.shape()), out_of(out, "probe"), begin, end);
  });
}
kvc_status kvc_decode_batch(kvc_cache* const* caches, size_t count, size_t layer, const kvc_tokens* tokens,
                            const kvc_tensor* out, float* lse) {
  return kvc::c_api::guarded([&] {
    using namespace kvc::c_api;
    require("decode_batch", "caches", caches);
    if (count == 0) kvc::fail(kvc::ErrorCode::invalid_argument, {"decode_batch: no cache was given"});
    std::vector<kvc::CacheCore*> list;
    for (size_t i = 0; i < count; ++i) list.push_back(&known(caches[i], "decode_batch").cache);
    kvc::SerialExecutor serial;
    kvc_cache& first = *caches[0];
    kvc::Executor& executor = first.executor ? *first.executor : serial;
    first.calls.decode_batch(list, layer, tokens_of(tokens, "decode_batch", first.cache.shape()),
                             out_of(out, "decode_batch"), executor, lse_of(lse, tokens, first.cache.shape()));
  });
}
kvc_status kvc_attend(const kvc_cache* cache, size_t layer, const kvc_tensor* queries, const kvc_tensor* out,
                      float* lse) {
  return kvc::c_api::guarded([&] {
    using namespace kvc::c_api;
    const kvc::CacheCore& own = known(cache, "attend").cache;
    require("attend", "queries", queries);
    const std::size_t numbers = queries->tokens * own.shape().query_heads;
    kvc::TensorCalls::attend(own, layer, tensor_of<const void>(*queries, "attend", "queries"), out_of(out, "attend"),
                             lse ? std::span<float>(lse, numbers) : std::span<float>());
  });
}

kvc_status kvc_compress(kvc_cache* cache) {
  return kvc::c_api::guarded([&] { kvc::c_api::known(cache, "compress").cache.compress(); });
}
kvc_status kvc_make_room(kvc_cache* cache, size_t tokens) {
  return kvc::c_api::guarded([&] { kvc::c_api::known(cache, "make_room").cache.make_room(tokens); });
}
kvc_status kvc_clear(kvc_cache* cache) {
  return kvc::c_api::guarded([&] { kvc::c_api::known(cache, "clear").cache.clear(); });
}
kvc_status kvc_reserve(kvc_cache* cache, size_t tokens) {
  return kvc::c_api::guarded([&] { kvc::c_api::known(cache, "reserve").cache.reserve(tokens); });
}
kvc_status kvc_truncate(kvc_cache* cache, int32_t from, int* exact) {
  return kvc::c_api::guarded([&] {
    const bool is_exact = kvc::c_api::known(cache, "truncate").cache.truncate(from);
    if (exact) *exact = is_exact ? 1 : 0;
  });
}
kvc_status kvc_can_truncate(const kvc_cache* cache, int32_t from, kvc_truncation* truncation) {
  return kvc::c_api::guarded([&] {
    kvc::c_api::require("can_truncate", "truncation", truncation);
    switch (kvc::c_api::known(cache, "can_truncate").cache.can_truncate(from)) {
      case kvc::Truncation::exact:
        *truncation = KVC_EXACT;
        break;
      case kvc::Truncation::rounded:
        *truncation = KVC_ROUNDED;
        break;
      case kvc::Truncation::lost:
        *truncation = KVC_LOST;
        break;
    }
  });
}
kvc_status kvc_remove(kvc_cache* cache, int32_t first, int32_t last) {
  return kvc::c_api::guarded([&] { kvc::c_api::known(cache, "remove").cache.remove(first, last); });
}
kvc_status kvc_shift(kvc_cache* cache, int32_t first, int32_t last, int64_t delta) {
  return kvc::c_api::guarded([&] { kvc::c_api::known(cache, "shift").cache.shift(first, last, delta); });
}
int32_t kvc_next_position(const kvc_cache* cache) {
  return cache->cache.next_position();
}

kvc_status kvc_get_stats(const kvc_cache* cache, kvc_stats* stats) {
  return kvc::c_api::guarded([&] {
    kvc::c_api::require("get_stats", "stats", stats);
    const kvc::Stats own = kvc::c_api::known(cache, "get_stats").cache.stats();
    *stats = {.seen = own.seen,
              .slots = own.slots,
              .dead = own.dead,
              .payload = own.payload,
              .metadata = own.metadata,
              .slack = own.slack,
              .dense_bytes = own.dense_bytes,
              .workspace = own.workspace,
              .spare = own.spare,
              .bytes = own.bytes(),
              .ratio = own.ratio()};
  });
}
size_t kvc_positions(const kvc_cache* cache, size_t layer, size_t head, int32_t* positions, size_t room) {
  std::size_t count = 0;
  const auto list = [&] {
    const kvc::CacheCore& core = kvc::c_api::known(cache, "positions").cache;
    if (layer >= core.shape().layers || head >= core.shape().kv_heads)
      kvc::fail(kvc::ErrorCode::invalid_argument, {"positions: the cache has no head ", head, " of layer ", layer});
    const auto all = core.positions({static_cast<std::uint32_t>(layer), static_cast<std::uint32_t>(head)});
    count = all.size();
    std::copy_n(all.begin(), std::min(room, count), positions);
  };
  return kvc::c_api::guarded(list) == KVC_OK ? count : 0;
}

kvc_status kvc_save(const kvc_cache* cache, kvc_sink sink, void* user, uint64_t* bytes) {
  return kvc::c_api::guarded([&] {
    if (!sink) kvc::fail(kvc::ErrorCode::invalid_argument, "save: sink is NULL");
    const auto written = kvc::save(kvc::c_api::known(cache, "save").cache, [&](std::span<const std::byte> more) {
      return sink(user, more.data(), more.size()) != 0;
    });
    if (bytes) *bytes = written;
  });
}
kvc_status kvc_load(kvc_cache* cache, kvc_source source, void* user, uint64_t* bytes) {
  return kvc::c_api::guarded([&] {
    if (!source) kvc::fail(kvc::ErrorCode::invalid_argument, "load: source is NULL");
    const auto taken = kvc::load(kvc::c_api::known(cache, "load").cache,
                                 [&](std::span<std::byte> room) { return source(user, room.data(), room.size()); });
    if (bytes) *bytes = taken;
  });
}

}  // extern "C"
