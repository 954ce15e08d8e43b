/* A cache from C: a prompt of random numbers and tokens behind it, under a policy by name.
 *   cc -std=c99 -Iinclude examples/c/decode.c build/release/libkvc_kernels.a -lstdc++ -lm -lpthread -o decode
 *   ./decode "h2o:budget=64 | kivi:bits=4" */
#include <kvc/c_api.h>
#include <stdio.h>
#include <stdlib.h>

enum { Layers = 2, QueryHeads = 8, Heads = 2, Dim = 64, Prompt = 256, Steps = 64 };
static float q[Prompt * QueryHeads * Dim], k[Prompt * Heads * Dim], v[Prompt * Heads * Dim];
static float out[Prompt * QueryHeads * Dim];

static void check(kvc_status status) {
  if (status == KVC_OK) return;
  fprintf(stderr, "%s\n", kvc_last_error());
  exit(1);
}
static void fill(float* x, size_t count) {
  while (count-- > 0) x[count] = (float)rand() / (float)RAND_MAX - 0.5f;
}
/* What a model computes for the tokens of a layer; here numbers by chance. */
static kvc_tokens next_tokens(size_t count) {
  fill(q, count * QueryHeads * Dim), fill(k, count * Heads * Dim), fill(v, count * Heads * Dim);
  kvc_tokens tokens = {.q = {q, KVC_F32, count, QueryHeads, Dim, 0, 0},
                       .k = {k, KVC_F32, count, Heads, Dim, 0, 0},
                       .v = {v, KVC_F32, count, Heads, Dim, 0, 0}};
  return tokens;
}

int main(int argc, char** argv) {
  const kvc_shape shape = {.layers = Layers, .query_heads = QueryHeads, .kv_heads = Heads, .head_dim = Dim};
  kvc_cache* cache = NULL;
  check(kvc_create(&shape, argc > 1 ? argv[1] : "h2o:budget=64 | kivi:bits=4", NULL, &cache));
  for (size_t step = 0; step <= Steps; ++step)
    for (size_t layer = 0; layer < Layers; ++layer) {
      const size_t count = step == 0 ? Prompt : 1;
      const kvc_tokens tokens = next_tokens(count);
      const kvc_tensor answer = {out, KVC_F32, count, QueryHeads, Dim, 0, 0};
      check(step == 0 ? kvc_prefill(cache, layer, &tokens, &answer, 1, NULL)
                      : kvc_decode(cache, layer, &tokens, &answer, NULL));
    }
  kvc_stats stats;
  check(kvc_get_stats(cache, &stats));
  printf("%s: %zu tokens in %zu bytes, %.2f times smaller than fp16\n", kvc_policy(cache), stats.seen, stats.bytes, stats.ratio);
  kvc_destroy(cache);
  return 0;
}
