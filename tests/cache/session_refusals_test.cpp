#include "catch_shim.hpp"

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "codec/low_rank_codec.hpp"
#include "kvc/policies/all.hpp"
#include "support/all_policies.hpp"
#include "support/allocation_counter.hpp"
#include "support/fake_head.hpp"
#include "support/script.hpp"
#include "support/session_sections.hpp"

// What cannot be saved or loaded is refused with a sentence, and the cache stays as it was.

using namespace kvc;
using namespace support;

namespace {

const CacheShape Shape = small_shape();

void feed(CacheCore& cache, const LayeredTokens& text, std::size_t first, std::size_t count, bool ends = true) {
  for (std::size_t layer = 0; layer < cache.shape().layers; ++layer)
    cache.prefill(layer, text.tokens(layer, first, count), {}, ends);
}

/// A session of a few tokens, under a policy that has every kind of content: dropped slots, sealed rows, columns.
struct Small {
  LayeredTokens text{Shape, 100, 81};
  AnyPolicy policy = AnyPolicy::parse("h2o:budget=24 | kivi:group=8,residual=8");
  KVCache<AnyPolicy> cache{Shape, policy};
  Bytes session;

  Small() {
    feed(cache, text, 0, 40);
    session = saved(cache, {.policy = policy.to_string()});
  }
};

/// Loads into a cache that holds something else, and checks that a refusal leaves it as it was. Returns the refusal.
template <Composable P>
std::string refusal(const P& policy, std::span<const std::byte> session, const CacheShape& shape = Shape,
                    const CacheOptions& options = {}, ErrorCode code = ErrorCode::bad_file) {
  const LayeredTokens text(shape, 60, 82);
  KVCache<P> cache(shape, policy, options);
  feed(cache, text, 0, 30);
  const Picture before = picture_of(cache);
  std::string sentence = "nothing was refused";
  try {
    BytesSource source(session);
    load(cache, source);
  } catch (const Error& error) {
    CHECK(error.code() == code);
    sentence = error.what();
  }
  CHECK(difference({picture_of(cache)}, {before}) == "");
  return sentence;
}

bool begins_with(const std::string& text, const std::string& beginning) {
  return text.substr(0, beginning.size()) == beginning;
}

}  // namespace

TEST_CASE("A cache in which something waits for a decision is not saved", "[session]") {
  const LayeredTokens text(Shape, 100, 83);
  KVCache cache(Shape, SnapKV{.budget = 30, .window = 8});
  SECTION("a prompt that is open") {
    feed(cache, text, 0, 20, false);
    CHECK(error_text([&] { saved(cache); }) ==
          "save: a prompt is open in layer 0, and what policies remember of it is no part of a session; call save() "
          "after its last part, or after compress(), which ends it");
    cache.compress();
    CHECK(!saved(cache).empty());
  }
  SECTION("drafted tokens") {
    feed(cache, text, 0, 20);
    Outputs out(Shape, 1);
    for (std::size_t layer = 0; layer < Shape.layers; ++layer)
      cache.draft(layer, text.tokens(layer, 20, 1), out.rows(0, 1));
    CHECK(error_text([&] { saved(cache); }) ==
          "save: drafted tokens are waiting; call accept() first, or accept(0), which drops them");
    cache.accept(1);
    CHECK(!saved(cache).empty());
  }
}

namespace {

struct Secretive {
  struct State {
    int passes = 0;
  };
  void observe(Head<Secretive>& head, const Observation&) const { ++head.state->passes; }
};

/// Loads nothing that has seen more than ten passes.
struct Choosy {
  struct State {
    int passes = 0;
    auto fields() { return std::tie(passes); }
  };
  void observe(Head<Choosy>& head, const Observation&) const { ++head.state->passes; }
  bool accepts(const Head<Choosy>& head) const { return head.state->passes <= 10; }
};

struct LowRank {
  Streams quantize(HeadId, const CacheShape& shape) const {
    return {.key = {.format = std::make_shared<LowRankCodec>(Role::key, shape.head_dim, 4), .batch = 16}, .value = {}};
  }
};

}  // namespace

