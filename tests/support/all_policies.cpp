#include "support/all_policies.hpp"

#include <algorithm>
#include <initializer_list>

namespace support {

const Exemption* PolicyCase::exemption(Invariant invariant) const {
  for (const Exemption& exemption : exempt)
    if (exemption.invariant == invariant) return &exemption;
  return nullptr;
}

kvc::CacheShape small_shape(std::size_t group) {
  return {.layers = 2, .query_heads = 2 * group, .kv_heads = 2, .head_dim = 16, .rotary = kvc::Rotary::standard(16)};
}

kvc::CacheShape windowed_shape(kvc::Position first, kvc::Position second) {
  kvc::CacheShape shape = small_shape();
  shape.each_layer = {{.window = first}, {.window = second, .sink_logits = {0.5f, -1, 2, 3}}};
  return shape;
}

bool PolicyCase::merges() const {
  const kvc::AnyPolicy own = policy();
  return std::ranges::any_of(own.stages(), [](const auto& stage) { return stage->verbs().merge; });
}

bool PolicyCase::reads_window() const {
  const kvc::AnyPolicy own = policy();
  return std::ranges::any_of(own.stages(), [](const auto& stage) { return stage->needs().query_window != 0; });
}

namespace {

using enum Invariant;
using Exemptions = std::vector<Exemption>;
using Cases = std::vector<PolicyCase>;

// Why a policy does not promise an invariant: what many share.
const Exemption no_budget{budget, "it evicts nothing"}, no_ties{ties, "it ranks no slots"},
    no_nan{nan_scores, "its scores are computed from finite rows"}, no_scores{nan_scores, "it has no scores"},
    no_slots{protection, "it protects no slots"},
    always_seals{room, "it quantizes whatever comes; there is no budget to widen"},
    one_by_one{allocations, "a list in its State doubles now and then"};
const Exemptions keeps_all{no_budget, no_slots, no_ties, no_scores},
    seals_all{no_budget, no_slots, no_ties, no_scores, always_seals}, streams{no_ties, no_scores}, ranks{no_nan},
    ranks_freely{no_nan, no_slots};

Exemptions with(Exemptions some, std::initializer_list<Exemption> more) {
  some.insert(some.end(), more);
  return some;
}

Cases full_cases() {
  return {
      {.text = "full", .roomy = "full:type=f16", .exempt = keeps_all},
      {.text = "full:type=f32", .exempt = seals_all},
      {.text = "full:type=bf16", .exempt = seals_all},
      {.text = "full:bits=8,group=16", .exempt = seals_all},
      {.text = "full:bits=4,group=16", .exempt = seals_all},
      {.text = "full:bits=2,group=16", .exempt = seals_all},
  };
}

Cases streaming_llm_cases() {
  return {
      {.text = "streaming_llm:budget=30",
       .acts = Acts::every_pass,
       .roomy = "streaming_llm:budget=1000",
       .first = 4,
       .last = 26,
       .keep = naive::streaming(30),
       .exempt = streams},
      {.text = "streaming_llm:keep=0.3,sinks=2",
       .acts = Acts::every_pass,
       .roomy = "streaming_llm:keep=1,sinks=2",
       .first = 2,
       .last = 20,
       .exempt = streams},
      {.text = "streaming_llm:budget=30,positions=in_cache",
       .acts = Acts::every_pass,
       .roomy = "streaming_llm:budget=1000,positions=in_cache",
       .first = 4,
       .last = 26,
       .keep = naive::streaming(30),
       .exempt = streams},
      {.text = "streaming_llm:budget=30,when=make_room",
       .roomy = "streaming_llm:budget=1000,when=make_room",
       .exempt = with(streams, {{budget, "it acts only when tokens are announced"}, no_slots})},
  };
}

Cases h2o_cases() {
  const Exemption sums_of_passes{chunks,
                                 "a maximum over sums of passes depends on the passes, as Reduce::max of H2O says"};
  return {
      {.text = "h2o:budget=30",
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000",
       .last = 15,
       .keep = naive::heavy_hitters(30),
       .exempt = ranks},
      {.text = "h2o:budget=30,recent=8,normalize",
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000,recent=8,normalize",
       .last = 8,
       .exempt = with(ranks, {{ties, "a token seen by more queries has another mean"}})},
      {.text = "h2o:budget=30,reduce=max",
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000,reduce=max",
       .last = 15,
       .exempt = with(ranks, {sums_of_passes})},
      {.text = "h2o:budget=30,recent=0,normalize,when=prompt_end",
       .acts = Acts::prompt_end,
       .roomy = "h2o:budget=1000,recent=0,normalize,when=prompt_end",
       .exempt = ranks_freely},
      {.text = "h2o:budget=30,positions=in_cache",
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000,positions=in_cache",
       .last = 15,
       .keep = naive::heavy_hitters(30),
       .exempt = ranks},
      {.text = "h2o:keep=0.3", .acts = Acts::every_pass, .roomy = "h2o:keep=1", .last = 15, .exempt = ranks},
  };
}

Cases snapkv_cases() {
  return {
      {.text = "snapkv:budget=30,window=8",
       .acts = Acts::prompt_end,
       .roomy = "snapkv:budget=1000,window=8",
       .last = 8,
       .keep = naive::votes(30, 8),
       .compresses = false,
       .exempt = ranks},
      {.text = "snapkv:budget=30,window=8,kernel=7,pooling=max",
       .acts = Acts::prompt_end,
       .roomy = "snapkv:budget=1000,window=8,pooling=max",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "snapkv:budget=30,window=8,pooling=max,order=after_pooling,reduce=max",
       .acts = Acts::prompt_end,
       .roomy = "snapkv:budget=1000,window=8,order=after_pooling,reduce=max",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "snapkv:budget=30,window=8,pyramid=4",
       .acts = Acts::prompt_end,
       .roomy = "snapkv:budget=1000,window=8,pyramid=4",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "snapkv:keep=0.3,window=8",
       .acts = Acts::prompt_end,
       .roomy = "snapkv:keep=1,window=8",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
  };
}

Cases knorm_cases() {
  return {
      {.text = "knorm:budget=30",
       .acts = Acts::prompt_end,
       .roomy = "knorm:budget=1000",
       .keep = naive::lowest_norms(30),
       .exempt = ranks_freely},
      {.text = "knorm:keep=0.3,pyramid=4",
       .acts = Acts::prompt_end,
       .roomy = "knorm:budget=1000,pyramid=4",
       .exempt = ranks_freely},
  };
}

Cases tova_cases() {
  return {
      {.text = "tova:budget=30,when=prompt_end",
       .acts = Acts::prompt_end,
       .roomy = "tova:budget=1000,when=prompt_end",
       .last = 1,
       .compresses = false,
       .exempt = ranks},
      {.text = "tova:budget=30",
       .acts = Acts::every_pass,
       .roomy = "tova:budget=1000",
       .compresses = false,
       .exempt = with(ranks_freely, {{ties, "the last token of a prompt stays, whatever its score"},
                                     {allocations, "a joint verb's heads are listed anew at every step"}})},
  };
}

Cases keydiff_cases() {
  const Exemption evicts_in_prompts{chunks, "it evicts between chunks, by the meaning of the parameter"};
  return {
      {.text = "keydiff:budget=30", .acts = Acts::prompt_end, .roomy = "keydiff:budget=1000", .exempt = ranks_freely},
      {.text = "keydiff:keep=0.3,when=every_chunk",
       .acts = Acts::prompt_end,
       .roomy = "keydiff:keep=1,when=every_chunk",
       .exempt = with(ranks_freely, {evicts_in_prompts})},
  };
}

Cases expected_attention_cases() {
  return {
      {.text = "expected_attention:budget=30",
       .acts = Acts::prompt_end,
       .roomy = "expected_attention:budget=1000",
       .first = 4,
       .compresses = false,
       .exempt = ranks},
      {.text = "expected_attention:keep=0.3,sinks=0,future=16,epsilon=0.01",
       .acts = Acts::prompt_end,
       .roomy = "expected_attention:keep=1,sinks=0,future=16,epsilon=0.01",
       .compresses = false,
       .exempt = with(ranks_freely, {{ties, "the first of those tokens has another key"}})},
  };
}

Cases duo_attention_cases() {
  return {
      {.text = "duo_attention:heads=none,sinks=4,recent=26",
       .acts = Acts::every_pass,
       .roomy = "duo_attention:heads=none,sinks=4,recent=1000",
       .slots = 30,
       .first = 4,
       .last = 26,
       .keep = naive::streaming(30),
       .exempt = streams},
  };
}

Cases think_cases() {
  const std::string why = "each head chooses its own channels, which the naive cache does not model";
  return {
      {.text = "think:pruned=0.5,window=8",
       .roomy = "think:pruned=0,window=8",
       .exempt = with(keeps_all, {{groups, why}, {short_prompts, why}, {walk, why}})},
  };
}

Cases lagkv_cases() {
  return {
      {.text = "lagkv:budget=50,lag=16",
       .acts = Acts::prompt_end,
       .roomy = "lagkv:budget=1000,lag=16",
       .first = 4,
       .last = 16,
       .exempt = with(ranks, {{ties, "tokens rank within their neighbours, and those after the last rank above all"}})},
      {.text = "lagkv:keep=0.3,sinks=0,lag=8,cross_scoring",
       .acts = Acts::prompt_end,
       .roomy = "lagkv:keep=1,sinks=0,lag=8,cross_scoring",
       .last = 8,
       .exempt = with(ranks, {{ties, "tokens after the last that is measured rank above all"}})},
  };
}

Cases chunkkv_cases() {
  return {
      {.text = "chunkkv:base=(snapkv:window=8),budget=30,chunk=5",
       .acts = Acts::prompt_end,
       .roomy = "chunkkv:base=(snapkv:window=8),budget=1000,chunk=5",
       .last = 8,
       .compresses = false,
       .exempt = with(ranks, {{ties, "the rest of a protected token's chunk comes before others"}})},
      {.text = "chunkkv:base=knorm,keep=0.3",
       .acts = Acts::prompt_end,
       .roomy = "chunkkv:base=knorm,keep=1",
       .exempt = ranks_freely},
  };
}

Cases criticalkv_cases() {
  return {
      {.text = "criticalkv:base=(snapkv:window=8),budget=30",
       .acts = Acts::prompt_end,
       .roomy = "criticalkv:base=(snapkv:window=8),budget=1000",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "criticalkv:base=(h2o:recent=0,normalize,when=prompt_end),keep=0.3,first_stage=0",
       .acts = Acts::prompt_end,
       .roomy = "criticalkv:base=(h2o:recent=0,normalize,when=prompt_end),keep=1,first_stage=0",
       .exempt = with(ranks_freely, {{ties, "a token seen by more queries has another mean"}})},
  };
}

Cases simlayerkv_cases() {
  return {
      {.text = "simlayerkv:threshold=0,recent=27",
       .acts = Acts::every_pass,
       .roomy = "simlayerkv:threshold=0,recent=1000",
       .slots = 30,
       .first = 4,
       .last = 26,
       .compresses = false,
       .exempt = with(streams, {{allocations, "a joint verb's heads are listed anew at every step"}})},
  };
}

Cases r_kv_cases() {
  const Exemption allocates{allocations, "it takes products of all pairs of keys when it evicts"},
      no_ties_either{ties, "a key that repeats others goes before one that does not"};
  constexpr std::size_t Ring = 64 + 8 * 8 * 16 * sizeof(float);  // of eight queries of groups of up to eight
  return {
      {.text = "r_kv:budget=30,interval=1",
       .acts = Acts::every_pass,
       .roomy = "r_kv:budget=1000,interval=1",
       .last = 8,
       .state_bytes = Ring,
       .exempt = with(ranks, {allocates, no_ties_either})},
      {.text = "r_kv:budget=30,lambda=0.5,similar=0.2,when=prompt_end",
       .acts = Acts::prompt_end,
       .roomy = "r_kv:budget=1000",
       .last = 8,
       .state_bytes = Ring,
       .exempt = with(ranks, {allocates, no_ties_either})},
  };
}

Cases d2o_cases() {
  const std::string merged = "the naive cache does not model what it adds up";
  return {
      {.text = "d2o:budget=30,layer_budgets=false",
       .acts = Acts::every_pass,
       .roomy = "d2o:budget=1000,layer_budgets=false",
       .first = 4,
       .last = 15,
       .state_bytes = 64,
       .exempt = with(ranks, {{groups, merged},
                              {short_prompts, merged},
                              {walk, merged},
                              {ties, "its first tokens are protected too"},
                              {allocations, "it lists what it merges when it evicts"}})},
      {.text = "d2o:budget=30,layer_budgets=false,merges=false,sinks=0",
       .acts = Acts::every_pass,
       .roomy = "d2o:budget=1000,layer_budgets=false,merges=false,sinks=0",
       .last = 15,
       .keep = naive::heavy_hitters(30),
       .state_bytes = 64,
       .exempt = with(ranks, {{allocations, "it shares out budgets over all layers when it evicts"}})},
  };
}

Cases cam_cases() {
  const std::string spread = "the naive cache does not model what it spreads";
  return {
      {.text = "cam:base=h2o,budget=30,neighbours=4",
       .acts = Acts::every_pass,
       .roomy = "cam:base=h2o,budget=1000,neighbours=4",
       .last = 15,
       .exempt = with(
           ranks,
           {{groups, spread}, {short_prompts, spread}, {walk, spread}, {heads, "chance differs from head to head"}})},
  };
}

Cases kvzip_cases() {
  return {
      {.text = "kvzip:budget=30",
       .acts = Acts::prompt_end,
       .roomy = "kvzip:budget=1000",
       .first = 4,
       .compresses = false,
       .exempt = ranks},
      {.text = "kvzip:keep=0.3,sinks=2,over=layer,reduce=mean",
       .acts = Acts::prompt_end,
       .roomy = "kvzip:keep=1,sinks=2,over=layer,reduce=mean",
       .first = 2,
       .compresses = false,
       .exempt = ranks},
      {.text = "kvzip:budget=30,sinks=0,over=head",
       .acts = Acts::prompt_end,
       .roomy = "kvzip:budget=1000,sinks=0,over=head",
       .compresses = false,
       .exempt = ranks_freely},
  };
}

Cases rank_fusion_cases() {
  return {
      {.text = "rank_fusion:policies=knorm+(h2o:recent=0,normalize,when=prompt_end),budget=30",
       .acts = Acts::prompt_end,
       .roomy = "rank_fusion:policies=knorm+(h2o:recent=0,normalize,when=prompt_end),budget=1000",
       .exempt = with(ranks_freely, {{ties, "a token seen by more queries has another mean"}})},
      {.text = "rank_fusion:policies=knorm+kvzip,keep=0.3,over=layer,reduce=mean",
       .acts = Acts::prompt_end,
       .roomy = "rank_fusion:policies=knorm+kvzip,keep=1,over=layer,reduce=mean",
       .first = 4,
       .compresses = false,
       .exempt = ranks},
      {.text = "rank_fusion:policies=(snapkv:window=8)+external_scores,budget=30,over=head",
       .acts = Acts::prompt_end,
       .roomy = "rank_fusion:policies=(snapkv:window=8)+external_scores,budget=1000,over=head",
       .last = 8,
       .compresses = false,
       .exempt = {{nan_scores, "the other member ranks those tokens too"}}},
  };
}

Cases foresight_cases() {
  return {{.text = "foresight:budget=30",
           .acts = Acts::prompt_end,
           .roomy = "foresight:budget=1000",
           .first = 4,
           .compresses = false,
           .exempt = ranks}};
}

Cases fitted_cases() {
  const std::string fitted_exactly =
      "it rewrites values; attention_matching_test.cpp compares them with double precision";
  const std::string fitted = "it rewrites values; refit_test.cpp compares them with double precision";
  const Exemptions fits{no_nan,
                        {room, "it fits what it keeps even where it keeps everything"},
                        {groups, fitted},
                        {short_prompts, fitted},
                        {walk, fitted}};
  const Exemption one_of_equals{ties, "once one of two equal tokens is chosen, the other adds less"};
  return {
      {.text = "pursuit:budget=30",
       .acts = Acts::prompt_end,
       .roomy = "pursuit:budget=1000",
       .compresses = false,
       .exempt = with(ranks_freely, {one_of_equals})},
      {.text = "attention_matching:budget=30",
       .acts = Acts::prompt_end,
       .roomy = "attention_matching:budget=1000",
       .compresses = false,
       .exempt = {no_nan, no_slots, {groups, fitted_exactly}, {short_prompts, fitted_exactly}, {walk, fitted_exactly}}},
      {.text = "refit:policy=knorm,budget=30,bits=16",
       .acts = Acts::prompt_end,
       .first = 1,
       .compresses = false,
       .exempt = fits},
      {.text = "compact:budget=33,bits=4,batch=0",
       .acts = Acts::prompt_end,
       .first = 1,
       .compresses = false,
       .exempt = with(fits, {one_of_equals})},
      {.text = "compact:budget=33,replay=false,batch=0",
       .acts = Acts::prompt_end,
       .first = 1,
       .compresses = false,
       .exempt = with(fits, {one_of_equals})},
  };
}

Cases external_scores_cases() {
  const Exemption evicts_in_prompts{chunks, "it evicts between chunks, by the meaning of the parameter"};
  return {
      {.text = "external_scores:budget=30",
       .acts = Acts::prompt_end,
       .roomy = "external_scores:budget=1000",
       .keep = naive::engine_scores(30),
       .exempt = {no_slots}},
      {.text = "external_scores:budget=30,recent=8,when=always",
       .acts = Acts::every_pass,
       .roomy = "external_scores:budget=1000,recent=8,when=always",
       .last = 8,
       .exempt = {evicts_in_prompts}},
      {.text = "external_scores:budget=30,recent=8,when=every_pass,positions=in_cache",
       .acts = Acts::every_pass,
       .roomy = "external_scores:budget=1000,recent=8,when=every_pass,positions=in_cache",
       .last = 8,
       .keep = naive::engine_scores(30, 8, true)},
  };
}

Cases kivi_cases() {
  return {
      {.text = "kivi:bits=2,group=16,residual=32", .roomy = "kivi:group=16,residual=1024", .exempt = keeps_all},
      {.text = "kivi:bits=4,group=8,residual=16", .roomy = "kivi:group=8,residual=1024", .exempt = keeps_all},
      {.text = "kivi:bits=8,group=16,residual=32,metadata=f32",
       .roomy = "kivi:bits=8,group=16,residual=1024,metadata=f32",
       .exempt = keeps_all},
      {.text = "kivi:key_bits=4,value_bits=2,group=16,residual=16",
       .roomy = "kivi:key_bits=4,value_bits=2,group=16,residual=1024",
       .exempt = keeps_all},
  };
}

Cases quest_cases() {
  return {
      {.text = "quest:tokens=32,page=8,dense_layers=1",
       .roomy = "quest:tokens=1000,page=8,dense_layers=1",
       .select = naive::best_pages(32, 8, 1),
       .state_bytes = 512,
       .state_bytes_per_token = 2 * 2 * 16 * sizeof(float) / 8,  // two rows a page, in lists that double
       .exempt = with(keeps_all, {one_by_one})},
      {.text = "quest:tokens=16,page=4,dense_layers=0",
       .roomy = "quest:tokens=1000,page=4,dense_layers=0",
       .select = naive::best_pages(16, 4, 0),
       .state_bytes = 512,
       .state_bytes_per_token = 2 * 2 * 16 * sizeof(float) / 4,
       .exempt = with(keeps_all, {one_by_one})},
  };
}

Cases razor_attention_cases() {
  return {
      {.text = "razor_attention:heads=none,budget=30",
       .acts = Acts::every_pass,
       .roomy = "razor_attention:heads=none,budget=1000",
       .slots = 30,
       .first = 4,
       .last = 25,
       .farewell = naive::compensating(4),
       .state_bytes = 128 + 2 * 16 * sizeof(double),  // the sums
       .exempt = streams},
      {.text = "razor_attention:heads=none,budget=30,compensation=none",
       .acts = Acts::every_pass,
       .roomy = "razor_attention:heads=none,budget=1000,compensation=none",
       .slots = 30,
       .first = 4,
       .last = 26,
       .state_bytes = 128,
       .exempt = streams},
  };
}

Cases mini_cache_cases() {
  const Exemption merges{allocations, "every 64 tokens two layers get new blocks of shared directions"};
  return {
      {.text = "mini_cache:start=0", .exempt = with(seals_all, {merges})},
  };
}

Cases ada_kv_cases() {
  return {
      {.text = "ada_kv:base=snapkv,budget=30,window=8",
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=snapkv,budget=1000,window=8",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "ada_kv:base=snapkv,budget=30,window=8,safeguard=minimum,pyramid=4",
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=snapkv,budget=1000,window=8,safeguard=minimum,pyramid=4",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "ada_kv:base=h2o,budget=30",
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=h2o,budget=1000",
       .last = 15,
       .exempt = ranks},
      {.text = "ada_kv:base=knorm,keep=0.3",
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=knorm,keep=1",
       .exempt = ranks_freely},
      {.text = "ada_kv:base=external_scores,budget=30",
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=external_scores,budget=1000",
       .exempt = {no_slots}},
  };
}

Cases pipeline_cases() {
  const std::string sealing = " | kivi:bits=4,group=16,residual=32,metadata=f32",
                    wide_sealing = " | kivi:bits=4,group=16,residual=1024,metadata=f32";
  return {
      {.text = "streaming_llm:budget=60" + sealing,
       .acts = Acts::every_pass,
       .roomy = "streaming_llm:budget=1000" + wide_sealing,
       .first = 4,
       .last = 56,
       .keep = naive::streaming(60),
       .exempt = streams},
      {.text = "h2o:budget=60" + sealing,
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000" + wide_sealing,
       .last = 30,
       .keep = naive::heavy_hitters(60),
       .exempt = ranks},
      {.text = "snapkv:budget=60,window=8" + sealing,
       .acts = Acts::prompt_end,
       .roomy = "snapkv:budget=1000,window=8" + wide_sealing,
       .last = 8,
       .keep = naive::votes(60, 8),
       .compresses = false,
       .exempt = ranks},
      {.text = "ada_kv:base=knorm,budget=60" + sealing,
       .acts = Acts::prompt_end,
       .roomy = "ada_kv:base=knorm,budget=1000" + wide_sealing,
       .exempt = ranks_freely},
      {.text = "snapkv:budget=60,window=8 | h2o:budget=40,recent=8",
       .acts = Acts::every_pass,
       .roomy = "snapkv:budget=1000,window=8 | h2o:budget=1000,recent=8",
       .last = 8,
       .compresses = false,
       .exempt = ranks},
      {.text = "h2o:budget=60 | quest:tokens=24,page=8,dense_layers=0",
       .acts = Acts::every_pass,
       .roomy = "h2o:budget=1000 | quest:tokens=1000,page=8,dense_layers=0",
       .last = 30,
       .keep = naive::heavy_hitters(60),
       .select = naive::best_pages(24, 8, 0),
       .state_bytes = 512,
       .state_bytes_per_token = 2 * 2 * 16 * sizeof(float) / 8,
       .exempt = with(ranks, {one_by_one})},
  };
}

}  // namespace

const std::vector<PolicyCase>& all_policies() {
  static const Cases all = [] {
    Cases list;
    for (const auto& family : {full_cases,
                               streaming_llm_cases,
                               h2o_cases,
                               snapkv_cases,
                               knorm_cases,
                               tova_cases,
                               keydiff_cases,
                               lagkv_cases,
                               chunkkv_cases,
                               criticalkv_cases,
                               simlayerkv_cases,
                               r_kv_cases,
                               d2o_cases,
                               cam_cases,
                               expected_attention_cases,
                               duo_attention_cases,
                               think_cases,
                               kvzip_cases,
                               rank_fusion_cases,
                               foresight_cases,
                               fitted_cases,
                               external_scores_cases,
                               kivi_cases,
                               quest_cases,
                               razor_attention_cases,
                               mini_cache_cases,
                               ada_kv_cases,
                               pipeline_cases}) {
      const Cases cases = family();
      list.insert(list.end(), cases.begin(), cases.end());
    }
    return list;
  }();
  return all;
}

}  // namespace support
