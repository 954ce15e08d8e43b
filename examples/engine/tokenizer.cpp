#include "tokenizer.hpp"

#include <algorithm>
#include <array>
#include <queue>

#include "kvc/error.hpp"
#include "unicode_classes.hpp"

namespace engine {
namespace {

/// The printable code point that stands for a byte in GPT-2 vocabularies: bytes that print stand for themselves, the
/// others follow from U+0100 in their order.
std::array<char32_t, 256> byte_code_points() {
  std::array<char32_t, 256> codes{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    codes[byte] = prints ? byte : next++;
  }
  return codes;
}

/// A vocabulary string with every code point replaced by its byte; characters that stand for no byte stay as UTF-8.
std::string raw_bytes(std::string_view text) {
  static const std::unordered_map<char32_t, char> bytes = [] {
    std::unordered_map<char32_t, char> inverse;
    const auto codes = byte_code_points();
    for (std::size_t byte = 0; byte < codes.size(); ++byte) inverse[codes[byte]] = static_cast<char>(byte);
    return inverse;
  }();
  std::string raw;
  for (std::size_t offset = 0; offset < text.size();) {
    const DecodedChar decoded = decode_utf8(text, offset);
    const auto found = bytes.find(decoded.code);
    if (found != bytes.end())
      raw.push_back(found->second);
    else
      raw.append(text.substr(offset, decoded.length));
    offset += decoded.length;
  }
  return raw;
}

std::uint64_t pair_key(int left, int right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

/// Values of tokenizer.ggml.token_type.
constexpr double ControlToken = 3, UserDefinedToken = 4;

}  // namespace

Tokenizer::Tokenizer(const GGUFFile& file) {
  const std::string& model = file.text("tokenizer.ggml.model");
  if (model != "gpt2")
    kvc::fail(kvc::ErrorCode::unknown_name,
              file.path() + ": tokenizer model '" + model + "' is not supported, expected gpt2 (byte-level BPE)");
  pre_tokenizer_ = pre_tokenizer_named(file.text_or("tokenizer.ggml.pre", "gpt-2"));
  whole_piece_first_ = pre_tokenizer_ == PreTokenizer::llama_bpe;
  read_vocabulary(file);
  read_merges(file);

  auto token_at = [&](std::string_view key) -> std::optional<int> {
    if (!file.find(key)) return std::nullopt;
    const std::size_t id = file.size(key);
    if (id >= vocabulary())
      kvc::fail(kvc::ErrorCode::bad_file, file.path() + ": " + std::string(key) + " is " + std::to_string(id) +
                                              ", outside the vocabulary of " + std::to_string(vocabulary()));
    return static_cast<int>(id);
  };
  eos_ = token_at("tokenizer.ggml.eos_token_id");
  if (file.flag_or("tokenizer.ggml.add_bos_token", false)) bos_ = token_at("tokenizer.ggml.bos_token_id");
}

void Tokenizer::read_vocabulary(const GGUFFile& file) {
  const auto& tokens = file.texts("tokenizer.ggml.tokens");
  static const std::vector<double> no_types;
  const auto& types = file.find("tokenizer.ggml.token_type") ? file.numbers("tokenizer.ggml.token_type") : no_types;
  texts_.reserve(tokens.size());
  ids_.reserve(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const int id = static_cast<int>(i);
    const double type = i < types.size() ? types[i] : 1;
    if (type == ControlToken || type == UserDefinedToken) {
      texts_.push_back(tokens[i]);
      if (!tokens[i].empty()) specials_.push_back({tokens[i], id, type == UserDefinedToken});
    } else {
      texts_.push_back(raw_bytes(tokens[i]));
      ids_.emplace(texts_.back(), id);
    }
  }
  std::stable_sort(specials_.begin(), specials_.end(),
                   [](const Special& a, const Special& b) { return a.text.size() > b.text.size(); });
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto found = ids_.find(std::string(1, static_cast<char>(byte)));
    byte_ids_[byte] = found == ids_.end() ? -1 : found->second;
  }
}

void Tokenizer::read_merges(const GGUFFile& file) {
  const auto& merges = file.texts("tokenizer.ggml.merges");
  merges_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    // Blanks inside tokens are written as U+0120, so the first one after the first character separates the two parts.
    const std::size_t blank = merges[rank].find(' ', 1);
    if (blank == std::string::npos)
      kvc::fail(kvc::ErrorCode::bad_file, file.path() + ": merge " + std::to_string(rank) + " has no two parts");
    const std::string left = raw_bytes(std::string_view(merges[rank]).substr(0, blank));
    const std::string right = raw_bytes(std::string_view(merges[rank]).substr(blank + 1));
    const auto left_id = ids_.find(left), right_id = ids_.find(right), merged_id = ids_.find(left + right);
    if (left_id == ids_.end() || right_id == ids_.end() || merged_id == ids_.end()) continue;  // can never happen
    merges_.emplace(pair_key(left_id->second, right_id->second), Merge{static_cast<int>(rank), merged_id->second});
  }
}

