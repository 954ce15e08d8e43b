#pragma once
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/cache/inside.hpp"
#include "kvc/session/options.hpp"
#include "kvc/session/wire.hpp"

// The heading of a session: of which model and policy it is. It is compared with the cache that loads it, field by field.
namespace kvc::inline KVC_ABI::session {

/// The name of a type as all compilers write it: without namespaces of the library, whose name says how it was compiled, and
/// without those that have no name.
inline std::string plain_name(std::string_view type) {
#define KVC_TEXT_OF(tokens) #tokens
#define KVC_TEXT(macro) KVC_TEXT_OF(macro)
  constexpr std::string_view Tag = KVC_TEXT(KVC_ABI) "::";
#undef KVC_TEXT
#undef KVC_TEXT_OF
  std::string name(type);
  for (const std::string_view part :
       {Tag, std::string_view("kvc::"), std::string_view("{anonymous}::"), std::string_view("(anonymous namespace)::")})
    for (std::size_t at = 0; (at = name.find(part, at)) != name.npos;) name.erase(at, part.size());
  return name;
}

/// The layers that options mean. Throws Error unless the cache has them.
inline LayerRange layers_of(const cache::Inside& in, const LayerRange& asked, const char* call) {
  LayerRange layers = asked;
  if (layers.count == LayerRange::All) layers.count = in.shape.layers - std::min(layers.first, in.shape.layers);
  if (layers.count == 0 || layers.first >= in.shape.layers || layers.count > in.shape.layers - layers.first)
    fail(ErrorCode::invalid_argument, {call, ": SessionOptions::layers: ", layers.count, " layers from layer ",
                                       layers.first, " on; the cache has layers 0 to ", in.shape.layers - 1});
  return layers;
}

inline void put_shape(Packer& packer, const CacheShape& shape) {
  for (const std::size_t number : {shape.layers, shape.query_heads, shape.kv_heads, shape.head_dim, shape.values_dim()})
    packer.put_size(number);
  packer.put<float>(shape.logit_scale());
  packer.put<float>(shape.softcap);
  packer.put_flag(shape.rotary.interleaved);
  packer.put_size(shape.rotary.inv_freq.size());
  packer.put_list<float>(shape.rotary.inv_freq);
  packer.put_size(shape.each_layer.size());
  for (const LayerShape& own : shape.each_layer) {
    packer.put<Position>(own.window);
    packer.put_size(own.sink_logits.size());
    packer.put_list<float>(own.sink_logits);
  }
}

inline void put_policy(Packer& packer, const cache::Inside& in, std::string_view text) {
  packer.put_text(text);
  packer.put_size(in.stages.size());
  for (const auto& stage : in.stages) packer.put<std::uint64_t>(stage->fingerprint());
  packer.put_size(in.nodes.size());
  for (const cache::Node& node : in.nodes) {
    packer.put_text(plain_name(node.stage->type().text));
    packer.put_size(node.owner);
    packer.put_size(node.slot_bytes);
  }
}

inline Packer heading_of(const cache::Inside& in, const LayerRange& layers, std::size_t forks,
                         std::string_view policy) {
  Packer packer;
  put_shape(packer, in.shape);
  packer.put_text(name_of(in.options.dense.type));
  packer.put_flag(in.options.dense.widens);
  put_policy(packer, in, policy);
  packer.put_size(layers.first);
  packer.put_size(layers.count);
  packer.put_size(forks);
  return packer;
}

/// Compares what a session says with what a cache is.
class HeadingCheck {
 public:
  HeadingCheck(Unpacker& unpacker, const cache::Inside& in) : from_(unpacker), in_(in) {}

  /// Throws Error(incompatible) where they differ.
  void run(const LayerRange& layers, std::size_t forks, std::string_view policy) {
    check_shape();
    same("CacheOptions::dense", from_.text(), std::string_view(name_of(in_.options.dense.type)));
    same("CacheOptions::dense.widens", from_.flag(), in_.options.dense.widens);
    check_policy(policy);
    const auto first = from_.get<std::uint64_t>(), count = from_.get<std::uint64_t>();
    if (first != layers.first || count != layers.count)
      fail(ErrorCode::incompatible,
           {"load: the session has ", count, " layers from layer ", first, " on, but SessionOptions::layers asks for ",
            layers.count, " from layer ", layers.first, " on"});
    if (const auto saved = from_.get<std::uint64_t>(); saved != forks)
      fail(ErrorCode::incompatible,
           {"load: the session has ", saved, " caches that were saved together, but ", forks, " are to be loaded"});
    from_.end();
  }

