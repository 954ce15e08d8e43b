#include "catch_shim.hpp"

#include "kvc/kernels/layout.hpp"
#include "kvc/simd/isa.hpp"
#include "kvc/storage/row_store.hpp"
#include "support/fake_head.hpp"
#include "support/naive_pair.hpp"

// Every evicting policy of the list × {nothing, KIVI at 8, 4, 2 bits} × {nothing, MiniCache}: refused with a sentence, or
// within the budget, in the bytes that the formats say, and with the naive cache's outputs.

using namespace kvc;
using namespace support;

namespace {

constexpr std::size_t Prompt = 100, Steps = Sanitized ? 70 : 150;  // mini_cache merges every 64
constexpr std::size_t Group = 16;
const CacheShape Shape = small_shape();

struct Quantizer {
  const char* text;
  unsigned bits;
};
constexpr Quantizer Quantizers[] = {
    {"", 0},
    {" | kivi:bits=8,group=16,residual=16,metadata=f32", 8},
    {" | kivi:bits=4,group=16,residual=16,metadata=f32", 4},
    {" | kivi:bits=2,group=16,residual=16,metadata=f32", 2},
};
constexpr const char* Mergers[] = {"", " | mini_cache:start=0"};

/// The evictors of the list that the naive cache models, without pipelines and with everything that does not evict first:
/// nothing at all.
std::vector<PolicyCase> evictors() {
  std::vector<PolicyCase> all{{.text = "full"}};
  for (const PolicyCase& entry : all_policies())
    if (entry.acts != Acts::never && !entry.exemption(Invariant::walk) && entry.text.find('|') == std::string::npos)
      all.push_back(entry);
  return all;
}

/// Bytes of `rows` rows of 16 channels: f32, or codes with a scale and a minimum in f32 for each group of 16.
std::size_t dense_bytes(std::size_t rows) {
  return rows * 16 * 4;
}
std::size_t sealed_bytes(std::size_t rows, unsigned bits) {
  return rows * 16 * bits / 8 + rows * 16 / Group * 2 * 4;
}

/// What one side of a head takes: every row of its sealed blocks, dead or alive, half of it where two layers share the block,
/// and its dense slots. `slack`: blocks' unfinished tiles of 16 rows and dwords of 32 / bits rows, and dense rows of slots
/// that went.
struct Predicted {
  std::size_t payload = 0, slack = 0;
};
Predicted predict(const naive::Head& head, naive::Stored naive::Slot::*side, const naive::Blocks& blocks, unsigned bits,
                  bool evicts) {
  Predicted predicted;
  for (const naive::Blocks::Block& block : blocks.all()) {
    const bool dense = bits == 0 || (block.shared && block.rows < Group);
    const std::size_t bytes = dense ? dense_bytes(block.rows) : sealed_bytes(block.rows, bits);
    predicted.payload += bytes / (block.shared ? 2 : 1);
    predicted.slack += dense ? dense_bytes(15) : sealed_bytes(15, bits);
  }
  std::size_t dense = 0;
  for (const naive::Slot& slot : head) dense += !(slot.*side).sealed();
  predicted.payload += dense_bytes(dense);
  // Dense rows lie in blocks of a tile at least; one is let go when three quarters of it are dead, the last one never.
  predicted.slack += dense_bytes(evicts ? 3 * dense + 32 : 32);
  return predicted;
}

void check_bytes(const NaivePair& pair, unsigned bits, bool evicts) {
  for (const HeadId id : Sequence::heads(Shape)) {
    const naive::Head& head = pair.model().head(id.layer, id.head);
    const auto& [key_blocks, value_blocks] = pair.model().blocks(id.layer, id.head);
    const Predicted keys = predict(head, &naive::Slot::key, key_blocks, bits, evicts),
                    values = predict(head, &naive::Slot::value, value_blocks, bits, evicts);
    const Stats stats = pair.cache().stats(id);
    CHECK(stats.payload >= keys.payload + values.payload);
    CHECK(stats.payload <= keys.payload + values.payload + keys.slack + values.slack);
    CHECK(stats.slack <= 2 * dense_bytes(RowStore::OpenRows + 16));
    // A position and two row numbers, a place in two lists of free rows, each in a vector that may be twice too long;
    // H2O's mass or the engine's score, a multiplicity, a norm; what a segment is described by.
    const std::size_t segments =
        pair.cache().key_rows(id).segments().size() + pair.cache().value_rows(id).segments().size();
    CHECK(stats.metadata <=
          (stats.seen + 16) * (2 * 5 * 4 + 3 * 4) + segments * (sizeof(Segment) + sizeof(Block) + 16));
  }
}

void check_budget(const NaivePair& pair, const PolicyCase& entry) {
  const bool whole = pair.cache().stages()[0]->verbs().allocate_all;  // all heads share what they may hold
  const std::size_t sharing = whole ? Shape.heads() : Shape.kv_heads;
  for (std::size_t first = 0; first < Shape.heads(); first += sharing) {
    std::size_t slots = 0, allowed = 0;
    for (std::size_t head = first; head < first + sharing; ++head) {
      const HeadId id = Sequence::heads(Shape)[head];
      slots += pair.cache().positions(id).size();
      allowed += entry.slots ? entry.slots : pair.cache().stages()[0]->budget(id, pair.seen(), Shape);
    }
    CHECK(slots <= allowed + sharing);  // AdaKV rounds each head's share
  }
}

}  // namespace

