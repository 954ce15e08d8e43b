#include <kvc/policies/full.hpp>
#include <kvc/policies/kivi.hpp>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using kvc::Axis;
using kvc::Full;
using kvc::GroupQuant;
using kvc::KIVI;
using kvc::Scalar;

namespace {
const kvc::CacheShape Shape{.head_dim = 64};
}

TEST_CASE("KIVI seals keys per channel, a residual at a time, and values per token, sparing the newest residual") {
  const kvc::Streams streams = KIVI{.bits = 2, .residual = 128}.quantize({}, {});
  CHECK(*streams.key.format->get_if<GroupQuant>() == GroupQuant{.bits = 2, .axis = Axis::channel, .group = 32});
  CHECK(streams.key.recent == 0);
  CHECK(streams.key.batch == 128);
  CHECK(*streams.value.format->get_if<GroupQuant>() == GroupQuant{.bits = 2, .axis = Axis::token, .group = 32});
  CHECK(streams.value.recent == 128);
  CHECK(streams.value.batch == 1);
  CHECK((streams.key.sinks == 0 && streams.value.sinks == 0));
}

TEST_CASE("KIVI's keys and values may have bits of their own") {
  const kvc::Streams streams = KIVI{.key_bits = 4, .value_bits = 8, .metadata = Scalar::f32}.quantize({}, {});
  CHECK(streams.key.format->get_if<GroupQuant>()->bits == 4);
  CHECK(streams.value.format->get_if<GroupQuant>()->bits == 8);
  CHECK(streams.value.format->get_if<GroupQuant>()->metadata == Scalar::f32);
}

TEST_CASE("KIVI refuses what cannot be encoded") {
  CHECK(support::error_text([] { KIVI{.bits = 5}.validate(Shape); }) == "GroupQuant: bits must be 2, 3, 4 or 8, got 5");
  CHECK(support::error_text([] { KIVI{.group = 32, .residual = 100}.validate(Shape); }) ==
        "KIVI: residual (100) must be a positive multiple of group (32)");
  CHECK(support::error_text([] { KIVI{.residual = 0}.validate(Shape); }) != "none");
  CHECK(support::error_text([] { KIVI{.group = 0}.validate(Shape); }) != "none");
  CHECK(support::error_text([] { KIVI{.group = 24, .residual = 24}.validate(Shape); }) ==
        "GroupQuant: group (24) must divide the head dimension (64)");
  CHECK(support::error_text([] { KIVI{}.validate({.head_dim = 64, .value_dim = 40}); }) != "none");
  CHECK(support::error_text([] { KIVI{}.validate(Shape); }) == "none");
}

TEST_CASE("Full keeps rows dense in the cache's own type unless told otherwise") {
  CHECK(!Full{}.quantize({}, {}).key.format);
  const kvc::Streams dense = Full{.type = Scalar::f32}.quantize({}, {});
  CHECK(dense.key.format->get_if<kvc::Dense>()->type == Scalar::f32);
  CHECK(dense.value.format->get_if<kvc::Dense>()->type == Scalar::f32);
}

TEST_CASE("Full with bits quantizes every token at once") {
  const kvc::Streams streams = Full{.bits = 8, .group = 16}.quantize({}, {});
  for (const kvc::Stream& stream : {streams.key, streams.value}) {
    CHECK(*stream.format->get_if<GroupQuant>() == GroupQuant{.bits = 8, .axis = Axis::token, .group = 16});
    CHECK(stream.recent == 0);
    CHECK(stream.batch == 1);
  }
}

TEST_CASE("Full refuses bits that cannot be encoded, and both bits and a type") {
  CHECK(support::error_text([] { Full{.bits = 5}.validate(Shape); }) == "GroupQuant: bits must be 2, 3, 4 or 8, got 5");
  CHECK(support::error_text([] { Full{.bits = 4, .group = 48}.validate(Shape); }) != "none");
  CHECK(support::error_text([] { Full{.type = Scalar::f32, .bits = 8}.validate(Shape); }) != "none");
  CHECK(support::error_text([] { Full{.type = Scalar::f32}.validate(Shape); }) == "none");
}

TEST_CASE("Full with a fit passes it to its groups") {
  const kvc::Streams streams = Full{.bits = 4, .fit = kvc::Fit::half_quadratic}.quantize({}, {});
  CHECK(*streams.value.format->get_if<GroupQuant>() ==
        GroupQuant{.bits = 4, .axis = Axis::token, .group = 32, .fit = kvc::Fit::half_quadratic});
}

TEST_CASE("Full with a ggml type seals every token in its blocks, values in another type if told so") {
  const kvc::Streams same = Full{.ggml = kvc::GgmlType::q8_0}.quantize({}, {});
  CHECK(*same.key.format->get_if<kvc::GgmlBlocks>() == kvc::GgmlBlocks{kvc::GgmlType::q8_0});
  CHECK(*same.value.format->get_if<kvc::GgmlBlocks>() == kvc::GgmlBlocks{kvc::GgmlType::q8_0});
  const kvc::Streams two = Full{.ggml = kvc::GgmlType::q8_0, .value_ggml = kvc::GgmlType::q4_0}.quantize({}, {});
  CHECK(*two.key.format->get_if<kvc::GgmlBlocks>() == kvc::GgmlBlocks{kvc::GgmlType::q8_0});
  CHECK(*two.value.format->get_if<kvc::GgmlBlocks>() == kvc::GgmlBlocks{kvc::GgmlType::q4_0});
}

TEST_CASE("Full refuses a ggml type whose blocks do not divide the rows, or beside another format") {
  CHECK(support::error_text([] { Full{.ggml = kvc::GgmlType::q8_0}.validate({.head_dim = 80}); }) ==
        "GgmlBlocks: blocks of q8_0 (32 channels) must divide the head dimension (80)");
  CHECK(support::error_text([] { Full{.ggml = kvc::GgmlType::nvfp4}.validate({.head_dim = 96}); }) ==
        "GgmlBlocks: blocks of nvfp4 (64 channels) must divide the head dimension (96)");
  CHECK(support::error_text([] { Full{.ggml = kvc::GgmlType::q8_0}.validate({.head_dim = 64, .value_dim = 40}); }) !=
        "none");
  CHECK(support::error_text([] { Full{.bits = 8, .ggml = kvc::GgmlType::q8_0}.validate(Shape); }) ==
        "Full: type is of dense rows, bits of quantized ones, ggml of llama.cpp's; give one of them");
  CHECK(support::error_text([] { Full{.value_ggml = kvc::GgmlType::q8_0}.validate(Shape); }) ==
        "Full: value_ggml is of values beside keys of a ggml type; give ggml too");
  CHECK(support::error_text([] { Full{.ggml = kvc::GgmlType::q8_0}.validate(Shape); }) == "none");
}

TEST_CASE("quantizers keep every slot") {
  STATIC_REQUIRE(kvc::equal_slots<Full> == kvc::EqualSlots::cache);
  STATIC_REQUIRE(kvc::equal_slots<KIVI> == kvc::EqualSlots::cache);
}
