#include "catch_shim.hpp"

#include <string>
#include <vector>

#include "kvc/storage/head_store.hpp"
#include "support/random_tokens.hpp"

using namespace kvc;

namespace {

constexpr CacheShape Shape{.query_heads = 1, .kv_heads = 1, .head_dim = 16};

/// A head that appends tokens and seals after each call, as a cache does.
struct Subject {
  HeadStore head;
  support::Dice dice{5};
  Workspace workspace;
  Position next = 0;
  std::vector<float> keys, values;

  explicit Subject(const Streams& streams, Dense dense = {Scalar::f32})
      : head(Shape, streams, dense, {}, std::pmr::new_delete_resource()) {}

  void append(std::size_t count) {
    std::vector<Position> positions;
    const std::size_t begin = keys.size();
    for (std::size_t i = 0; i < count; ++i) {
      for (const float x : dice.row(Shape.head_dim)) keys.push_back(x);
      for (const float x : dice.row(Shape.head_dim)) values.push_back(x);
      positions.push_back(next++);
    }
    head.append({keys.data() + begin, count, Shape.head_dim}, {values.data() + begin, count, Shape.head_dim},
                positions);
  }
  void prompt(std::size_t count) {
    append(count);
    head.seal(true, workspace);
  }
  void decode(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      append(1);
      head.seal(false, workspace);
    }
  }
  /// Name of the codec that a slot's key lies in.
  std::string codec_of(const RowStore& store, std::size_t slot) const {
    const auto row = static_cast<std::size_t>(store.map()[slot]);
    for (const Segment& segment : store.segments())
      if (row >= segment.first && row < segment.first + segment.rows()) return segment.block->codec().name();
    return "none";
  }
  std::vector<float> read(const RowStore& store) const {
    std::vector<float> rows(head.size() * Shape.head_dim);
    store.gather(0, {rows.data(), head.size(), Shape.head_dim});
    return rows;
  }
};

GroupQuant per_token(unsigned bits) {
  return {.bits = bits, .axis = Axis::token, .group = 16};
}

}  // namespace

TEST_CASE("A stream that seals at a prompt's end only leaves generated tokens dense until the next prompt ends") {
  Subject subject({.key = {.format = per_token(4), .sinks = 2, .recent = 5, .prompt_only = true}, .value = {}});
  subject.prompt(100);
  CHECK(subject.head.keys().sealed_rows() == 93);
  subject.decode(400);
  CHECK(subject.head.keys().sealed_rows() == 93);
  CHECK(subject.codec_of(subject.head.keys(), 300) == "f32");
  subject.prompt(50);
  CHECK(subject.head.keys().sealed_rows() == 543);
}

TEST_CASE("Generated rows that are never sealed lie in blocks that grow, those that will be in small ones") {
  for (const bool prompt_only : {false, true}) {
    Subject subject({.key = {.format = per_token(4), .recent = 2000, .prompt_only = prompt_only}, .value = {}});
    subject.decode(1500);
    const std::size_t last = subject.head.keys().segments().back().block->capacity();
    CHECK((last > RowTable::TransientRows) == prompt_only);
  }
}

TEST_CASE("Slots are sealed in the format of their class, and classes without one stay dense") {
  for (const std::size_t batch : {1u, 8u}) {
    Stream stream{.format = per_token(8), .recent = 4, .batch = batch};
    stream.classes = {per_token(2), std::nullopt, Dense{}};
    Subject subject({.key = stream, .value = stream});
    subject.append(200);
    for (std::size_t slot = 0; slot < 200; ++slot)
      subject.head.set_precision(slot, static_cast<std::uint8_t>(slot % 4));
    subject.head.seal(true, subject.workspace);
    const auto name = [&](std::size_t slot) { return subject.codec_of(subject.head.keys(), slot); };
    for (std::size_t slot = 0; slot < 160; ++slot) {
      INFO("batch " << batch << ", slot " << slot);
      CHECK(name(slot) == (slot % 4 == 0 ? "q8-token-g16" : slot % 4 == 1 ? "q2-token-g16" : "f32"));
    }
    CHECK(name(199) == "f32");
    CHECK(subject.head.in_step());
    // Every row still reads as its format allows, in slot order.
    const auto read = subject.read(subject.head.values());
    for (std::size_t slot = 0; slot < 200; ++slot)
      for (std::size_t c = 0; c < Shape.head_dim; ++c) {
        const float error = std::fabs(read[slot * 16 + c] - subject.values[slot * 16 + c]);
        CHECK(error <= (slot % 4 == 1 ? 2.0f : slot % 4 == 0 ? 0.02f : 0.0f));
      }
  }
}

