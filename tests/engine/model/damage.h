// A table of damages: each is applied to a whole little model, which must then be refused with the stated code and a
// message that contains the stated words: the file's name, and the tensor's where there is one.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/checkpoint.h"
#include "tests/support/tiny_model.h"

namespace scion::test {

inline constexpr char kTrunk[] = "trunk.safetensors";
inline constexpr char kAlpha[] = "domains/alpha.safetensors";
inline constexpr char kBeta[] = "domains/beta.safetensors";
inline constexpr const char* kDataFiles[] = {kTrunk, kAlpha, kBeta};

struct Damage {
  std::string name = {};  // letters, digits and '_'
  // Damages what lies in the directory. `model` is what was written there; it may be changed and written again.
  std::function<void(const std::filesystem::path& directory, TinyModel& model)> apply = {};
  absl::StatusCode code = absl::StatusCode::kDataLoss;
  std::vector<std::string> mentions = {};
  bool with_index = true;
  bool with_lock = false;
  std::optional<DType> blocks = {};  // of the whole model
};

inline void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

// The model that is damaged: two domains, two rows per route, route weights.
inline TinyModel WholeModel(const Damage& damage) {
  return MakeTinyModel({.vocab_size = 53,
                        .num_experts_per_tok = 2,
                        .route_weights = true,
                        .blocks = damage.blocks,
                        .with_index = damage.with_index,
                        .with_lock = damage.with_lock});
}

// All bytes of the directory, to tell damages apart.
inline std::string Snapshot(const std::filesystem::path& directory) {
  std::string snapshot;
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  for (const std::filesystem::path& path : paths) {
    const std::filesystem::file_status status = std::filesystem::symlink_status(path);
    snapshot +=
        path.lexically_relative(directory).string() + "\n" + std::to_string(static_cast<int>(status.type())) + "\n";
    if (status.type() == std::filesystem::file_type::symlink) {
      // Relative to the directory's parent: the name of the temporary directory must not make two links different.
      const std::filesystem::path target = std::filesystem::read_symlink(path);
      snapshot += (target.is_absolute() ? target.lexically_relative(directory.parent_path()) : target).string();
    }
    if (status.type() == std::filesystem::file_type::regular) snapshot += ReadBytes(path);
  }
  return snapshot;
}

class DamagedModel : public ::testing::TestWithParam<Damage> {};

// At least 20 damages, no two of which leave the same bytes.
inline void ExpectTwentyDifferentDamages(const std::vector<Damage>& damages) {
  EXPECT_GE(damages.size(), 20u);
  std::map<std::string, std::string> snapshots;
  for (const Damage& damage : damages) {
    const TempDir dir;
    TinyModel model = WholeModel(damage);
    WriteTinyModel(model, dir.path() / "model");
    damage.apply(dir.path() / "model", model);
    const auto [same, is_new] = snapshots.emplace(Snapshot(dir.path() / "model"), damage.name);
    EXPECT_TRUE(is_new) << damage.name << " is the same as " << same->second;
  }
}

// Tests of one class: the damages themselves, and that there are enough of them.
#define SCION_DAMAGE_CLASS(Class, cases)                                      \
  INSTANTIATE_TEST_SUITE_P(Class, DamagedModel, ::testing::ValuesIn(cases),   \
                           [](const auto& info) { return info.param.name; }); \
  TEST(DamageClass, Class##HasTwentyDifferentCases) { ExpectTwentyDifferentDamages(cases); }

// One tensor's entry in a header, as text, so that it can say anything.
struct HeaderEntry {
  std::string name;
  std::string json;
};
std::vector<HeaderEntry> HeaderEntries(const TinyFile& file);
std::string HeaderText(const std::vector<HeaderEntry>& entries);

// Writes the file with the header changed by `edit`, and the model's data.
void EditHeader(const std::filesystem::path& directory, TinyModel& model, const std::string& path,
                const std::function<void(std::vector<HeaderEntry>&)>& edit);
// Writes the file with one field of one tensor's entry replaced: `value` is JSON text, "" removes the field.
void EditField(const std::filesystem::path& directory, TinyModel& model, const std::string& tensor,
               const std::string& field, const std::string& value);
// The path of the file that holds the tensor.
std::string PathOf(const TinyModel& model, const std::string& tensor);
// Where the tensor's data begins in the data area.
uint64_t OffsetOf(const TinyModel& model, const std::string& tensor);

// A name of letters, digits and '_' made of anything.
std::string CaseName(const std::string& text);

}  // namespace scion::test