TEST_CASE("What cannot be written down is not saved", "[session]") {
  const LayeredTokens text(Shape, 100, 84);
  KVCache secretive(Shape, Secretive{});
  CHECK(error_text([&] { saved(secretive); }).find("Secretive does not declare its fields, so it cannot be saved") !=
        std::string::npos);
  KVCache low_rank(Shape, LowRank{});
  CHECK(!saved(low_rank).empty());
  feed(low_rank, text, 0, 40);
  CHECK(error_text([&] { saved(low_rank); }) ==
        "save: layer 0, head 0 is sealed by low-rank-4, a codec that was fitted to it (Codec::fit) and cannot be "
        "written down");
  KVCache cache(Shape, Full{});
  CHECK(error_text([&] {
          save(cache, [](std::span<const std::byte> bytes) { return bytes.size() < 20; });
        }).find("save: the sink did not take ") == 0);
}

TEST_CASE("Bytes that are no session of this version are refused", "[session]") {
  const Small small;
  CHECK(refusal(small.policy, {}) == "load: what the source gave is no session of kvc: its first 8 bytes are others");
  Bytes other = small.session;
  std::memcpy(other.data(), "GGUF", 4);
  CHECK(refusal(small.policy, other) ==
        "load: what the source gave is no session of kvc: its first 8 bytes are others");
  other = small.session;
  other[8] = std::byte{7};
  CHECK(refusal(small.policy, other, Shape, {}, ErrorCode::incompatible) ==
        "load: the session is of version 7 of the format, this library reads version 2");
  Sections encoded(small.session);
  encoded.sections[2].encoding = 3;
  CHECK(refusal(small.policy, encoded.session(), Shape, {}, ErrorCode::incompatible) ==
        "load: the rows of layer 0 has encoding 3, this library reads encoding 0: bytes as they are");
}

TEST_CASE("A session of another model is refused, naming what differs", "[session]") {
  const Small small;
  const auto sentence = [&](auto change) {
    CacheShape shape = Shape;
    CacheOptions options;
    change(shape, options);
    return refusal(small.policy, small.session, shape, options, ErrorCode::incompatible);
  };
  using S = CacheShape;
  using O = CacheOptions;
  CHECK(sentence([](S& shape, O&) { shape.layers = 3; }) ==
        "load: CacheShape::layers: the session has 2, this cache has 3");
  CHECK(sentence([](S& shape, O&) { shape.query_heads = 8; }) ==
        "load: CacheShape::query_heads: the session has 4, this cache has 8");
  CHECK(sentence([](S& shape, O&) { shape.kv_heads = 4; }) ==
        "load: CacheShape::kv_heads: the session has 2, this cache has 4");
  CHECK(sentence([](S& shape, O&) { shape.head_dim = 24, shape.value_dim = 16; }) ==
        "load: CacheShape::head_dim: the session has 16, this cache has 24");
  CHECK(sentence([](S& shape, O&) { shape.value_dim = 32; }) ==
        "load: CacheShape::value_dim: the session has 16, this cache has 32");
  CHECK(sentence([](S& shape, O&) { shape.scale = 1; }) ==
        "load: CacheShape::scale: the session has 0.250000, this cache has 1.000000");
  CHECK(sentence([](S& shape, O&) { shape.softcap = 30; }) ==
        "load: CacheShape::softcap: the session has 0.000000, this cache has 30.000000");
  CHECK(sentence([](S& shape, O&) { shape.rotary.interleaved = true; }) ==
        "load: CacheShape::rotary.interleaved: the session has false, this cache has true");
  CHECK(sentence([](S& shape, O&) { shape.rotary = {}; }) ==
        "load: the number of CacheShape::rotary.inv_freq: the session has 8, this cache has 0");
  CHECK(sentence([](S& shape, O&) { shape.rotary.inv_freq[0] = 0.5f; }) ==
        "load: CacheShape::rotary.inv_freq[0]: the session has 1.000000, this cache has 0.500000");
  CHECK(sentence([](S&, O& options) { options.dense.type = Scalar::bf16; }) ==
        "load: CacheOptions::dense: the session has f16, this cache has bf16");
  CHECK(sentence([](S&, O& options) { options.dense.widens = false; }) ==
        "load: CacheOptions::dense.widens: the session has true, this cache has false");
}