 private:
  template <class T>
  void same(std::string_view what, const T& saved, const T& here) {
    if constexpr (std::is_floating_point_v<T>) {
      if (std::bit_cast<std::uint32_t>(saved) == std::bit_cast<std::uint32_t>(here)) return;
    } else if (saved == here) {
      return;
    }
    if constexpr (std::is_same_v<T, bool>)
      differ(what, saved ? "true" : "false", here ? "true" : "false");
    else
      differ(what, saved, here);
  }
  [[noreturn, gnu::cold]] static void differ(std::string_view what, Fragment saved, Fragment here) {
    fail(ErrorCode::incompatible, {"load: ", what, ": the session has ", saved, ", this cache has ", here});
  }
  void same_size(std::string_view what, std::size_t here) {
    same(what, from_.get<std::uint64_t>(), std::uint64_t{here});
  }

  void check_shape() {
    const CacheShape& shape = in_.shape;
    same_size("CacheShape::layers", shape.layers);
    same_size("CacheShape::query_heads", shape.query_heads);
    same_size("CacheShape::kv_heads", shape.kv_heads);
    same_size("CacheShape::head_dim", shape.head_dim);
    same_size("CacheShape::value_dim", shape.values_dim());
    same("CacheShape::scale", from_.get<float>(), shape.logit_scale());
    same("CacheShape::softcap", from_.get<float>(), shape.softcap);
    same("CacheShape::rotary.interleaved", from_.flag(), shape.rotary.interleaved);
    same_size("the number of CacheShape::rotary.inv_freq", shape.rotary.inv_freq.size());
    const auto saved = from_.list<float>(shape.rotary.inv_freq.size());
    for (std::size_t i = 0; i < saved.size(); ++i)
      same(joined({"CacheShape::rotary.inv_freq[", i, "]"}), saved[i], shape.rotary.inv_freq[i]);
    check_each_layer();
  }
  void check_each_layer() {
    const std::vector<LayerShape>& here = in_.shape.each_layer;
    same_size("the number of CacheShape::each_layer", here.size());
    for (std::size_t layer = 0; layer < here.size(); ++layer) {
      const std::string name = joined({"CacheShape::each_layer[", layer, "]."});
      same(name + "window", from_.get<Position>(), here[layer].window);
      same_size("the number of " + name + "sink_logits", here[layer].sink_logits.size());
      const auto saved = from_.list<float>(here[layer].sink_logits.size());
      for (std::size_t head = 0; head < saved.size(); ++head)
        same(joined({name, "sink_logits[", head, "]"}), saved[head], here[layer].sink_logits[head]);
    }
  }

  void check_policy(std::string_view here) {
    const std::string_view text = from_.text();
    const auto refuse = [&](std::initializer_list<Fragment> what) {
      if (!text.empty() && !here.empty() && text != here)
        fail(ErrorCode::incompatible,
             {"load: the session was saved under the policy \"", text, "\", this cache has \"", here, "\""});
      fail(ErrorCode::incompatible, {"load: the policy: ", joined(what)});
    };
    const auto stages = from_.get<std::uint64_t>();
    if (stages != in_.stages.size())
      refuse({"the session has ", stages, " stages, this cache has ", in_.stages.size()});
    const auto prints = from_.list<std::uint64_t>(in_.stages.size());
    const auto nodes = from_.get<std::uint64_t>();
    for (std::size_t node = 0; node < in_.nodes.size() && node < nodes; ++node) {
      const cache::Node& own = in_.nodes[node];
      const std::string_view type = from_.text();
      const auto owner = from_.get<std::uint64_t>(), bytes = from_.get<std::uint64_t>();
      const std::string name = plain_name(own.stage->type().text);
      if (type != name) refuse({"the session has ", type, " where this cache has ", name});
      if (owner != own.owner) refuse({name, " belongs to stage ", owner, " of the session, here to stage ", own.owner});
      if (bytes != own.slot_bytes)
        refuse({"a Slot of ", name, " has ", bytes, " bytes in the session, here it has ", own.slot_bytes});
    }
    if (nodes != in_.nodes.size())
      refuse({"the session has ", nodes, " stages and members, this cache has ", in_.nodes.size()});
    for (std::size_t stage = 0; stage < prints.size(); ++stage)
      if (prints[stage] != in_.stages[stage]->fingerprint())
        refuse({"stage ", stage, ", ", plain_name(in_.stages[stage]->type().text),
                ", has other parameters in the session than in this cache"});
  }

  Unpacker& from_;
  const cache::Inside& in_;
};

}  // namespace kvc::inline KVC_ABI::session
