#include "kvc/llama.hpp"

#include <functional>
#include <string>
#include <vector>

#include "catch_shim.hpp"
#include "engine/gguf_writer.hpp"
#include "llama_cpp/llama_model.hpp"
#include "llama_cpp/tiny_models.hpp"

// kvc as the cache of an unpatched llama.cpp, on a model of two layers with random f32 weights that the test writes.

namespace {

/// 3, 10, 17, ... inside the vocabulary.
llama_token token_at(int place) {
  return static_cast<llama_token>((3 + 7 * place) % 96);
}

struct Tiny {
  TemporaryFile file{tiny_model().bytes()};
  LlamaModel model{file.path()};
};

/// Decodes tokens [begin, end) of sequence 0 in one call; appends the logits after each.
using Decode = std::function<int(llama_batch)>;
void feed(const LlamaModel& model, llama_context* context, const Decode& decode, int begin, int end,
          std::vector<float>& logits) {
  Batch batch;
  for (int place = begin; place < end; ++place) batch.add(token_at(place), place);
  REQUIRE(decode(batch.get()) == 0);
  for (int row = 0; row < end - begin; ++row) {
    const std::vector<float> one = logits_of(context, model, row);
    logits.insert(logits.end(), one.begin(), one.end());
  }
}

/// The logits of 40 tokens as a prompt and 20 fed one by one, by llama.cpp alone.
std::vector<float> own_logits(const LlamaModel& model, llama_context_params parameters) {
  const Context context = exact_context(model, parameters);
  std::vector<float> logits;
  const Decode decode = [&](llama_batch batch) { return llama_decode(context.get(), batch); };
  feed(model, context.get(), decode, 0, 40, logits);
  for (int place = 40; place < 60; ++place) feed(model, context.get(), decode, place, place + 1, logits);
  return logits;
}
std::vector<float> served_logits(const LlamaModel& model, llama_context_params parameters, const std::string& policy) {
  Served served(model, parameters, policy);
  std::vector<float> logits;
  const Decode decode = [&](llama_batch batch) { return served.cache.decode(batch); };
  feed(model, served.context.get(), decode, 0, 40, logits);
  for (int place = 40; place < 60; ++place) feed(model, served.context.get(), decode, place, place + 1, logits);
  CHECK(served.cache.next_position(0) == 60);
  CHECK(served.cache.stats().seen == 60);
  return logits;
}

/// The logits after every token of a sequence that is fed in calls of 32, by `decode`.
std::vector<float> long_logits(const LlamaModel& model, llama_context* context, const Decode& decode, int tokens) {
  std::vector<float> logits;
  for (int place = 0; place < tokens; place += 32)
    feed(model, context, decode, place, std::min(place + 32, tokens), logits);
  return logits;
}

/// A policy that fails when a prompt ends, or when the 45th token comes.
struct Fails {
  bool in_prompt = true;
  static constexpr auto parameters() { return kvc::list(kvc::parameter("in_prompt", &Fails::in_prompt, "When.")); }
  void evict(kvc::Head<Fails>& head, kvc::Plan&) const {
    if (in_prompt ? head.event == kvc::Event::prompt_end : head.size() == 45)
      throw std::runtime_error("the policy failed");
  }
};

/// The sentence of the kvc::Error that `call` throws.
template <class Call>
std::string refusal(Call call) {
  try {
    call();
  } catch (const kvc::Error& error) {
    return error.what();
  }
  return "nothing was refused";
}

}  // namespace

TEST_CASE("an exact cache gives llama.cpp's logits within 1e-4, whatever the ubatches and threads") {
  const Tiny tiny;
  const std::vector<float> own = own_logits(tiny.model, parameters_for(64));
  for (const std::uint32_t ubatch : {64u, 16u, 7u})
    for (const int threads : {1, 2}) {
      INFO("ubatch " << ubatch << ", threads " << threads);
      llama_context_params parameters = parameters_for(64);
      parameters.n_ubatch = ubatch;
      parameters.n_threads = parameters.n_threads_batch = threads;
      CHECK(largest_difference(own, served_logits(tiny.model, parameters, "full")) < 1e-4f);
    }
}