TEST_CASE("A session of another policy is refused, naming what differs", "[session]") {
  const Small small;
  const auto of_text = [&](const char* text) {
    return refusal(AnyPolicy::parse(text), small.session, Shape, {}, ErrorCode::incompatible);
  };
  CHECK(of_text("full") ==
        "load: the session was saved under the policy \"h2o:budget=24 | kivi:group=8,residual=8\", "
        "this cache has \"full\"");
  CHECK(begins_with(of_text("h2o:budget=25 | kivi:group=8,residual=8"),
                    "load: the session was saved under the policy \"h2o:budget=24 | kivi:group=8,residual=8\""));
  // Policies that were named in C++ have no text.
  const auto sentence = [&](const auto& policy) {
    return refusal(policy, small.session, Shape, {}, ErrorCode::incompatible);
  };
  const KIVI kivi{.group = 8, .residual = 8};
  CHECK(sentence(kivi) == "load: the policy: the session has 2 stages, this cache has 1");
  CHECK(sentence(Knorm{.budget = 24} | kivi) == "load: the policy: the session has H2O where this cache has Knorm");
  CHECK(sentence(H2O{.budget = 24} | KIVI{.bits = 4, .group = 8, .residual = 8}) ==
        "load: the policy: stage 1, KIVI, has other parameters in the session than in this cache");
  CHECK(sentence(H2O{.budget = 24} | PerLayer{kivi, 1}) ==
        "load: the policy: stage 1, KIVI, has other parameters in the session than in this cache");
  CHECK(sentence(AdaKV{.base = H2O{}, .budget = 24} | kivi) ==
        "load: the policy: the session has H2O where this cache has AdaKV");
  KVCache same(Shape, H2O{.budget = 24} | kivi);
  CHECK(load_from(same, small.session) == small.session.size());
}

TEST_CASE("A policy refuses memory that it could not have", "[session]") {
  const LayeredTokens text(Shape, 100, 85);
  KVCache cache(Shape, Choosy{}), loaded(Shape, Choosy{});
  for (std::size_t i = 0; i < 10; ++i) feed(cache, text, i, 1);
  load_from(loaded, saved(cache));
  feed(cache, text, 10, 1);
  CHECK(error_text([&] { load_from(loaded, saved(cache)); }).find("load: layer 0, head 0 is damaged: ") == 0);
  CHECK(loaded.state<Choosy>({0, 0}).passes == 10);
}

TEST_CASE("A session that ends too early is refused wherever it ends", "[session]") {
  const Small small;
  KVCache cache(Shape, small.policy);
  feed(cache, small.text, 50, 30);
  const Picture before = picture_of(cache);
  for (std::size_t length = 0; length < small.session.size(); ++length) {
    INFO(length << " of " << small.session.size() << " bytes");
    BytesSource source(std::span(small.session).first(length));
    const std::string sentence = error_text([&] { load(cache, source); });
    REQUIRE(begins_with(sentence,
                        length < 8 ? "load: what the source gave is no session" : "load: the source ended after "));
  }
  CHECK(difference({picture_of(cache)}, {before}) == "");
}

TEST_CASE("A session with any bit flipped is refused", "[session]") {
  Small small;
  KVCache cache(Shape, small.policy);
  feed(cache, small.text, 50, 30);
  const Picture before = picture_of(cache);
  for (std::size_t at = 0; at < small.session.size(); ++at) {
    if (at >= 12 && at < 16) continue;  // reserved
    INFO("byte " << at);
    const std::byte whole = small.session[at];
    small.session[at] ^= std::byte{1} << (at % 8);
    try {
      load_from(cache, small.session);
      FAIL("nothing was refused");
    } catch (const Error& error) {
      REQUIRE((error.code() == ErrorCode::bad_file || error.code() == ErrorCode::incompatible));
    }
    small.session[at] = whole;
  }
  CHECK(difference({picture_of(cache)}, {before}) == "");
}

