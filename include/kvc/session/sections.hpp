#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvc/byte_stream.hpp"
#include "kvc/session/checksum.hpp"
#include "kvc/session/options.hpp"
#include "kvc/session/wire.hpp"

// A session is a beginning of 16 bytes and sections:
//
//   beginning   magic (8 bytes), version (u32), 0 (u32)
//   section     kind (u32), encoding (u32), bytes of its content (u64), content, Checksum of all that (u64)
//
// The heading comes first, then for every layer of every cache what is known of its heads, and the rows of their blocks:
//
//   rows        how many zeros follow (u64), these zeros, then every block, and zeros behind it up to a multiple of 64 bytes
//
// With the first zeros every block begins at a multiple of 64 from the beginning of the session, so that a session that is mapped
// into memory, or read in one piece, can be worked on where it lies.
// Numbers are little-endian. Nothing has to be sought: files, pipes and sockets serve. The encoding of a section says how its
// content was made smaller; this version knows one, the bytes as they are.
namespace kvc::inline KVC_ABI::session {

/// The first byte is no text, the others show whether line ends were translated on the way.
inline constexpr std::array<unsigned char, 8> Magic{0x8B, 'k', 'v', 'c', '\r', '\n', 0x1A, '\n'};
inline constexpr std::uint32_t Version = 2;
/// Where blocks begin.
inline constexpr std::size_t BlockAlignment = SessionInMemory::Alignment;

enum class Kind : std::uint32_t { heading = 1, layer = 2, rows = 3 };
enum class Encoding : std::uint32_t { plain = 0 };

/// Writes sections to a sink.
class SectionWriter {
 public:
  explicit SectionWriter(ByteSink sink) : sink_(sink) {
    Packer packer;
    packer.put_bytes(Magic.data(), Magic.size());
    packer.put<std::uint32_t>(Version);
    packer.put<std::uint32_t>(0);
    give(packer.bytes());
  }

  std::uint64_t written() const { return written_; }

  /// Of a section, before its content.
  static constexpr std::size_t HeadBytes = 16;

  /// A section of `bytes` bytes, which calls of add() give; end() closes it.
  void begin(Kind kind, std::uint64_t bytes) {
    Packer packer;
    packer.put<std::uint32_t>(static_cast<std::uint32_t>(kind));
    packer.put<std::uint32_t>(static_cast<std::uint32_t>(Encoding::plain));
    packer.put<std::uint64_t>(bytes);
    checksum_ = {};
    add(packer.bytes());
  }
  void add(std::span<const std::byte> bytes) {
    checksum_.add(bytes);
    give(bytes);
  }
  void end() {
    Packer packer;
    packer.put<std::uint64_t>(checksum_.value());
    give(packer.bytes());
  }
  void add_zeros(std::size_t count) {
    static constexpr std::array<std::byte, BlockAlignment> Zeros{};
    add(std::span(Zeros).first(count));
  }
  void whole(Kind kind, std::span<const std::byte> content) {
    begin(kind, content.size());
    add(content);
    end();
  }

 private:
  void give(std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    if (!sink_(bytes))
      fail(ErrorCode::bad_file,
           {"save: the sink did not take ", bytes.size(), " bytes, after ", written_, " that it had taken"});
    written_ += bytes.size();
  }

  ByteSink sink_;
  Checksum checksum_;
  std::uint64_t written_ = 0;
};

/// Reads them from a source, and not a byte further.
class SectionReader {
 public:
  explicit SectionReader(ByteSource source) : source_(source) { read_beginning(); }
  /// Reads what lies in memory, where borrow() lends it.
  explicit SectionReader(std::span<const std::byte> lying) : lying_(lying) { read_beginning(); }

  std::uint64_t taken() const { return taken_; }
  const std::string& where() const { return where_; }