TEST_CASE("a sequence becomes longer than llama.cpp's context, for only the tokens of one call are in it") {
  const Tiny tiny;
  const Context own = exact_context(tiny.model, parameters_for(768));
  const std::vector<float> expected = long_logits(
      tiny.model, own.get(), [&](llama_batch batch) { return llama_decode(own.get(), batch); }, 700);
  Served served(tiny.model, parameters_for(64), "full");
  REQUIRE(llama_n_ctx(served.context.get()) <= 256);
  const std::vector<float> logits = long_logits(
      tiny.model, served.context.get(), [&](llama_batch batch) { return served.cache.decode(batch); }, 700);
  CHECK(largest_difference(expected, logits) < 1e-4f);
}

TEST_CASE("sequences that are decoded together, one a prompt's part and one a token, are each as if they were alone") {
  const Tiny tiny;
  Served together(tiny.model, parameters_for(64, 3), "full");
  Served alone(tiny.model, parameters_for(64), "full");
  // Sequence 2 is the plain one; sequence 0 starts 7 tokens later in the same text.
  std::vector<float> expected;
  const Decode decode = [&](llama_batch batch) { return alone.cache.decode(batch); };
  feed(tiny.model, alone.context.get(), decode, 0, 30, expected);
  for (int place = 30; place < 40; ++place) feed(tiny.model, alone.context.get(), decode, place, place + 1, expected);

  Batch prompts;
  for (int place = 0; place < 30; ++place) prompts.add(token_at(place), place, 2);
  for (int place = 0; place < 12; ++place) prompts.add(token_at(place + 7), place, 0);
  REQUIRE(together.cache.decode(prompts.get()) == 0);
  std::vector<float> logits;
  for (int row = 0; row < 30; ++row) {
    const auto one = logits_of(together.context.get(), tiny.model, row);
    logits.insert(logits.end(), one.begin(), one.end());
  }
  for (int place = 30; place < 40; ++place) {
    Batch step;
    step.add(token_at(place - 11), place - 18, 0);
    step.add(token_at(place), place, 2);
    REQUIRE(together.cache.decode(step.get()) == 0);
    const auto one = logits_of(together.context.get(), tiny.model, 1);
    logits.insert(logits.end(), one.begin(), one.end());
  }
  CHECK(largest_difference(expected, logits) < 1e-4f);
  CHECK(together.cache.next_position(0) == 22);
  CHECK(together.cache.next_position(1) == 0);
  CHECK(together.cache.cache(1) == nullptr);
}

TEST_CASE("the rotary embedding is learned, so that policies which turn keys work") {
  const Tiny tiny;
  Served served(tiny.model, parameters_for(64), "streaming_llm:budget=24,positions=in_cache");
  CHECK(served.cache.shape().rotary.inv_freq == kvc::Rotary::standard(8).inv_freq);
  CHECK(served.cache.shape().rotary.interleaved);
  std::vector<float> logits;
  const Decode decode = [&](llama_batch batch) { return served.cache.decode(batch); };
  feed(tiny.model, served.context.get(), decode, 0, 40, logits);
  CHECK(served.cache.cache(0)->positions({1, 1}).size() == 24);
}

TEST_CASE(
    "policies act where a prompt ends: with the first token whose logits are asked for, or where the caller says") {
  const Tiny tiny;
  const std::string policy = "snapkv:budget=16,window=8";
  Served served(tiny.model, parameters_for(64, 2), policy);
  const auto held = [&](llama_seq_id id) { return served.cache.cache(id)->positions({0, 0}).size(); };
  const auto feed_to = [&](llama_seq_id id, int begin, int end, bool logits, kvc::LlamaFeed kind) {
    Batch batch;
    for (int place = begin; place < end; ++place) batch.add(token_at(place), place, id, logits && place + 1 == end);
    REQUIRE(served.cache.decode(batch.get(), kind) == 0);
  };
  feed_to(0, 0, 20, false, kvc::LlamaFeed::automatic);
  CHECK(held(0) == 20);
  feed_to(0, 20, 39, false, kvc::LlamaFeed::automatic);
  CHECK(held(0) == 39);
  feed_to(0, 39, 40, true, kvc::LlamaFeed::automatic);  // one token, but the prompt is still open
  CHECK(held(0) == 16);
  feed_to(0, 40, 41, true, kvc::LlamaFeed::automatic);
  CHECK(held(0) == 17);

  feed_to(1, 0, 30, true, kvc::LlamaFeed::prompt_part);
  CHECK(held(1) == 30);
  feed_to(1, 30, 33, true, kvc::LlamaFeed::prompt);
  CHECK(held(1) == 16);
  feed_to(1, 33, 35, true, kvc::LlamaFeed::generated);
  CHECK(held(1) == 18);
}