TEST_CASE("What a session says of sizes is checked before memory is taken", "[session]") {
  const Small small;
  KVCache cache(Shape, small.policy);
  for (std::size_t section = 0; section < 3; ++section) {
    // The first eight bytes of a section's content are a number; in front of it stands the section's size.
    for (const bool of_section : {false, true}) {
      Sections sections(small.session);
      Bytes session;
      if (of_section) {
        session = small.session;
        std::size_t at = 16 + 8;
        for (std::size_t before = 0; before < section; ++before) at += sections.sections[before].content.size() + 24;
        const std::uint64_t huge = std::uint64_t{1} << 60;
        std::memcpy(session.data() + at, &huge, 8);
      } else {
        const std::uint64_t huge = std::uint64_t{1} << 60;
        std::memcpy(sections.sections[section].content.data(), &huge, 8);
        session = sections.session();
      }
      INFO("section " << section << (of_section ? ", its size" : ", its first number"));
      try {
        load_from(cache, session);
        FAIL("nothing was refused");
      } catch (const Error& error) {
        CHECK(error.code() != ErrorCode::out_of_memory);  // nor was so much memory asked for
      }
    }
  }
}

namespace {

/// Loads with memory refused in one place after the other. Returns how many places there were.
std::size_t refuse_everywhere(CacheCore& cache, const Bytes& session, bool for_good) {
  const Picture before = picture_of(cache);
  for (std::size_t places = 0;; ++places) {
    BytesSource source(session);
    bool failed = false;
    {
      const AllocationFault fault(places, for_good);
      try {
        load(cache, source);
      } catch (const Error& error) {
        REQUIRE(error.code() == ErrorCode::out_of_memory);
        failed = true;
      } catch (const std::bad_alloc&) {
        failed = true;  // there may be no memory for the Error either
      }
    }
    if (!failed) return places;
    REQUIRE(difference({picture_of(cache)}, {before}) == "");
  }
}

}  // namespace

TEST_CASE("A load that is refused memory leaves the cache as it was, in every place where it asks", "[session]") {
  for (const char* text : {"h2o:budget=24 | kivi:group=8,residual=8", "mini_cache:start=0",
                           "quest:page=8,dense_layers=0", "razor_attention:heads=none,budget=20"})
    for (const bool for_good : {false, true}) {
      INFO(text << (for_good ? ", refused until the call is over" : ", refused once"));
      const auto policy = AnyPolicy::parse(text);
      const LayeredTokens tokens(Shape, 100, 86);
      KVCache whole(Shape, policy), cache(Shape, policy);
      feed(whole, tokens, 0, 40);
      feed(cache, tokens, 40, 30);
      CHECK(refuse_everywhere(cache, saved(whole), for_good) > 20);
      CHECK(difference({picture_of(cache)}, {picture_of(whole)}) == "");
    }
}

TEST_CASE("Layers that are asked for must be those of the session, and of the cache", "[session]") {
  const Small small;
  KVCache cache(Shape, small.policy);
  const Bytes upper = saved(small.cache, {.layers = {1, 1}});
  CHECK(error_text([&] { load_from(cache, upper); }) ==
        "load: the session has 1 layers from layer 1 on, but SessionOptions::layers asks for 2 from layer 0 on");
  CHECK(error_text([&] {
          saved(cache, {.layers = {1, 2}});
        }) == "save: SessionOptions::layers: 2 layers from layer 1 on; the cache has layers 0 to 1");
  KVCache merging(Shape, AnyPolicy::parse("mini_cache:start=0"));
  CHECK(error_text([&] {
          saved(merging, {.layers = {1, 1}});
        }) == "save: SessionOptions::layers: layers 0 and 1 share rows, so they are saved and loaded together");
}
