/* kvc for C, and for every language that calls C. This header is C99 and all of it; the functions are in kvc::compiled
 * (libkvc_kernels, -lstdc++ -lm -lpthread). Each does what the member of kvc::CacheCore of the same name does
 * (kvc/cache/core.hpp says that at length); nothing else happens here.
 *
 *     kvc_shape shape = {.layers = 30, .query_heads = 9, .kv_heads = 3, .head_dim = 64};
 *     kvc_cache* cache = NULL;
 *     if (kvc_create(&shape, "snapkv:budget=512 | kivi:bits=4", NULL, &cache) != KVC_OK) puts(kvc_last_error());
 *
 * A call that does not return KVC_OK has changed nothing; kvc_last_error() then is a sentence that names the argument, what came
 * and what was expected. Sizes are in elements, not bytes. One cache is used by one thread at a time, except by functions that take
 * it as const, which any number of threads may call together. */
#ifndef KVC_C_API_H
#define KVC_C_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The values of kvc::ErrorCode, one higher, for 0 is success. */
typedef enum kvc_status {
  KVC_OK = 0,
  KVC_INVALID_ARGUMENT = 1,  /* a parameter outside its domain */
  KVC_SHAPE_MISMATCH = 2,    /* rows, columns or counts that do not fit the shape */
  KVC_IMPOSSIBLE_BUDGET = 3, /* a budget smaller than what the policy must protect */
  KVC_NON_FINITE = 4,        /* NaN, infinity, or a number that the rows' format cannot hold */
  KVC_MISSING_FEED = 5,      /* a policy needs something that was not passed */
  KVC_UNKNOWN_NAME = 6,      /* a policy or parameter name that does not exist */
  KVC_INCOMPATIBLE = 7,      /* stages or settings that cannot be combined */
  KVC_BAD_FILE = 8,          /* a damaged or foreign session */
  KVC_OUT_OF_MEMORY = 9,     /* memory was refused */
  KVC_FAILED = 10            /* anything else, such as an exception of a policy of one's own */
} kvc_status;

/* Of the last call of this thread that failed; empty before there was one. Valid until the thread's next call that fails. */
const char* kvc_last_error(void);
/* As "0.1.0". */
const char* kvc_version(void);

/* The type of an element. */
typedef enum kvc_type { KVC_F32 = 0, KVC_F16 = 1, KVC_BF16 = 2 } kvc_type;

/* The model's tensors. What is 0 has its default: value_dim is head_dim, scale is 1/sqrt(head_dim), softcap is none. */
typedef struct kvc_shape {
  size_t layers, query_heads, kv_heads, head_dim, value_dim;
  float scale, softcap;
  /* The rotary embedding: pair i of a position-m vector is rotated by m * inv_freq[i]. It is copied. NULL: none, and policies
   * that turn keys are refused. */
  const float* inv_freq;
  size_t inv_freq_count; /* head_dim / 2, or fewer for a partial embedding */
  int interleaved;       /* 1: pair i is (2i, 2i + 1); 0: (i, i + inv_freq_count) */
  /* What layers have of their own, as kvc::LayerShape; copied too. */
  const int32_t* windows;   /* [layers]: the query of position p sees positions p - window + 1 to p; 0: all up to p. NULL: none */
  const float* sink_logits; /* [layers, query_heads]: a logit in the softmax that has no value. NULL: none */
} kvc_shape;

/* Runs body(task, i) for i = 0 to count - 1, in any order, on any threads, and returns when all are done. */
typedef void (*kvc_parallel_for)(void* user, size_t count, void (*body)(void* task, size_t i), void* task);

/* Zeros are the defaults. */
typedef struct kvc_options {
  const char* dense;             /* the type of rows that no codec has sealed: "f16", "f32" or "bf16"; NULL: "f16" */
  size_t threads;                /* of a pool that the cache and its forks share; 0 and 1: the calling thread alone */
  kvc_parallel_for parallel_for; /* the engine's own threads instead; NULL: none */
  void* user;                    /* its first argument */
  int skips_finite_checks;       /* 1: rows are not checked for NaN, infinity and what their format can hold */
} kvc_options;

/* [tokens, heads, dim] elements; those of a head's row lie together, and strides count elements. Where both strides are 0 the
 * tokens lie one behind the other. Other types than KVC_F32, and heads that lie apart, are converted at the door. */
typedef struct kvc_tensor {
  void* data; /* only `out` is written to */
  kvc_type type;
  size_t tokens, heads, dim, token_stride, head_stride;
} kvc_tensor;

/* What one call appends to one layer, with the rotary embedding applied. Zeros are the defaults. */
typedef struct kvc_tokens {
  kvc_tensor q, k, v;       /* of [query_heads, head_dim], [kv_heads, head_dim], [kv_heads, value_dim] */
  const int32_t* positions; /* strictly ascending, one per token; NULL: they continue */
  const float* scores;      /* external scores [tokens, kv_heads], only if the policy asks for them */
} kvc_tokens;

