#pragma once
/// What a llama_batch brings to each sequence.
#include <llama.h>

#include <cstddef>
#include <vector>

#include "kvc/error.hpp"
#include "kvc/shape.hpp"

namespace kvc::inline KVC_ABI {

/// What the tokens of a batch are to the policies, which act where a prompt ends and after generated tokens. llama.cpp
/// does not tell the two apart.
enum class LlamaFeed {
  /// Several tokens of a sequence, and every token until the first prompt has ended, are a prompt's; the prompt ends
  /// with a token whose logits are asked for, if that is the sequence's last of the batch. A single token behind that
  /// is generated. The last token of a second prompt, fed alone, would be taken for a generated one: say `prompt`.
  automatic,
  prompt,       ///< the last part of a prompt, or all of it
  prompt_part,  ///< a part of a prompt that goes on
  generated,    ///< generated tokens
  draft,        ///< tokens that are only tried, until LlamaCache::accept() says how many of them stay
};

namespace llama {

/// What one batch brings to one sequence.
struct Feed {
  std::vector<Position> positions;
  std::size_t done = 0;       ///< tokens that every layer has attended to
  bool prompt = false;        ///< not generated
  bool draft = false;         ///< waits for accept()
  bool ends = false;          ///< the prompt's last token is among them
  bool wants_logits = false;  ///< of the last token
};

/// All of it: a Feed for each sequence of the context, most of them empty.
struct Feeds {
  std::vector<Feed> feeds;
  std::vector<llama_pos> positions;  ///< of the batch's tokens

  /// Throws Error where a token is of no sequence, of several, or of one that the context has not.
  static llama_seq_id sequence_of(const llama_batch& batch, int token, std::size_t sequences) {
    if (!batch.n_seq_id || !batch.seq_id) return 0;
    if (batch.n_seq_id[token] != 1)
      fail(ErrorCode::invalid_argument, {"LlamaCache::decode: token ", token, " of the batch belongs to ",
                                         batch.n_seq_id[token], " sequences: feed it to one and fork() the others"});
    const llama_seq_id id = batch.seq_id[token][0];
    if (id < 0 || static_cast<std::size_t>(id) >= sequences)
      fail(ErrorCode::invalid_argument, {"LlamaCache::decode: token ", token, " of the batch belongs to sequence ", id,
                                         ", the context has sequences 0 to ", sequences - 1});
    return id;
  }

  /// `next` are the positions at which the sequences go on.
  static Feeds of(const llama_batch& batch, const std::vector<Position>& next) {
    Feeds all;
    all.feeds.resize(next.size());
    for (int token = 0; token < batch.n_tokens; ++token) {
      const llama_seq_id id = sequence_of(batch, token, next.size());
      Feed& feed = all.feeds[static_cast<std::size_t>(id)];
      const Position start = next[static_cast<std::size_t>(id)];
      const auto before = static_cast<Position>(feed.positions.size());
      const Position expected = before != 0 ? feed.positions.back() + 1 : start;
      const Position position = batch.pos ? batch.pos[token] : expected;
      if (position != expected && (start != 0 || before != 0 || position < 0))
        fail(ErrorCode::invalid_argument,
             {"LlamaCache::decode: token ", token, " of the batch stands at position ", position, " of sequence ", id,
              ", which goes on at ", expected, "; truncate() and clear() forget tokens"});
      feed.positions.push_back(position);
      feed.wants_logits = batch.logits ? batch.logits[token] != 0 : token + 1 == batch.n_tokens;
      all.positions.push_back(position);
    }
    return all;
  }
};

/// Says what the tokens of a sequence are.
inline void name_feed(Feed& feed, LlamaFeed kind, bool prompt_open) {
  switch (kind) {
    case LlamaFeed::automatic:
      feed.prompt = prompt_open || feed.positions.size() > 1;
      feed.ends = feed.prompt && feed.wants_logits;
      break;
    case LlamaFeed::prompt:
    case LlamaFeed::prompt_part:
      feed.prompt = true;
      feed.ends = kind == LlamaFeed::prompt;
      break;
    case LlamaFeed::generated:
      feed.prompt = feed.ends = false;
      break;
    case LlamaFeed::draft:
      feed.prompt = feed.ends = false;
      feed.draft = true;
      break;
  }
}

}  // namespace llama
}  // namespace kvc::inline KVC_ABI