TEST_CASE("a sequence that is cut, copied or forgotten goes on as if it had never been longer") {
  const Tiny tiny;
  Served served(tiny.model, parameters_for(64, 2), "full");
  const Decode decode = [&](llama_batch batch) { return served.cache.decode(batch); };
  std::vector<float> first, again, copied;
  feed(tiny.model, served.context.get(), decode, 0, 30, first);
  feed(tiny.model, served.context.get(), decode, 30, 50, first);
  served.cache.fork(0, 1);
  CHECK(served.cache.truncate(0, 30));
  CHECK(served.cache.next_position(0) == 30);
  CHECK(served.cache.next_position(1) == 50);
  feed(tiny.model, served.context.get(), decode, 30, 50, again);
  CHECK(largest_difference({first.end() - static_cast<std::ptrdiff_t>(again.size()), first.end()}, again) < 1e-5f);
  served.cache.clear(0);
  CHECK(served.cache.next_position(0) == 0);
  feed(tiny.model, served.context.get(), decode, 0, 30, copied);
  CHECK(largest_difference({first.begin(), first.begin() + static_cast<std::ptrdiff_t>(copied.size())}, copied) <
        1e-5f);
  Batch batch;
  batch.add(token_at(50), 50, 1);
  CHECK(served.cache.decode(batch.get()) == 0);
}

TEST_CASE("tokens that were drafted and not accepted leave no trace, those that were are as if they had been decoded") {
  const Tiny tiny;
  for (const char* policy : {"full", "h2o:budget=24", "streaming_llm:budget=20"}) {
    INFO(policy);
    Served drafting(tiny.model, parameters_for(64), policy), plain(tiny.model, parameters_for(64), policy);
    std::vector<float> drafted, decoded;
    const auto prompt = [&](Served& served, std::vector<float>& logits) {
      feed(
          tiny.model, served.context.get(), [&](llama_batch batch) { return served.cache.decode(batch); }, 0, 30,
          logits);
      logits.clear();
    };
    prompt(drafting, drafted);
    prompt(plain, decoded);
    Batch guess;  // the first two tokens are right
    for (int place = 30; place < 34; ++place) guess.add(token_at(place < 32 ? place : place + 7), place);
    REQUIRE(drafting.cache.decode(guess.get(), kvc::LlamaFeed::draft) == 0);
    CHECK(drafting.cache.next_position(0) == 34);
    CHECK(refusal([&] { drafting.cache.decode(guess.get()); }) ==
          "LlamaCache::decode: 4 drafted tokens wait for accept()");
    CHECK(refusal([&] { drafting.cache.accept(0, 5); }) ==
          "LlamaCache::accept: 5 tokens of sequence 0, of which 4 are drafted");
    drafting.cache.accept(0, 2);
    CHECK(drafting.cache.next_position(0) == 32);
    for (int place = 30; place < 32; ++place)
      feed(
          tiny.model, plain.context.get(), [&](llama_batch batch) { return plain.cache.decode(batch); }, place,
          place + 1, decoded);
    decoded.clear();
    for (int place = 32; place < 50; ++place) {
      feed(
          tiny.model, drafting.context.get(), [&](llama_batch batch) { return drafting.cache.decode(batch); }, place,
          place + 1, drafted);
      feed(
          tiny.model, plain.context.get(), [&](llama_batch batch) { return plain.cache.decode(batch); }, place,
          place + 1, decoded);
    }
    // A policy that evicts would have dropped slots between the drafted tokens, which so saw more of them.
    if (std::string(policy) == "full") CHECK(largest_difference(drafted, decoded) < 1e-5f);
    CHECK(drafting.cache.stats().slots == plain.cache.stats().slots);
    CHECK(drafting.cache.stats().seen == plain.cache.stats().seen);
  }
}

