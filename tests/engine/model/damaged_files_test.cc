// Damage to the frame of a safetensors file: truncation, header length, offsets, overlaps and holes, duplicate names.
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/model/damage.h"

namespace scion::test {
namespace {

namespace fs = std::filesystem;

TinyModel Plain() { return WholeModel({}); }

uint64_t HeaderBytes(const TinyFile& file) { return SafetensorsHeader(file.tensors).dump().size(); }

std::vector<Damage> Truncations() {
  std::vector<Damage> damages;
  const auto add = [&](const std::string& path, uint64_t bytes, std::vector<std::string> mentions) {
    mentions.push_back(path);
    damages.push_back({.name = CaseName(path + "_to_" + std::to_string(bytes)),
                       .apply = [=](const fs::path& dir, TinyModel&) { fs::resize_file(dir / path, bytes); },
                       .mentions = mentions});
  };
  for (const TinyFile& file : Plain().files) {
    const uint64_t header = HeaderBytes(file);
    for (uint64_t bytes : {0, 1, 7}) add(file.path, bytes, {std::to_string(bytes) + " bytes, too short"});
    for (uint64_t bytes : {uint64_t{8}, uint64_t{9}, 8 + header / 2, 8 + header - 1}) {
      add(file.path, bytes, {"header length " + std::to_string(header), std::to_string(bytes) + " bytes"});
    }
    // Into the data: the first tensor in the header that is not whole is named.
    uint64_t end = 8 + header;
    for (size_t t = 0; t < file.tensors.size(); ++t) {
      const TinyTensor& tensor = file.tensors[t];
      const uint64_t begin = std::exchange(end, end + tensor.data.size());
      if (t == 0 || t == file.tensors.size() / 2) add(file.path, begin, {"'" + tensor.name + "'", "beyond"});
      if (t == 1 || t == file.tensors.size() / 3)
        add(file.path, (begin + end) / 2, {"'" + tensor.name + "'", "beyond"});
      if (t + 1 == file.tensors.size()) add(file.path, end - 1, {"'" + tensor.name + "'", "beyond"});
    }
  }
  return damages;
}
SCION_DAMAGE_CLASS(Truncation, Truncations());

std::vector<Damage> HeaderLengths() {
  std::vector<Damage> damages;
  for (const TinyFile& file : Plain().files) {
    const uint64_t header = HeaderBytes(file), size = SafetensorsBytes(file.tensors).size();
    const std::vector<std::pair<uint64_t, std::string>> kLengths = {
        {0, "too short"},         {1, "too short"},
        {2, "not JSON"},          {header - 1, "not JSON"},
        {header / 2, "not JSON"}, {size - 8, "header"},
        {size - 7, "beyond"},     {size, "beyond"},
        {100'000'000, "beyond"},  {100'000'001, "limit of 100000000"},
        {1ull << 31, "limit"},    {1ull << 32, "limit"},
        {~0ull - 7, "limit"},     {1ull << 63, "limit"},
        {~0ull, "limit"},         {__builtin_bswap64(header), "limit"}};
    for (const auto& [length, word] : kLengths) {
      damages.push_back({.name = CaseName(file.path + "_" + std::to_string(length)),
                         .apply =
                             [path = file.path, length = length](const fs::path& dir, TinyModel&) {
                               std::string bytes = ReadBytes(dir / path);
                               for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
                               WriteBytes(dir / path, bytes);
                             },
                         .mentions = {file.path, word}});
    }
  }
  return damages;
}
SCION_DAMAGE_CLASS(HeaderLength, HeaderLengths());

const char* const kSomeTensors[] = {
    "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight", "model.layers.2.self_attn.k_proj.weight",
    "model.layers.1.mlp.domains.alpha.experts.2.up_proj.weight", "model.layers.2.mlp.domains.beta.route"};

std::vector<Damage> Offsets() {
  std::vector<Damage> damages;
  const TinyModel model = Plain();
  for (const std::string tensor : kSomeTensors) {
    TinyModel copy = model;
    const uint64_t begin = OffsetOf(model, tensor), end = begin + copy.Tensor(tensor).data.size();
    const std::string b = std::to_string(begin), e = std::to_string(end);
    const std::vector<std::pair<std::string, std::string>> kValues = {
        {"[" + e + "," + b + "]", "backwards"},
        {"[" + b + "," + std::to_string(end - 1) + "]", "span"},
        {"[" + b + "," + std::to_string(end + 1) + "]", "span"},
        {"[" + std::to_string(begin + 1) + "," + e + "]", "span"},
        {"[" + b + "," + b + "]", "span 0 bytes"},
        {"[" + b + ",18446744073709551615]", "beyond"},
        {"[" + b + ",18446744073709551616]", "unexpected the number"},
        {"[18446744073709551614,18446744073709551615]", "beyond"},
        {"[18446744073709551615,1]", "backwards"},
        {"[-1," + e + "]", "negative number -1"},
        {"[" + b + "," + "-9223372036854775808]", "negative"},
        {"[" + b + "]", "two numbers"},
        {"[]", "two numbers"},
        {"[" + b + "," + e + "," + e + "]", "more than two"},
        {"[" + b + ".5," + e + "]", "unexpected the number"},
        {"[\"" + b + "\"," + e + "]", "unexpected a string"},
        {"[[" + b + "]," + e + "]", "unexpected an array"},
        {"{\"begin\":" + b + "}", "unexpected an object"},
        {"null", "unexpected null"},
        {e, "unexpected a number"},
        {"", "data_offsets is missing"}};
    for (size_t i = 0; i < kValues.size(); ++i) {
      damages.push_back(
          {.name = CaseName(tensor + "_" + std::to_string(i)),
           .apply = [=, value = kValues[i].first](const fs::path& dir,
                                                  TinyModel& m) { EditField(dir, m, tensor, "data_offsets", value); },
           .mentions = {PathOf(model, tensor), "'" + tensor + "'", kValues[i].second}});
    }
  }
  return damages;
}
SCION_DAMAGE_CLASS(Offsets, Offsets());

// Offsets of a whole file, each of the right length but laid over each other or apart.
std::vector<Damage> Overlaps() {
  std::vector<Damage> damages;
  const TinyModel model = Plain();
  for (const TinyFile& file : model.files) {
    for (size_t moved : {size_t{1}, file.tensors.size() / 2, file.tensors.size() - 1}) {
      // Back by two bytes, by half of the neighbour, onto the neighbour's first byte; and to the file's beginning.
      const std::string neighbour = file.tensors[moved - 1].name, name = file.tensors[moved].name;
      const uint64_t begin = OffsetOf(model, name), size = file.tensors[moved].data.size();
      const uint64_t neighbour_size = file.tensors[moved - 1].data.size();
      for (uint64_t back : std::set<uint64_t>{2, neighbour_size / 2, neighbour_size, begin}) {
        const std::string value = "[" + std::to_string(begin - back) + "," + std::to_string(begin - back + size) + "]";
        damages.push_back(
            {.name = CaseName(name + "_back_by_" + std::to_string(back)),
             .apply = [=](const fs::path& dir, TinyModel& m) { EditField(dir, m, name, "data_offsets", value); },
             .mentions = {file.path, "overlaps", back == begin ? file.tensors[0].name : name}});
      }
      // A hole before the tensor: all that follow are moved on, and the data has as many bytes more.
      for (uint64_t hole : {1, 4096}) {
        damages.push_back({.name = CaseName(name + "_after_a_hole_of_" + std::to_string(hole)),
                           .apply =
                               [=, path = file.path](const fs::path& dir, TinyModel& m) {
                                 TinyFile& f = m.File(path);
                                 nlohmann::ordered_json header = SafetensorsHeader(f.tensors);
                                 for (size_t t = moved; t < f.tensors.size(); ++t) {
                                   for (auto& offset : header[f.tensors[t].name]["data_offsets"]) {
                                     offset = offset.get<uint64_t>() + hole;
                                   }
                                 }
                                 std::string data = SafetensorsData(f.tensors);
                                 data.insert(begin, std::string(hole, '\0'));
                                 WriteBytes(dir / path, SafetensorsBytes(header.dump(), data));
                               },
                           .mentions = {file.path, "hole of " + std::to_string(hole) + " bytes", "'" + name + "'"}});
      }
    }
    damages.push_back({.name = CaseName(file.path + "_with_bytes_behind"),
                       .apply = [path = file.path](const fs::path& dir,
                                                   TinyModel&) { WriteBytes(dir / path, ReadBytes(dir / path) + "x"); },
                       .mentions = {file.path, "1 bytes after", file.tensors.back().name}});
  }
  return damages;
}
SCION_DAMAGE_CLASS(Overlaps, Overlaps());

std::vector<Damage> Duplicates() {
  std::vector<Damage> damages;
  const TinyModel model = Plain();
  const auto add = [&](const std::string& name, const std::string& path, std::vector<std::string> mentions,
                       std::function<void(std::vector<HeaderEntry>&)> edit) {
    mentions.push_back(path);
    damages.push_back({.name = CaseName(name),
                       .apply = [=](const fs::path& dir, TinyModel& m) { EditHeader(dir, m, path, edit); },
                       .mentions = mentions});
  };
  for (const std::string tensor : kSomeTensors) {
    const std::string path = PathOf(model, tensor);
    add("same_entry_twice_" + tensor, path, {"'" + tensor + "'", "twice"}, [=](std::vector<HeaderEntry>& entries) {
      for (size_t i = 0; i < entries.size(); ++i) {
        if (entries[i].name == tensor) return void(entries.push_back(entries[i]));
      }
    });
    add("another_entry_of_that_name_" + tensor, path, {"'" + tensor + "'", "twice"},
        [=](std::vector<HeaderEntry>& entries) {
          entries.push_back({tensor, R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})"});
        });
    add("spelt_with_an_escape_" + tensor, path, {"'" + tensor + "'", "twice"}, [=](std::vector<HeaderEntry>& entries) {
      entries.push_back({"\\u006d" + tensor.substr(1), R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})"});
    });
    for (const std::string field : {"dtype", "shape", "data_offsets"}) {
      add(field + "_twice_" + tensor, path, {"'" + tensor + "'", "'" + field + "' comes twice"},
          [=](std::vector<HeaderEntry>& entries) {
            for (HeaderEntry& entry : entries) {
              if (entry.name != tensor) continue;
              const std::string value = nlohmann::json::parse(entry.json)[field].dump();
              entry.json.insert(entry.json.size() - 1, ",\"" + field + "\":" + value);
            }
          });
    }
  }
  for (const std::string path : kDataFiles) {
    add("metadata_twice_" + path, path, {"'__metadata__'", "twice"},
        [](std::vector<HeaderEntry>& entries) { entries.push_back(entries[0]); });
    add("metadata_key_twice_" + path, path, {"__metadata__ has a key twice"},
        [](std::vector<HeaderEntry>& entries) { entries[0].json = R"({"format":"pt","format":"pt"})"; });
  }
  // One tensor in two files, with room of its own in both.
  for (const auto& [tensor, path] : {std::pair<std::string, std::string>{"model.norm.weight", kAlpha},
                                     {"model.layers.1.mlp.domains.alpha.route", kBeta},
                                     {"model.layers.1.mlp.domains.beta.route", kAlpha}}) {
    damages.push_back({.name = CaseName(tensor + "_also_in_" + path),
                       .apply =
                           [tensor = tensor, path = path](const fs::path& dir, TinyModel& m) {
                             const TinyTensor copy = m.Tensor(tensor);
                             m.File(path).tensors.push_back(copy);
                             WriteTinyModel(m, dir);
                           },
                       .mentions = {"'" + tensor + "'", path, PathOf(model, tensor)}});
  }
  return damages;
}
SCION_DAMAGE_CLASS(DuplicateNames, Duplicates());

}  // namespace
}  // namespace scion::test
