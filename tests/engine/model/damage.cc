#include "tests/engine/model/damage.h"

#include <gmock/gmock.h>

#include <cctype>

namespace scion::test {

std::vector<HeaderEntry> HeaderEntries(const TinyFile& file) {
  std::vector<HeaderEntry> entries;
  const nlohmann::ordered_json header = SafetensorsHeader(file.tensors);
  for (const auto& [name, json] : header.items()) entries.push_back({name, json.dump()});
  return entries;
}

std::string HeaderText(const std::vector<HeaderEntry>& entries) {
  std::string text = "{";
  for (const HeaderEntry& entry : entries) {
    text += (text.size() > 1 ? ",\"" : "\"") + entry.name + "\":" + entry.json;
  }
  return text + "}";
}

void EditHeader(const std::filesystem::path& directory, TinyModel& model, const std::string& path,
                const std::function<void(std::vector<HeaderEntry>&)>& edit) {
  const TinyFile& file = model.File(path);
  std::vector<HeaderEntry> entries = HeaderEntries(file);
  edit(entries);
  WriteBytes(directory / path, SafetensorsBytes(HeaderText(entries), SafetensorsData(file.tensors)));
}

void EditField(const std::filesystem::path& directory, TinyModel& model, const std::string& tensor,
               const std::string& field, const std::string& value) {
  EditHeader(directory, model, PathOf(model, tensor), [&](std::vector<HeaderEntry>& entries) {
    for (HeaderEntry& entry : entries) {
      if (entry.name != tensor) continue;
      const nlohmann::ordered_json old = nlohmann::ordered_json::parse(entry.json);
      std::string json;
      for (const auto& [key, json_value] : old.items()) {
        const std::string text = key == field ? value : json_value.dump();
        if (!text.empty()) json += (json.empty() ? "\"" : ",\"") + key + "\":" + text;
      }
      entry.json = "{" + json + "}";
    }
  });
}

std::string PathOf(const TinyModel& model, const std::string& tensor) {
  for (const TinyFile& file : model.files) {
    for (const TinyTensor& t : file.tensors) {
      if (t.name == tensor) return file.path;
    }
  }
  return "no such tensor: " + tensor;
}

uint64_t OffsetOf(const TinyModel& model, const std::string& tensor) {
  for (const TinyFile& file : model.files) {
    uint64_t offset = 0;
    for (const TinyTensor& t : file.tensors) {
      if (t.name == tensor) return offset;
      offset += t.data.size();
    }
  }
  return 0;
}

std::string CaseName(const std::string& text) {
  std::string name;
  for (unsigned char c : text) name += std::isalnum(c) ? static_cast<char>(c) : '_';
  return name;
}

TEST_P(DamagedModel, IsRefusedWithTheStatedCodeAndNames) {
  const Damage& damage = GetParam();
  const TempDir dir;
  TinyModel model = WholeModel(damage);
  WriteTinyModel(model, dir.path() / "model");
  const absl::Status whole = Checkpoint::Open(dir.path() / "model").status();
  ASSERT_TRUE(whole.ok()) << "the undamaged control: " << whole;

  damage.apply(dir.path() / "model", model);
  const absl::Status status = Checkpoint::Open(dir.path() / "model").status();
  EXPECT_EQ(status.code(), damage.code) << status;
  for (const std::string& word : damage.mentions) {
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(word));
  }
}

}  // namespace scion::test