TEST_CASE("a sequence whose middle is removed and whose end is shifted goes on where its tokens now stand") {
  const Tiny tiny;
  Served served(tiny.model, parameters_for(64), "full:type=f32");
  const Decode decode = [&](llama_batch batch) { return served.cache.decode(batch); };
  std::vector<float> ignored, shifted, compared;
  feed(tiny.model, served.context.get(), decode, 0, 40, ignored);
  served.cache.remove(0, 10, 20);
  CHECK(served.cache.next_position(0) == 40);
  served.cache.shift(0, 20, 40, -10);
  CHECK(served.cache.next_position(0) == 30);
  CHECK(served.cache.cache(0)->stats(0).slots == 30 * served.cache.shape().kv_heads);
  Batch next;
  next.add(token_at(40), 30);
  CHECK(served.cache.decode(next.get()) == 0);
  shifted = logits_of(served.context.get(), tiny.model, 0);

  // llama.cpp's own cache, edited by llama.cpp.
  llama_context_params parameters = parameters_for(64);
  const Context context = exact_context(tiny.model, parameters);
  const Decode own = [&](llama_batch batch) { return llama_decode(context.get(), batch); };
  feed(tiny.model, context.get(), own, 0, 40, ignored);
  llama_memory_seq_rm(llama_get_memory(context.get()), 0, 10, 20);
  llama_memory_seq_add(llama_get_memory(context.get()), 0, 20, 40, -10);
  CHECK(own(next.get()) == 0);
  compared = logits_of(context.get(), tiny.model, 0);
  CHECK(largest_difference(shifted, compared) < 1e-4f);

  CHECK(served.cache.truncate(0, 15));
  CHECK(served.cache.next_position(0) == 15);
  served.cache.remove(0, 0, 15);
  CHECK(served.cache.next_position(0) == 0);
}

TEST_CASE("a sequence that is saved goes on in another context as if it had never been away") {
  const Tiny tiny;
  for (const char* policy : {"full", "snapkv:budget=16,window=4 | kivi:group=8,residual=16"}) {
    INFO(policy);
    Served first(tiny.model, parameters_for(64), policy), second(tiny.model, parameters_for(64, 2), policy);
    const auto decode_of = [](Served& served) {
      return [&served](llama_batch batch) { return served.cache.decode(batch); };
    };
    std::vector<float> ignored, here, there;
    CHECK(refusal([&] { first.cache.save(0, [](std::span<const std::byte>) { return true; }); }) ==
          "LlamaCache::save: sequence 0 is empty");
    feed(tiny.model, first.context.get(), decode_of(first), 0, 40, ignored);
    std::vector<std::byte> session;
    const auto sink = [&](std::span<const std::byte> more) {
      session.insert(session.end(), more.begin(), more.end());
      return true;
    };
    const std::uint64_t bytes = first.cache.save(0, sink);
    CHECK(bytes == session.size());
    CHECK(second.cache.load(0, kvc::SessionInMemory{.bytes = session}) == session.size());
    CHECK(second.cache.next_position(0) == 40);
    for (int place = 40; place < 60; ++place) {
      feed(tiny.model, first.context.get(), decode_of(first), place, place + 1, here);
      feed(tiny.model, second.context.get(), decode_of(second), place, place + 1, there);
    }
    CHECK(here == there);
    session[session.size() / 2] ^= std::byte{1};
    CHECK(refusal([&] { second.cache.load(0, kvc::SessionInMemory{.bytes = session}); }) != "nothing was refused");
    CHECK(second.cache.next_position(0) == 60);
  }
}

