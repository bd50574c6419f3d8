// What is not a file of the directory: links that lead outside, FIFOs and their kin, and files that shrink after
// opening.
#include <gmock/gmock.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/model/damage.h"

namespace scion::test {
namespace {

namespace fs = std::filesystem;

constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kLock[] = "scion.lock.json";
const char* const kAllFiles[] = {"config.json", "generation_config.json", kIndex, kLock, kTrunk, kAlpha, kBeta};

std::vector<Damage> Links() {
  std::vector<Damage> damages;
  const auto add = [&](const std::string& name, const std::string& path, std::function<void(const fs::path& dir)> apply,
                       absl::StatusCode code, const std::string& word) {
    damages.push_back({.name = CaseName(name + "_" + path),
                       .apply = [=](const fs::path& dir, TinyModel&) { apply(dir); },
                       .code = code,
                       .mentions = {path, word},
                       .with_lock = path == kLock});
  };
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  for (const std::string path : kAllFiles) {
    // The very file, but outside: only its place is wrong.
    const std::string outside = "outside_" + fs::path(path).filename().string();
    const auto move_out = [=](const fs::path& dir) { fs::rename(dir / path, dir.parent_path() / outside); };
    add(
        "absolute", path,
        [=](const fs::path& dir) {
          move_out(dir);
          fs::create_symlink(dir.parent_path() / outside, dir / path);
        },
        kInvalid, "leads outside");
    add(
        "relative", path,
        [=](const fs::path& dir) {
          move_out(dir);
          const fs::path up = fs::path(path).has_parent_path() ? "../.." : "..";
          fs::create_symlink(up / outside, dir / path);
        },
        kInvalid, "leads outside");
    add(
        "by_way_of_a_link_inside", path,
        [=](const fs::path& dir) {
          move_out(dir);
          fs::create_symlink(dir.parent_path() / outside, dir / "inside");
          fs::create_symlink(dir / "inside", dir / path);
        },
        kInvalid, "leads outside");
    add(
        "to_a_device", path,
        [=](const fs::path& dir) {
          fs::remove(dir / path);
          fs::create_symlink("/dev/zero", dir / path);
        },
        kInvalid, "leads outside");
    add(
        "to_itself", path,
        [=](const fs::path& dir) {
          fs::remove(dir / path);
          fs::create_symlink(fs::path(path).filename(), dir / path);
        },
        kInvalid, "leads to itself");
    add(
        "to_nothing", path,
        [=](const fs::path& dir) {
          fs::remove(dir / path);
          fs::create_symlink("nothing", dir / path);
        },
        absl::StatusCode::kNotFound, "open");
  }
  add(
      "directory", kAlpha,
      [](const fs::path& dir) {
        fs::rename(dir / "domains", dir.parent_path() / "domains");
        fs::create_symlink(dir.parent_path() / "domains", dir / "domains");
      },
      kInvalid, "leads outside");
  const std::vector<std::string> kPathsOut = {"../trunk.safetensors",
                                              "/etc/passwd",
                                              "domains/../../trunk.safetensors",
                                              "./trunk.safetensors",
                                              "domains//alpha.safetensors",
                                              "",
                                              "..",
                                              "domains/..",
                                              "a\\nb",
                                              std::string(2000, 'a')};
  for (const std::string& path : kPathsOut) {
    add(
        "index_names_" + std::to_string(path.size()) + path.substr(0, 40), kIndex,
        [=](const fs::path& dir) {
          std::string index = ReadBytes(dir / kIndex);
          const std::string old_text = "\"model.norm.weight\": \"";
          index.replace(index.find(old_text), old_text.size() + std::strlen(kTrunk), old_text + path);
          WriteBytes(dir / kIndex, index);
        },
        kInvalid, "'model.norm.weight'");
  }
  return damages;
}
SCION_DAMAGE_CLASS(LinksOut, Links());

TEST(LinksInside, AreFollowedAndTheDirectoryItselfMayBeALink) {
  const TempDir dir;
  WriteTinyModel(WholeModel({.with_lock = true}), dir.path() / "model");
  for (const std::string path : kAllFiles) {
    const fs::path moved = dir.path() / "model" / ("moved_" + fs::path(path).filename().string());
    fs::rename(dir.path() / "model" / path, moved);
    fs::create_symlink(moved, dir.path() / "model" / path);
  }
  fs::create_symlink(dir.path() / "model", dir.path() / "link");
  EXPECT_TRUE(Checkpoint::Open(dir.path() / "model").ok()) << Checkpoint::Open(dir.path() / "model").status();
  EXPECT_TRUE(Checkpoint::Open(dir.path() / "link").ok());
}

std::vector<Damage> Specials() {
  std::vector<Damage> damages;
  for (const std::string path : kAllFiles) {
    const auto add = [&](const std::string& name, std::function<void(const fs::path&)> make) {
      damages.push_back({.name = CaseName(name + "_" + path),
                         .apply =
                             [=](const fs::path& dir, TinyModel&) {
                               fs::remove(dir / path);
                               make(dir / path);
                             },
                         .code = absl::StatusCode::kInvalidArgument,
                         .mentions = {path, "not a regular file"},
                         .with_lock = path == kLock});
    };
    add("fifo", [](const fs::path& p) { ASSERT_EQ(::mkfifo(p.c_str(), 0600), 0); });
    add("link_to_a_fifo", [](const fs::path& p) {
      ASSERT_EQ(::mkfifo((p.parent_path() / "fifo").c_str(), 0600), 0);
      fs::create_symlink("fifo", p);
    });
    add("directory", [](const fs::path& p) { fs::create_directory(p); });
    add("socket", [](const fs::path& p) {
      // A socket's address is short: bind by a relative name.
      const fs::path before = fs::current_path();
      fs::current_path(p.parent_path());
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      std::strncpy(address.sun_path, p.filename().c_str(), sizeof(address.sun_path) - 1);
      const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
      ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
      ::close(fd);
      fs::current_path(before);
    });
  }
  return damages;
}
SCION_DAMAGE_CLASS(NotAFile, Specials());

// A file that shrinks between Open and Read. 20 and more pairs of tensor and size.
struct Shrinking {
  std::string tensor;
  double keep;  // of the tensor's bytes; below zero: of the header's
};

class FileShrunkAfterOpening : public ::testing::TestWithParam<Shrinking> {};

TEST_P(FileShrunkAfterOpening, IsAnErrorThatNamesFileAndTensor) {
  const auto& [tensor_name, keep] = GetParam();
  const TempDir dir;
  TinyModel model = WholeModel({});
  WriteTinyModel(model, dir.path());
  const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const TensorInfo& tensor = **(*checkpoint)->Find(tensor_name);
  const auto read = [&]() -> absl::Status {
    if (tensor.dtype == DType::kI32) return (*checkpoint)->ReadInt32(tensor).status();
    return (*checkpoint)->ReadFloats(tensor).status();
  };
  ASSERT_TRUE(read().ok()) << "the undamaged control";

  const std::string path = PathOf(model, tensor_name);
  const double position = keep < 0 ? -keep * static_cast<double>(tensor.offset)
                                   : static_cast<double>(tensor.offset) + keep * static_cast<double>(tensor.bytes);
  ASSERT_EQ(::truncate((dir.path() / path).c_str(), static_cast<off_t>(position)), 0);
  for (const absl::Status& status : {read(), [&] {
                                       std::byte last;
                                       return (*checkpoint)->Read(tensor, tensor.bytes - 1, {&last, 1});
                                     }()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(path + ": tensor '" + tensor_name + "'"));
  }
  // What lies before is still read.
  if (keep > 0.25) {
    std::byte first[4];
    EXPECT_TRUE((*checkpoint)->Read(tensor, 0, first).ok());
  }
}

std::vector<Shrinking> Shrinkings() {
  std::vector<Shrinking> cases;
  for (const char* tensor :
       {"model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight", "model.norm.weight",
        "model.layers.1.mlp.domains.alpha.experts.1.up_proj.weight", "model.layers.2.mlp.domains.alpha.route",
        "model.layers.1.mlp.domains.beta.route_weight"}) {
    for (double keep : {-0.0, -0.5, 0.0, 0.5, 0.99}) cases.push_back({tensor, keep});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, FileShrunkAfterOpening, ::testing::ValuesIn(Shrinkings()), [](const auto& info) {
  return CaseName(info.param.tensor) + "_" + std::to_string(info.index);
});

}  // namespace
}  // namespace scion::test
