#include <kvc/codec/ggml.hpp>

#include <optional>
#include <string>

#include "golden/runner.hpp"

namespace golden {
namespace {

/// The parameters give a block's size, which types share; the type is in the name of the reference's function,
/// quantize_row_<type>_ref.
std::optional<kvc::GgmlType> type_of(const Case& golden) {
  const std::string reference = golden.entry().at("reference").get<std::string>();
  for (int i = 0; i <= static_cast<int>(kvc::GgmlType::nvfp4); ++i) {
    const auto type = static_cast<kvc::GgmlType>(i);
    if (reference.find("quantize_row_" + std::string(kvc::block_size(type).name) + "_ref") != std::string::npos)
      return type;
  }
  return std::nullopt;
}

bool accepts(const Case& golden) {
  return golden.policy() == "ggml" && golden.has("x") && golden.has("blocks") && type_of(golden).has_value();
}

/// Compares every byte, but for the codes of iq4_nl blocks whose scale is 0: ggml does not set them, they repeat the block
/// quantized before.
void compare_bytes(const Case& golden, Check& check, kvc::GgmlType type, const std::vector<std::int32_t>& bytes) {
  const std::vector<std::int32_t> expected = golden.integers("blocks");
  const std::size_t size = kvc::block_size(type).bytes;
  for (std::size_t at = 0; at < bytes.size(); at += size) {
    const bool unset = type == kvc::GgmlType::iq4_nl && expected.at(at) == 0 && expected.at(at + 1) == 0;
    check.integers("blocks", std::span(bytes).subspan(at, unset ? 2 : size), at);
    if (unset) check.not_compared("blocks", at + 2, size - 2, "codes of a zero scale, which ggml does not set");
  }
}

void run(const Case& golden, Check& check) {
  const kvc::GgmlBlocks format{*type_of(golden)};
  const std::size_t rows = golden.shape("x", 2)[0], dim = golden.shape("x", 2)[1];
  const kvc::GgmlCodec codec(format, dim);
  every_isa(check, [&] {
    check.figure("block_bytes", double(kvc::block_size(format.type).bytes), double(golden.count("block_bytes")), {});
    std::vector<std::byte> block(codec.block_bytes(rows));
    codec.encode({golden.floats("x").data(), rows, dim}, block.data(), rows, 0);
    std::vector<std::int32_t> bytes;
    for (const std::byte byte : block) bytes.push_back(std::to_integer<std::int32_t>(byte));
    compare_bytes(golden, check, format.type, bytes);
    std::vector<float> decoded(rows * dim);
    codec.decode(block.data(), rows, 0, {decoded.data(), rows, dim});
    check.values("dequant", decoded);
  });
}

}  // namespace

extern const Runner GgmlRunner;
const Runner GgmlRunner{accepts, run};

}  // namespace golden