TEST_CASE("an error of a policy ends the call, not the program, and the sequence is as it was or empty") {
  const Tiny tiny;
  kvc::AnyPolicy::add<Fails>("fails", "Fails.");
  for (const int threads : {1, 2}) {
    llama_context_params parameters = parameters_for(64);
    parameters.n_threads = parameters.n_threads_batch = threads;
    Served served(tiny.model, parameters, "fails:in_prompt=false");
    const Decode decode = [&](llama_batch batch) { return served.cache.decode(batch); };
    std::vector<float> logits;
    feed(tiny.model, served.context.get(), decode, 0, 40, logits);
    for (int place = 40; place < 44; ++place) feed(tiny.model, served.context.get(), decode, place, place + 1, logits);
    Batch batch;
    batch.add(token_at(44), 44);
    CHECK_THROWS_WITH(served.cache.decode(batch.get()), "the policy failed");
    CHECK(served.cache.error() == "the policy failed");
    CHECK(served.cache.next_position(0) == 44);
    CHECK(served.cache.stats().seen == 44);

    Served at_once(tiny.model, parameters, "fails");
    Batch prompt;
    for (int place = 0; place < 40; ++place) prompt.add(token_at(place), place);
    CHECK_THROWS_WITH(at_once.cache.decode(prompt.get()), "the policy failed");
    CHECK(at_once.cache.next_position(0) == 0);
    CHECK(at_once.cache.stats().seen == 0);
    CHECK(at_once.cache.decode(prompt.get(), kvc::LlamaFeed::prompt_part) == 0);
  }
}

TEST_CASE("a decode that goes past the LlamaCache is refused, and the next one through it works") {
  const Tiny tiny;
  Served served(tiny.model, parameters_for(64), "full");
  Batch batch;
  batch.add(token_at(0), 0);
  CHECK(llama_decode(served.context.get(), batch.get()) == 2);
  CHECK(served.cache.error().find("call LlamaCache::decode() instead") != std::string::npos);
  llama_memory_clear(llama_get_memory(served.context.get()), true);
  CHECK(served.cache.decode(batch.get()) == 0);
  CHECK(served.cache.error().empty());
}

TEST_CASE("attention that is not causal is refused when it comes, not computed as if it were") {
  const Tiny tiny;
  Served served(tiny.model, parameters_for(64), "full");
  llama_set_causal_attn(served.context.get(), false);
  Batch batch;
  for (int place = 0; place < 10; ++place) batch.add(token_at(place), place);
  CHECK(refusal([&] { served.cache.decode(batch.get()); }).find("attention is not causal") != std::string::npos);
}

TEST_CASE("batches that do not continue their sequences are refused before anything is computed") {
  const Tiny tiny;
  Served served(tiny.model, parameters_for(64, 2), "full");
  Batch ten;
  for (int place = 0; place < 10; ++place) ten.add(token_at(place), place);
  REQUIRE(served.cache.decode(ten.get()) == 0);
  const auto says = [&](Batch& batch, const std::string& part) {
    const std::string sentence = refusal([&] { served.cache.decode(batch.get()); });
    INFO(sentence);
    CHECK(sentence.find(part) != std::string::npos);
    CHECK(served.cache.next_position(0) == 10);
  };
  says(ten, "stands at position 0 of sequence 0, which goes on at 10");
  Batch gap;
  gap.add(token_at(11), 11);
  says(gap, "stands at position 11");
  Batch stranger;
  stranger.add(token_at(0), 0, 2);
  says(stranger, "belongs to sequence 2, the context has sequences 0 to 1");
  Batch large;
  for (int place = 0; place < 129; ++place) large.add(token_at(place), place, 1);
  says(large, "the batch has 129 tokens, the context takes 1 to 128");
  llama_token token = 5;
  llama_seq_id both[] = {0, 1};
  llama_seq_id* ids[] = {both, nullptr};
  std::int32_t two = 2;
  const llama_batch shared{.n_tokens = 1,
                           .token = &token,
                           .embd = nullptr,
                           .pos = nullptr,
                           .n_seq_id = &two,
                           .seq_id = ids,
                           .logits = nullptr};
  CHECK(refusal([&] { served.cache.decode(shared); }).find("belongs to 2 sequences") != std::string::npos);
}

