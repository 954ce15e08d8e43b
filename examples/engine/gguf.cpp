#include "gguf.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "kvc/error.hpp"
#include "mapped_file.hpp"

namespace engine {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian and are read in place");

[[noreturn]] void bad_file(const std::string& sentence) {
  kvc::fail(kvc::ErrorCode::bad_file, sentence);
}

/// Value types of the metadata, as numbered in the file.
enum class ValueType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

/// Reads forward through the header; every read is checked against what is left.
class Cursor {
 public:
  Cursor(const std::string& path, std::span<const std::byte> bytes) : path_(path), bytes_(bytes) {}

  std::size_t offset() const { return offset_; }
  std::size_t left() const { return bytes_.size() - offset_; }

  std::span<const std::byte> take(std::size_t count, const std::string& what) {
    if (count > left())
      bad_file(path_ + ": truncated at byte " + std::to_string(bytes_.size()) + ", " + what + " at byte " +
               std::to_string(offset_) + " needs " + std::to_string(count) + " bytes");
    offset_ += count;
    return bytes_.subspan(offset_ - count, count);
  }

  template <class T>
  T read(const std::string& what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::string read_string(const std::string& what) {
    const auto length = read<std::uint64_t>(what);
    const auto text = take(length, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  /// A count of things of at least `smallest` bytes each, so that a damaged count cannot ask for terabytes.
  std::size_t read_count(std::size_t smallest, const std::string& what) {
    const auto count = read<std::uint64_t>(what);
    if (count > left() / smallest)
      bad_file(path_ + ": " + what + " is " + std::to_string(count) + ", more than the remaining " +
               std::to_string(left()) + " bytes can hold");
    return count;
  }

 private:
  const std::string& path_;
  std::span<const std::byte> bytes_;
  std::size_t offset_ = 0;
};

std::size_t value_bytes(ValueType type) {
  switch (type) {
    case ValueType::u8:
    case ValueType::i8:
    case ValueType::boolean:
      return 1;
    case ValueType::u16:
    case ValueType::i16:
      return 2;
    case ValueType::u32:
    case ValueType::i32:
    case ValueType::f32:
      return 4;
    case ValueType::string:
    case ValueType::u64:
    case ValueType::i64:
    case ValueType::f64:
      return 8;
    case ValueType::array:
      return 12;
  }
  return 0;
}

MetadataValue read_scalar(Cursor& cursor, ValueType type, const std::string& what) {
  switch (type) {
    case ValueType::u8:
      return std::uint64_t{cursor.read<std::uint8_t>(what)};
    case ValueType::i8:
      return std::int64_t{cursor.read<std::int8_t>(what)};
    case ValueType::u16:
      return std::uint64_t{cursor.read<std::uint16_t>(what)};
    case ValueType::i16:
      return std::int64_t{cursor.read<std::int16_t>(what)};
    case ValueType::u32:
      return std::uint64_t{cursor.read<std::uint32_t>(what)};
    case ValueType::i32:
      return std::int64_t{cursor.read<std::int32_t>(what)};
    case ValueType::u64:
      return cursor.read<std::uint64_t>(what);
    case ValueType::i64:
      return cursor.read<std::int64_t>(what);
    case ValueType::f32:
      return double{cursor.read<float>(what)};
    case ValueType::f64:
      return cursor.read<double>(what);
    case ValueType::boolean:
      return cursor.read<std::uint8_t>(what) != 0;
    case ValueType::string:
      return cursor.read_string(what);
    case ValueType::array:
      break;
  }
  bad_file(what + " has a value type that GGUF does not define");
}

double as_double(const MetadataValue& value) {
  return std::visit(
      [](const auto& held) -> double {
        if constexpr (std::is_arithmetic_v<std::decay_t<decltype(held)>>) return static_cast<double>(held);
        return 0;
      },
      value);
}

MetadataValue read_array(Cursor& cursor, const std::string& what) {
  const auto type = static_cast<ValueType>(cursor.read<std::uint32_t>(what));
  const std::size_t element_bytes = type == ValueType::array ? 0 : value_bytes(type);
  if (element_bytes == 0) bad_file(what + " is an array of arrays or of an undefined type, which is not supported");
  const std::size_t count = cursor.read_count(element_bytes, "the length of " + what);
  if (type == ValueType::string) {
    std::vector<std::string> strings(count);
    for (auto& text : strings) text = cursor.read_string(what);
    return strings;
  }
  std::vector<double> numbers(count);
  for (auto& number : numbers) number = as_double(read_scalar(cursor, type, what));
  return numbers;
}

/// Type, dimensions and place of one tensor, relative to the start of the data section.
struct DirectoryEntry {
  Tensor tensor;
  std::uint64_t offset = 0;
  std::size_t bytes = 0;
};

DirectoryEntry read_directory_entry(Cursor& cursor, const std::string& path) {
  DirectoryEntry entry;
  entry.tensor.name = cursor.read_string("a tensor name");
  const std::string what = "tensor " + entry.tensor.name;
  const auto rank = cursor.read<std::uint32_t>(what);
  if (rank == 0 || rank > 4)
    bad_file(path + ": " + what + " has " + std::to_string(rank) + " dimensions, expected 1 to 4");
  std::size_t elements = 1;
  for (std::uint32_t i = 0; i < rank; ++i) {
    const auto dim = cursor.read<std::uint64_t>(what);
    if (dim == 0 || dim > (std::uint64_t{1} << 40) / elements)
      bad_file(path + ": " + what + " has an impossible dimension of " + std::to_string(dim));
    elements *= dim;
    entry.tensor.dims.push_back(dim);
  }
  entry.tensor.type = static_cast<TensorType>(cursor.read<std::uint32_t>(what));
  entry.offset = cursor.read<std::uint64_t>(what);
  const BlockLayout layout = block_layout(entry.tensor.type);
  if (entry.tensor.columns() % layout.elements != 0)
    bad_file(path + ": " + what + " has rows of " + std::to_string(entry.tensor.columns()) +
             " elements, not a multiple of the block of " + std::string(type_name(entry.tensor.type)));
  entry.bytes = elements / layout.elements * layout.bytes;
  return entry;
}

/// Tensors that share bytes would let a small file ask for any amount of memory; no writer makes such files.
void check_overlaps(std::vector<DirectoryEntry>& entries, const std::string& path) {
  std::sort(entries.begin(), entries.end(),
            [](const DirectoryEntry& a, const DirectoryEntry& b) { return a.offset < b.offset; });
  for (std::size_t i = 1; i < entries.size(); ++i)
    if (entries[i].offset - entries[i - 1].offset < entries[i - 1].bytes)
      bad_file(path + ": tensors " + entries[i - 1].tensor.name + " and " + entries[i].tensor.name + " overlap");
}

void check_preamble(Cursor& cursor, const std::string& path) {
  const auto magic = cursor.take(4, "the magic");
  if (std::memcmp(magic.data(), "GGUF", 4) != 0) bad_file(path + ": not a GGUF file (it does not begin with GGUF)");
  const auto version = cursor.read<std::uint32_t>("the version");
  if (version == 0x02000000u || version == 0x03000000u) bad_file(path + ": big-endian GGUF files are not supported");
  if (version != 2 && version != 3)
    bad_file(path + ": GGUF version " + std::to_string(version) + " is not supported, expected 2 or 3");
}

}  // namespace

BlockLayout block_layout(TensorType type) {
  switch (type) {
    case TensorType::f32:
      return {1, 4};
    case TensorType::f16:
      return {1, 2};
    case TensorType::bf16:
      return {1, 2};
    case TensorType::q4_0:
      return {32, 18};
    case TensorType::q4_1:
      return {32, 20};
    case TensorType::q5_0:
      return {32, 22};
    case TensorType::q5_1:
      return {32, 24};
    case TensorType::q8_0:
      return {32, 34};
    case TensorType::q2_k:
      return {256, 84};
    case TensorType::q3_k:
      return {256, 110};
    case TensorType::q4_k:
      return {256, 144};
    case TensorType::q5_k:
      return {256, 176};
    case TensorType::q6_k:
      return {256, 210};
  }
  bad_file("tensor type " + std::to_string(static_cast<std::uint32_t>(type)) +
           " is not supported (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K are)");
}

std::string_view type_name(TensorType type) {
  switch (type) {
    case TensorType::f32:
      return "F32";
    case TensorType::f16:
      return "F16";
    case TensorType::bf16:
      return "BF16";
    case TensorType::q4_0:
      return "Q4_0";
    case TensorType::q4_1:
      return "Q4_1";
    case TensorType::q5_0:
      return "Q5_0";
    case TensorType::q5_1:
      return "Q5_1";
    case TensorType::q8_0:
      return "Q8_0";
    case TensorType::q2_k:
      return "Q2_K";
    case TensorType::q3_k:
      return "Q3_K";
    case TensorType::q4_k:
      return "Q4_K";
    case TensorType::q5_k:
      return "Q5_K";
    case TensorType::q6_k:
      return "Q6_K";
  }
  return "unknown";
}

std::size_t Tensor::rows() const {
  std::size_t product = 1;
  for (std::size_t i = 1; i < dims.size(); ++i) product *= dims[i];
  return product;
}

std::size_t Tensor::row_bytes() const {
  const BlockLayout layout = block_layout(type);
  return columns() / layout.elements * layout.bytes;
}

GGUFFile::GGUFFile(const std::string& path) : path_(path), file_(std::make_unique<MappedFile>(path)) {
  Cursor cursor(path_, file_->bytes());
  check_preamble(cursor, path_);
  // A tensor entry takes at least 8 + 4 + 8 + 4 + 8 bytes, a metadata entry 8 + 4 + 1.
  const std::size_t tensor_count = cursor.read_count(32, "the number of tensors");
  const std::size_t metadata_count = cursor.read_count(13, "the number of metadata entries");
  for (std::size_t i = 0; i < metadata_count; ++i) {
    const std::string key = cursor.read_string("a metadata key");
    const std::string what = "metadata entry '" + key + "'";
    const auto type = static_cast<ValueType>(cursor.read<std::uint32_t>(what));
    metadata_[key] = type == ValueType::array ? read_array(cursor, what) : read_scalar(cursor, type, what);
  }
  std::vector<DirectoryEntry> entries;
  entries.reserve(tensor_count);
  for (std::size_t i = 0; i < tensor_count; ++i) entries.push_back(read_directory_entry(cursor, path_));

  const std::size_t alignment = size_or("general.alignment", 32);
  if (!std::has_single_bit(alignment) || alignment > (std::size_t{1} << 20))
    bad_file(path_ + ": general.alignment is " + std::to_string(alignment) + ", expected a power of two");
  const std::size_t start = (cursor.offset() + alignment - 1) & ~(alignment - 1);
  const std::size_t data_bytes = file_->bytes().size() > start ? file_->bytes().size() - start : 0;
  check_overlaps(entries, path_);
  for (auto& [tensor, offset, bytes] : entries) {
    if (offset % alignment != 0)
      bad_file(path_ + ": tensor " + tensor.name + " begins at " + std::to_string(offset) + ", which is not aligned");
    if (offset > data_bytes || bytes > data_bytes - offset)
      bad_file(path_ + ": truncated, tensor " + tensor.name + " needs " + std::to_string(bytes) + " bytes at " +
               std::to_string(offset) + " of the data section, which has " + std::to_string(data_bytes));
    tensor.data = file_->bytes().subspan(start + offset, bytes);
    const std::string name = tensor.name;
    if (!tensors_.emplace(name, std::move(tensor)).second) bad_file(path_ + ": tensor " + name + " is listed twice");
  }
}

GGUFFile::~GGUFFile() = default;
GGUFFile::GGUFFile(GGUFFile&&) noexcept = default;
GGUFFile& GGUFFile::operator=(GGUFFile&&) noexcept = default;

const MetadataValue* GGUFFile::find(std::string_view key) const {
  const auto entry = metadata_.find(key);
  return entry == metadata_.end() ? nullptr : &entry->second;
}

const Tensor* GGUFFile::find_tensor(std::string_view name) const {
  const auto entry = tensors_.find(name);
  return entry == tensors_.end() ? nullptr : &entry->second;
}

const Tensor& GGUFFile::tensor(std::string_view name) const {
  const Tensor* found = find_tensor(name);
  if (!found) bad_file(path_ + ": tensor " + std::string(name) + " is missing");
  return *found;
}

const MetadataValue& GGUFFile::require(std::string_view key) const {
  const MetadataValue* found = find(key);
  if (!found) bad_file(path_ + ": metadata entry '" + std::string(key) + "' is missing");
  return *found;
}

namespace {
template <class T>
const T& held_as(const MetadataValue& value, std::string_view key, const std::string& path, const char* expected) {
  const T* held = std::get_if<T>(&value);
  if (!held) bad_file(path + ": metadata entry '" + std::string(key) + "' is not " + expected);
  return *held;
}
}  // namespace

const std::string& GGUFFile::text(std::string_view key) const {
  return held_as<std::string>(require(key), key, path_, "a string");
}

const std::vector<std::string>& GGUFFile::texts(std::string_view key) const {
  return held_as<std::vector<std::string>>(require(key), key, path_, "an array of strings");
}

const std::vector<double>& GGUFFile::numbers(std::string_view key) const {
  return held_as<std::vector<double>>(require(key), key, path_, "an array of numbers");
}

double GGUFFile::number(std::string_view key) const {
  const MetadataValue& value = require(key);
  if (value.index() > 3) bad_file(path_ + ": metadata entry '" + std::string(key) + "' is not a number");
  return as_double(value);
}

std::size_t GGUFFile::size(std::string_view key) const {
  const double value = number(key);
  if (!(value >= 0 && value < 4294967296.0) || value != static_cast<double>(static_cast<std::uint64_t>(value)))
    bad_file(path_ + ": metadata entry '" + std::string(key) + "' is " + std::to_string(value) +
             ", expected a whole number from 0 to 2^32");
  return static_cast<std::size_t>(value);
}

double GGUFFile::number_or(std::string_view key, double fallback) const {
  return find(key) ? number(key) : fallback;
}

std::size_t GGUFFile::size_or(std::string_view key, std::size_t fallback) const {
  return find(key) ? size(key) : fallback;
}

std::string GGUFFile::text_or(std::string_view key, std::string fallback) const {
  return find(key) ? text(key) : fallback;
}

bool GGUFFile::flag_or(std::string_view key, bool fallback) const {
  const MetadataValue* found = find(key);
  return found ? held_as<bool>(*found, key, path_, "a boolean") : fallback;
}

}  // namespace engine