typedef struct kvc_cache kvc_cache;

/* `policy` is a text such as "h2o:budget=0.25 | kivi:bits=2"; kvc_policy_names() lists the names. `options` may be NULL: all
 * defaults. */
kvc_status kvc_create(const kvc_shape* shape, const char* policy, const kvc_options* options, kvc_cache** cache);
/* NULL is fine. */
void kvc_destroy(kvc_cache* cache);
/* A second sequence that starts as this one is now. */
kvc_status kvc_fork(const kvc_cache* cache, kvc_cache** fork);
/* The names, one per line. */
const char* kvc_policy_names(void);
/* The policy as a text that kvc_create() understands; valid while the cache is. */
const char* kvc_policy(const kvc_cache* cache);

/* `out` is [tokens, query_heads, value_dim]; in kvc_prefill one without data says that the engine did the attention itself.
 * `last` is 1 for the last part of a prompt. `lse` may be NULL; else it has room for [tokens, query_heads] numbers and gets the
 * natural logarithm of what each row of `out` was divided by. */
kvc_status kvc_prefill(kvc_cache* cache, size_t layer, const kvc_tokens* tokens, const kvc_tensor* out, int last,
                       float* lse);
kvc_status kvc_decode(kvc_cache* cache, size_t layer, const kvc_tokens* tokens, const kvc_tensor* out, float* lse);
kvc_status kvc_draft(kvc_cache* cache, size_t layer, const kvc_tokens* tokens, const kvc_tensor* out, float* lse);
kvc_status kvc_accept(kvc_cache* cache, size_t tokens);
kvc_status kvc_probe(kvc_cache* cache, size_t layer, const kvc_tokens* tokens, const kvc_tensor* out, int32_t begin,
                     int32_t end);
/* One token of each of `count` sequences: token b belongs to caches[b]. The first cache's threads compute. */
kvc_status kvc_decode_batch(kvc_cache* const* caches, size_t count, size_t layer, const kvc_tokens* tokens,
                            const kvc_tensor* out, float* lse);
/* Attention of queries [tokens, query_heads, head_dim] over all slots, storing nothing. */
kvc_status kvc_attend(const kvc_cache* cache, size_t layer, const kvc_tensor* queries, const kvc_tensor* out, float* lse);

kvc_status kvc_compress(kvc_cache* cache);
kvc_status kvc_make_room(kvc_cache* cache, size_t tokens);
kvc_status kvc_clear(kvc_cache* cache);
kvc_status kvc_reserve(kvc_cache* cache, size_t tokens);

/* What is left where tokens are taken back. */
typedef enum kvc_truncation { KVC_EXACT = 0, KVC_ROUNDED = 1, KVC_LOST = 2 } kvc_truncation;
/* `exact`, which may be NULL, becomes 1 where the cache is exactly what it was before these tokens came, and else 0. */
kvc_status kvc_truncate(kvc_cache* cache, int32_t from, int* exact);
kvc_status kvc_can_truncate(const kvc_cache* cache, int32_t from, kvc_truncation* truncation);
int32_t kvc_next_position(const kvc_cache* cache);
/* Forgets the tokens at positions [first, last); moves them by `delta` positions. Context shift is both, one after the other. */
kvc_status kvc_remove(kvc_cache* cache, int32_t first, int32_t last);
kvc_status kvc_shift(kvc_cache* cache, int32_t first, int32_t last, int64_t delta);

/* kvc::Stats of the whole cache: bytes, and tokens behind them. */
typedef struct kvc_stats {
  size_t seen, slots, dead, payload, metadata, slack, dense_bytes, workspace, spare;
  size_t bytes; /* payload, metadata and slack */
  double ratio; /* dense_bytes over bytes */
} kvc_stats;
kvc_status kvc_get_stats(const kvc_cache* cache, kvc_stats* stats);
/* The positions of a head's live slots. Writes at most `room` of them and returns how many there are; 0 where the head does
 * not exist. */
size_t kvc_positions(const kvc_cache* cache, size_t layer, size_t head, int32_t* positions, size_t room);

/* Takes bytes; 0: it could not take them all. */
typedef int (*kvc_sink)(void* user, const void* data, size_t bytes);
/* Fills `data` with the next bytes and returns how many those were; 0 is the end. */
typedef size_t (*kvc_source)(void* user, void* data, size_t bytes);
/* `bytes`, which may be NULL, becomes the size of the session. */
kvc_status kvc_save(const kvc_cache* cache, kvc_sink sink, void* user, uint64_t* bytes);
kvc_status kvc_load(kvc_cache* cache, kvc_source source, void* user, uint64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif /* KVC_C_API_H */