  /// Begins the next section, which must be of this kind; `where` names it in errors: "the heading". Returns the bytes of its
  /// content, of which read() must take every one before end().
  std::uint64_t begin(Kind kind, std::string where) {
    move_to(std::move(where));
    std::array<std::byte, 16> head;
    checksum_ = {};
    read(head);
    std::uint32_t is = 0, encoding = 0;
    std::uint64_t bytes = 0;
    std::memcpy(&is, head.data(), 4);
    std::memcpy(&encoding, head.data() + 4, 4);
    std::memcpy(&bytes, head.data() + 8, 8);
    if (is != static_cast<std::uint32_t>(kind))
      fail(ErrorCode::bad_file, {"load: ", where_, " should be a section of kind ", static_cast<std::uint32_t>(kind),
                                 ", but one of kind ", is, " came"});
    if (encoding != static_cast<std::uint32_t>(Encoding::plain))
      fail(ErrorCode::incompatible,
           {"load: ", where_, " has encoding ", encoding, ", this library reads encoding 0: bytes as they are"});
    return bytes;
  }
  void read(std::span<std::byte> bytes) {
    const std::size_t got = read_some(bytes);
    if (got != bytes.size()) ended(bytes.size() - got);
    checksum_.add(bytes);
  }
  void skip(std::size_t count) {
    std::array<std::byte, BlockAlignment> ignored;
    for (std::size_t now = 0; count != 0; count -= now) {
      now = std::min(count, ignored.size());
      read(std::span(ignored).first(now));
    }
  }
  /// The next bytes where they lie in memory, or nothing where they do not lie at a multiple of BlockAlignment.
  const std::byte* borrow(std::size_t count) {
    if (lying_.size() - std::min<std::uint64_t>(lying_.size(), taken_) < count) return nullptr;
    const auto bytes = lying_.subspan(static_cast<std::size_t>(taken_), count);
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % BlockAlignment != 0) return nullptr;
    checksum_.add(bytes);
    taken_ += count;
    return bytes.data();
  }
  void end() {
    const std::uint64_t expected = checksum_.value();
    std::array<std::byte, 8> last;
    read(last);
    std::uint64_t stored = 0;
    std::memcpy(&stored, last.data(), 8);
    if (stored != expected)
      fail(ErrorCode::bad_file,
           {"load: ", where_, " is damaged: its checksum is ", expected, ", but the session says ", stored});
  }
  /// The content of a whole section. Memory is taken as the bytes come, so a false size costs nothing.
  std::vector<std::byte> whole(Kind kind, std::string where) {
    const std::uint64_t bytes = begin(kind, std::move(where));
    constexpr std::size_t AtOnce = std::size_t{1} << 20;
    std::vector<std::byte> content;
    while (content.size() < bytes) {
      const std::size_t known = content.size();
      content.resize(known + static_cast<std::size_t>(std::min<std::uint64_t>(bytes - known, AtOnce)));
      read(std::span(content).subspan(known));
    }
    end();
    return content;
  }

 private:
  void read_beginning() {
    std::array<std::byte, 16> beginning;
    move_to("the beginning");
    if (const std::size_t got = read_some(beginning);
        got < Magic.size() || std::memcmp(beginning.data(), Magic.data(), Magic.size()) != 0)
      fail(ErrorCode::bad_file,
           {"load: what the source gave is no session of kvc: its first ", Magic.size(), " bytes are others"});
    else if (got < beginning.size())
      ended(beginning.size() - got);
    std::uint32_t version = 0;
    std::memcpy(&version, beginning.data() + Magic.size(), sizeof(version));
    if (version != Version)
      fail(ErrorCode::incompatible,
           {"load: the session is of version ", version, " of the format, this library reads version ", Version});
  }
  void move_to(std::string where) { where_ = std::move(where); }
  std::size_t read_some(std::span<std::byte> bytes) {
    std::size_t got = 0;
    while (got < bytes.size()) {
      const std::size_t more = std::min(next(bytes.subspan(got)), bytes.size() - got);
      if (more == 0) break;
      got += more;
      taken_ += more;
    }
    return got;
  }
  std::size_t next(std::span<std::byte> bytes) {
    if (source_) return (*source_)(bytes);
    const std::size_t begin = static_cast<std::size_t>(std::min<std::uint64_t>(lying_.size(), taken_));
    const auto from = lying_.subspan(begin, std::min(bytes.size(), lying_.size() - begin));
    if (!from.empty()) std::memcpy(bytes.data(), from.data(), from.size());
    return from.size();
  }
  [[noreturn, gnu::cold]] void ended(std::size_t missing) const {
    fail(ErrorCode::bad_file, {"load: the source ended after ", taken_, " bytes, in ", where_, "; at least ", missing,
                               " more were expected"});
  }

  std::optional<ByteSource> source_;
  std::span<const std::byte> lying_;
  std::string where_;
  Checksum checksum_;
  std::uint64_t taken_ = 0;
};

}  // namespace kvc::inline KVC_ABI::session