std::optional<int> Tokenizer::find(std::string_view token_text) const {
  for (const Special& special : specials_)
    if (special.text == token_text) return special.id;
  const auto found = ids_.find(std::string(token_text));
  return found == ids_.end() ? std::nullopt : std::optional<int>(found->second);
}

std::string Tokenizer::decode(std::span<const int> ids) const {
  std::string text;
  for (const int id : ids) {
    if (id < 0 || static_cast<std::size_t>(id) >= texts_.size())
      kvc::fail(kvc::ErrorCode::invalid_argument,
                "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(texts_.size()));
    text += texts_[static_cast<std::size_t>(id)];
  }
  return text;
}

std::vector<int> Tokenizer::encode(std::string_view text, SpecialTokens special) const {
  std::vector<int> ids;
  std::size_t plain_begin = 0;
  for (std::size_t offset = 0; offset < text.size();) {
    const auto match = std::find_if(specials_.begin(), specials_.end(), [&](const Special& candidate) {
      return (special == SpecialTokens::parse || candidate.always) && text.substr(offset).starts_with(candidate.text);
    });
    if (match == specials_.end()) {
      ++offset;
      continue;
    }
    encode_plain(text.substr(plain_begin, offset - plain_begin), ids);
    ids.push_back(match->id);
    offset += match->text.size();
    plain_begin = offset;
  }
  encode_plain(text.substr(plain_begin), ids);
  return ids;
}

void Tokenizer::encode_plain(std::string_view text, std::vector<int>& ids) const {
  std::vector<std::string_view> pieces;
  split_text(pre_tokenizer_, text, pieces);
  for (const std::string_view piece : pieces) encode_piece(piece, ids);
}

void Tokenizer::encode_piece(std::string_view piece, std::vector<int>& ids) const {
  if (whole_piece_first_) {
    const auto found = ids_.find(std::string(piece));
    if (found != ids_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  std::vector<int> symbols;
  for (const char character : piece) {
    const int id = byte_ids_[static_cast<unsigned char>(character)];
    if (id >= 0) symbols.push_back(id);
  }
  merge_all(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

const Tokenizer::Merge* Tokenizer::find_merge(int left, int right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

/// Applies the merge of lowest rank, leftmost first, until none applies. Symbols are a linked list and candidates a
/// heap, so that a piece of n bytes costs n log n however long it is; a candidate whose symbols have changed since is
/// recognised by their ids and dropped.
void Tokenizer::merge_all(std::vector<int>& symbols) const {
  struct Candidate {
    int rank, left, left_id, right_id, merged;
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  const int count = static_cast<int>(symbols.size());
  if (count < 2) return;
  std::vector<int> next(symbols.size()), previous(symbols.size());
  std::priority_queue<Candidate> queue;
  auto id_at = [&](int index) -> int& { return symbols[static_cast<std::size_t>(index)]; };
  auto next_of = [&](int index) -> int& { return next[static_cast<std::size_t>(index)]; };
  auto previous_of = [&](int index) -> int& { return previous[static_cast<std::size_t>(index)]; };
  auto offer = [&](int left) {
    if (left < 0 || next_of(left) >= count) return;
    const int left_id = id_at(left), right_id = id_at(next_of(left));
    if (const Merge* merge = find_merge(left_id, right_id))
      queue.push({merge->rank, left, left_id, right_id, merge->merged});
  };
  for (int i = 0; i < count; ++i) {
    next_of(i) = i + 1;
    previous_of(i) = i - 1;
  }
  for (int i = 0; i + 1 < count; ++i) offer(i);

  constexpr int Gone = -1;
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    const int right = next_of(best.left);
    if (id_at(best.left) != best.left_id || right >= count || id_at(right) != best.right_id) continue;
    id_at(best.left) = best.merged;
    id_at(right) = Gone;
    next_of(best.left) = next_of(right);
    if (next_of(right) < count) previous_of(next_of(right)) = best.left;
    offer(previous_of(best.left));
    offer(best.left);
  }
  std::erase(symbols, Gone);
}

}  // namespace engine