TEST_CASE("While tokens are generated new slots are of class 0, and each class fills its own blocks") {
  Stream stream{.format = per_token(8), .recent = 10, .batch = 1};
  stream.classes = {per_token(2)};
  Subject subject({.key = stream, .value = stream});
  for (std::size_t i = 0; i < 300; ++i) {
    subject.append(1);
    if (i % 3 == 0) subject.head.set_precision(subject.head.size() - 1, 1);
    subject.head.seal(false, subject.workspace);
  }
  CHECK(subject.head.keys().sealed_rows() == 290);
  // Two classes of blocks with 64 rows: 97 and 193 rows in 2 and 4 of them.
  std::size_t sealed = 0;
  for (const Segment& segment : subject.head.keys().segments()) sealed += segment.sealed;
  CHECK(sealed == 6);
  for (std::size_t slot = 0; slot < 290; ++slot)
    CHECK(subject.codec_of(subject.head.keys(), slot) == (slot % 3 == 0 ? "q2-token-g16" : "q8-token-g16"));
}

TEST_CASE("The class of a slot moves with it, is forked with it, and is counted in the bytes") {
  Stream stream{.format = per_token(8), .recent = 500};
  stream.classes = {per_token(2)};
  Subject subject({.key = stream, .value = stream});
  subject.append(100);
  const std::size_t before = subject.head.stats(Shape).metadata;
  CHECK(subject.head.slots().precision().empty());
  subject.head.set_precision(5, 0);
  CHECK(subject.head.slots().precision().empty());
  for (const std::size_t slot : {10u, 50u, 99u}) subject.head.set_precision(slot, 1);
  CHECK(subject.head.stats(Shape).metadata >= before + 100);
  std::vector<std::uint8_t> flags(100, 1);
  flags[3] = flags[50] = 0;
  subject.head.keep(flags, false, subject.workspace);
  const HeadStore fork = subject.head;
  REQUIRE(fork.slots().precision().size() == 98);
  for (std::size_t slot = 0; slot < 98; ++slot) CHECK(fork.slots().precision()[slot] == (slot == 9 || slot == 97));
  subject.head.truncate(97, 1);
  CHECK(subject.head.slots().precision().size() == 97);
  CHECK(fork.slots().precision()[97] == 1);
}

TEST_CASE("A slot that is sealed keeps its codes whatever its class becomes") {
  Stream stream{.format = per_token(8), .recent = 4};
  stream.classes = {per_token(2)};
  Subject subject({.key = stream, .value = {}});
  subject.prompt(50);
  const auto before = subject.read(subject.head.keys());
  subject.head.set_precision(7, 1);
  subject.decode(5);
  const auto after = subject.read(subject.head.keys());
  CHECK(std::equal(before.begin(), before.begin() + 46 * 16, after.begin()));
  CHECK(subject.codec_of(subject.head.keys(), 7) == "q8-token-g16");
}