TEST_CASE("parameters that kvc cannot serve are refused before there is a context") {
  const auto refused = [](const std::function<void(llama_context_params&)>& change) {
    kvc::LlamaCache cache(kvc::AnyPolicy::parse("full"));
    llama_context_params parameters = parameters_for(64, 2);
    change(parameters);
    return refusal([&] { cache.attach(parameters); });
  };
  const auto has = [](const std::string& sentence, const std::string& part) {
    INFO(sentence);
    CHECK(sentence.find(part) != std::string::npos);
  };
  has(refused([](auto& p) { p.type_k = GGML_TYPE_Q8_0; }), "type_k or type_v is q8_0");
  has(refused([](auto& p) { p.type_v = GGML_TYPE_Q4_0; }), "type_k or type_v is q4_0");
  has(refused([](auto& p) { p.kv_unified = true; }), "kv_unified mixes the rows of 2 sequences");
  has(refused([](auto& p) { p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED; }), "flash_attn_type is disabled");
  has(refused([](auto& p) { p.cb_eval = [](ggml_tensor*, bool, void*) { return true; }; }), "cb_eval is taken");
  has(refused([](auto&) {}), "nothing was refused");
}

TEST_CASE("a policy that llama.cpp cannot feed, or that cannot work on the model, is refused at the start") {
  const Tiny tiny;
  const std::string sentence = refusal([&] { Served(tiny.model, parameters_for(64), "full:ggml=q8_0"); });
  INFO(sentence);
  CHECK(sentence.find("must divide the head dimension (8)") != std::string::npos);
  CHECK(refusal([&] { Served(tiny.model, parameters_for(64), "kvzip:keep=0.5"); }).find("probes") != std::string::npos);
  CHECK(refusal([&] {
          Served(tiny.model, parameters_for(64), "external_scores:budget=8");
        }).find("scores from outside") != std::string::npos);
}

TEST_CASE("layers with a window are kvc's, give llama.cpp's logits, and hold no more than the window") {
  const TemporaryFile file(model_with_windows(32));
  const LlamaModel model(file.path());
  llama_context_params parameters = parameters_for(384);
  parameters.n_ubatch = 64;
  llama_context_params plain = parameters;
  plain.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  plain.type_k = plain.type_v = GGML_TYPE_F32;
  const Context own(llama_init_from_model(model.get(), plain));
  const std::vector<float> expected = long_logits(
      model, own.get(), [&](llama_batch batch) { return llama_decode(own.get(), batch); }, 360);

  Served served(model, parameters, "full:type=f32");
  CHECK_FALSE(served.cache.shares_the_model());
  const kvc::CacheShape& shape = served.cache.shape();
  REQUIRE(shape.layers == 3);
  CHECK(shape.window(0) == 32);
  CHECK(shape.window(1) == 0);
  CHECK(shape.window(2) == 32);
  CHECK(shape.softcap == 2.0f);
  const Decode decode = [&](llama_batch batch) { return served.cache.decode(batch); };
  const std::vector<float> logits = long_logits(model, served.context.get(), decode, 360);
  // ggml reads this model's GELU from a table of f16, which makes steps of 5e-4 out of differences that are next to none.
  CHECK(largest_difference(expected, logits) < 2e-3f);
  CHECK(served.cache.cache(0)->stats(kvc::HeadId{0, 0}).slots == 31);
  CHECK(served.cache.cache(0)->stats(kvc::HeadId{1, 0}).slots == 360);

  CHECK_FALSE(served.cache.truncate(0, 352));  // of what the windows have left nothing comes back
  Batch past_the_context;
  for (int place = 352; place < 700; ++place) past_the_context.add(token_at(place), place);
  CHECK(served.cache.decode(past_the_context.get()) == 0);  // n_ctx limits one call's tokens
  CHECK(served.cache.next_position(0) == 700);
}

TEST_CASE("models that cannot be served are refused at the start, with the reason") {
  const auto reason = [](const std::string& bytes, std::uint32_t context) {
    const TemporaryFile file(bytes);
    const LlamaModel model(file.path());
    return refusal([&] { Served(model, parameters_for(context), "full"); });
  };
  const auto has = [](const std::string& sentence, const std::string& part) {
    INFO(sentence);
    CHECK(sentence.find(part) != std::string::npos);
  };
  has(reason(model_with_alibi(), 64), "it has ALiBi");
  has(reason(model_with_uneven_layers(), 64), "4 query heads over 1 KV heads of 8 and 8 dimensions");
  has(reason(model_with_windows(32), 64), "n_ctx, which is 256 a sequence, must be larger");
}
