#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "kvc/session/checksum.hpp"
#include "support/session_bytes.hpp"

/// A session taken apart and put together again: by it tests change what a session says, with checksums that agree.
namespace support {

struct Section {
  std::uint32_t kind = 0, encoding = 0;
  Bytes content;
};

struct Sections {
  Bytes beginning;
  std::vector<Section> sections;

  /// Takes whole sections; what is behind the last one is left out.
  explicit Sections(std::span<const std::byte> session) {
    const std::size_t head = std::min<std::size_t>(16, session.size());
    beginning.assign(session.begin(), session.begin() + static_cast<std::ptrdiff_t>(head));
    session = session.subspan(head);
    while (session.size() >= 24) {
      Section section;
      std::uint64_t bytes = 0;
      std::memcpy(&section.kind, session.data(), 4);
      std::memcpy(&section.encoding, session.data() + 4, 4);
      std::memcpy(&bytes, session.data() + 8, 8);
      if (bytes > session.size() - 24) return;
      const auto content = session.subspan(16, static_cast<std::size_t>(bytes));
      section.content.assign(content.begin(), content.end());
      sections.push_back(std::move(section));
      session = session.subspan(24 + static_cast<std::size_t>(bytes));
    }
  }

  Bytes session() const {
    Bytes all = beginning;
    const auto add = [&](const void* data, std::size_t bytes) {
      const auto* from = static_cast<const std::byte*>(data);
      all.insert(all.end(), from, from + bytes);
    };
    for (const Section& section : sections) {
      const std::size_t at = all.size();
      const std::uint64_t bytes = section.content.size();
      add(&section.kind, 4);
      add(&section.encoding, 4);
      add(&bytes, 8);
      add(section.content.data(), section.content.size());
      kvc::session::Checksum checksum;
      checksum.add(std::span(all).subspan(at));
      const std::uint64_t sum = checksum.value();
      add(&sum, 8);
    }
    return all;
  }
};

}  // namespace support