TEST_CASE("A class that a stream does not have is refused in words") {
  Stream stream{.format = per_token(8)};
  stream.classes = {per_token(2)};
  Subject subject({.key = stream, .value = {}});
  subject.append(3);
  CHECK_THROWS_WITH(subject.head.set_precision(1, 2),
                    "set_precision: class 2, but a stream has 1 classes besides class 0");
  stream.classes = {GroupQuant{.axis = Axis::channel, .group = 32}};
  CHECK_THROWS_WITH(Subject({.key = stream, .value = {}}),
                    "Stream (key): batch (1) must be a positive multiple of the tokens that share a scale (32)");
}

TEST_CASE("A head that has sealed nothing changes its streams, one that has does not") {
  Subject subject({});
  subject.append(100);
  std::vector<std::uint8_t> flags(100, 1);
  for (std::size_t slot = 20; slot < 50; slot += 7) flags[slot] = 0;  // their rows would be reused
  subject.head.keep(flags, false, subject.workspace);
  const std::size_t slots = subject.head.size();
  subject.head.set_streams({.key = {.format = per_token(4), .recent = 10}, .value = {.format = per_token(2)}});
  subject.decode(1);
  CHECK(subject.head.keys().sealed_rows() == slots - 9);
  CHECK(subject.head.values().sealed_rows() == slots + 1);
  CHECK_THROWS_WITH(subject.head.set_streams({}),
                    "set_streams: " + std::to_string(slots - 9) +
                        " key rows are sealed already; only a head without any can change "
                        "its format");
  Subject dense({});
  dense.append(3);
  CHECK_THROWS_WITH(dense.head.set_streams({.key = {}, .value = {.format = Dense{Scalar::f16}}}),
                    "set_streams: value rows are stored in f32 and cannot become f16");
}

TEST_CASE("A key or a value alone can be rewritten") {
  for (const bool sealed : {false, true}) {
    const Stream stream = sealed ? Stream{.format = per_token(8), .recent = 4} : Stream{};
    Subject subject({.key = stream, .value = stream});
    subject.prompt(60);
    const auto keys = subject.read(subject.head.keys()), values = subject.read(subject.head.values());
    const std::vector<float> row(16, 3.0f);
    subject.head.rewrite(10, row, {});
    CHECK(subject.read(subject.head.values()) == values);
    subject.head.rewrite(11, {}, row);
    auto changed_keys = keys, changed_values = values;
    std::fill_n(changed_keys.begin() + 160, 16, 3.0f);
    std::fill_n(changed_values.begin() + 176, 16, 3.0f);
    CHECK(subject.read(subject.head.keys()) == changed_keys);
    CHECK(subject.read(subject.head.values()) == changed_values);
    CHECK(subject.head.in_step() == !sealed);
  }
}

TEST_CASE("Codes of generated tokens lie in blocks that grow, so that headers and unused rows stay a small share") {
  Subject subject({.key = {.format = GroupQuant{.bits = 2, .group = 32}, .batch = 32},
                   .value = {.format = per_token(2), .recent = 32}},
                  {Scalar::f16});
  for (const std::size_t tokens : {500u, 1500u, 4000u}) {
    subject.decode(tokens);
    for (const RowStore* store : {&subject.head.keys(), &subject.head.values()}) {
      std::size_t sealed = 0;
      for (const Segment& segment : store->segments()) {
        if (!segment.sealed) continue;
        ++sealed;
        CHECK(segment.first % segment.block->capacity() == 0);  // so that chunks of attention read whole blocks
      }
      const bool keys = store == &subject.head.keys();
      const std::size_t rows = store->sealed_rows();
      CHECK(sealed <= (rows < 1024 ? rows / (keys ? 32 : 64) + 1 : rows < 3000 ? 50 : 80));
    }
  }
  const Stats stats = subject.head.stats(Shape);
  INFO("payload " << stats.payload << ", metadata " << stats.metadata << ", slack " << stats.slack);
  CHECK(stats.slack * 25 < stats.payload);
  CHECK((stats.metadata + stats.slack) * 4 < stats.payload);  // rows of 16 channels: headers weigh most here
}