TEST_CASE("Every evictor, quantizer and merger work together or say in a sentence why they cannot") {
  const LayeredTokens text(Shape, Prompt + Steps, 41);
  std::vector<Isa> isas{best_isa()};
  if (!Sanitized && best_isa() != Isa::portable) isas.push_back(Isa::portable);
  std::size_t ran = 0, refused = 0;
  for (const PolicyCase& evictor : evictors())
    for (const char* merger : Mergers)
      for (const Quantizer& quantizer : Quantizers) {
        const bool merges = *merger != '\0';
        PolicyCase pipeline = evictor;
        pipeline.text += std::string(merger) + quantizer.text;
        if (evictor.text == "full" && quantizer.bits != 0)
          pipeline.text = (std::string(merger) + quantizer.text).substr(3);
        INFO(pipeline.text);
        if (merges && AnyPolicy::parse(evictor.text).stages()[0]->keeps_equal_slots() != EqualSlots::cache) {
          CHECK(error_text([&] { KVCache cache(Shape, pipeline.policy()); }) ==
                "cross-layer merging needs stages that keep the same positions in every layer and head");
          ++refused;
          continue;
        }
        for (const Isa isa : isas) {
          const ScopedIsa scope(isa);
          NaivePair pair(Shape, pipeline);
          pair.feed(text.slice(0, Prompt), Event::prompt_end);
          if (evictor.acts != Acts::never) check_budget(pair, evictor);
          check_bytes(pair, quantizer.bits, evictor.acts == Acts::every_pass);
          for (std::size_t t = Prompt; t < Prompt + Steps; ++t) pair.feed(text.slice(t, 1), Event::decode);
          if (evictor.acts == Acts::every_pass) check_budget(pair, evictor);
          check_bytes(pair, quantizer.bits, evictor.acts != Acts::never);
          CHECK_NOTHROW(pair.check_rows());
        }
        ++ran;
      }
  INFO(ran << " ran, " << refused << " were refused");
  CHECK(ran + refused == evictors().size() * 8);
  CHECK(ran > refused);
}

TEST_CASE("Two quantizers, and two selectors, are refused by a text's cache with a sentence") {
  CHECK(error_text([] {
          KVCache cache(Shape, AnyPolicy::parse("kivi:group=16,residual=16 | full:bits=8,group=16"));
        }) == "two quantizers in one pipeline: rows can be sealed by one of them only");
  CHECK(error_text([] { KVCache cache(Shape, AnyPolicy::parse("quest | quest")); }) ==
        "two selectors in one pipeline: only one can say what a query reads");
}
