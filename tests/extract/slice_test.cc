// What a cut consists of, and what Slice refuses.

#include "extract/slice.h"

#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/sha256.h"
#include "engine/model/checkpoint.h"
#include "engine/model/lock_file.h"
#include "extract/staged_directory.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TinyModelOptions ThreeDomains() {
  TinyModelOptions options;
  options.domains = {{"zh", 2}, {"code", 3}, {"en", 1}};
  options.default_domain = "zh";
  return options;
}

class SliceTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteTinyModel(MakeTinyModel(ThreeDomains()), model()); }

  fs::path model() const { return temp_.path() / "model"; }
  fs::path out() const { return temp_.path() / "cut"; }
  fs::path temp() const { return temp_.path(); }

  // Refused with this code and message, and nothing is left anywhere.
  void ExpectRefused(const absl::StatusOr<SliceResult>& result, absl::StatusCode code, const std::string& message) {
    EXPECT_EQ(result.status().code(), code) << result.status();
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(message));
    EXPECT_FALSE(fs::exists(out()));
    EXPECT_FALSE(fs::exists(StagingPath(out())));
  }

 private:
  TempDir temp_;
};

TEST_F(SliceTest, DataFilesAreCopiedWholeAndTheOthersLeftOut) {
  WriteBytes(model() / "tokenizer.json", "{\"a\": 1}");
  WriteBytes(model() / "chat_template.jinja", "{{ messages }}");
  WriteBytes(model() / "LICENSE", "free");
  WriteBytes(model() / "README.md", "a card of the whole model");
  WriteBytes(model() / "domains" / "code.g7.safetensors.bak", "old");
  const auto result = Cut(model(), {"code"}, out());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->domains, ElementsAre("code"));

  const auto source = ReadTree(model());
  const auto cut = ReadTree(out());
  std::vector<std::string> names;
  for (const auto& [name, bytes] : cut) names.push_back(name);
  EXPECT_THAT(names, ElementsAre("LICENSE", "chat_template.jinja", "config.json", "domains/code.safetensors",
                                 "generation_config.json", "model.safetensors.index.json", "scion.lock.json",
                                 "tokenizer.json", "trunk.safetensors"));
  for (const char* name : {"LICENSE", "chat_template.jinja", "domains/code.safetensors", "generation_config.json",
                           "tokenizer.json", "trunk.safetensors"}) {
    EXPECT_EQ(cut.at(name), source.at(name)) << name;
  }
  EXPECT_EQ(ReadTree(model()), source);
  EXPECT_THAT(Names(temp()), ElementsAre("cut", "model"));
}

TEST_F(SliceTest, ConfigKeepsItsKeysAndNamesTheKeptDomains) {
  ASSERT_TRUE(Cut(model(), {"en", "code"}, out()).ok());
  auto expected = MakeTinyModel(ThreeDomains()).config;
  expected["domains"] = {{{"name", "code"}, {"num_experts", 3}}, {{"name", "en"}, {"num_experts", 1}}};
  expected["default_domain"] = "code";  // zh is gone: the first that is left, in the model's order
  // ordered_json compares the keys' order too.
  EXPECT_EQ(nlohmann::ordered_json::parse(ReadBytes(out() / "config.json")), expected);
}

TEST_F(SliceTest, DefaultDomainStaysIfItIsKept) {
  ASSERT_TRUE(Cut(model(), {"en", "zh"}, out()).ok());
  const auto config = nlohmann::json::parse(ReadBytes(out() / "config.json"));
  EXPECT_EQ(config["default_domain"], "zh");
  EXPECT_EQ(config["domains"].size(), 2u);
}

TEST_F(SliceTest, IndexMapsExactlyTheTensorsThatAreThere) {
  ASSERT_TRUE(Cut(model(), {"en"}, out()).ok());
  std::map<std::string, std::string> expected;
  size_t bytes = 0;
  for (const char* path : {"trunk.safetensors", "domains/en.safetensors"}) {
    for (const TensorPlace& tensor : TensorsIn(ReadBytes(model() / path))) {
      expected[tensor.name] = path;
      bytes += tensor.end - tensor.begin;
    }
  }
  const auto index = nlohmann::json::parse(ReadBytes(out() / "model.safetensors.index.json"));
  EXPECT_EQ((index["weight_map"].get<std::map<std::string, std::string>>()), expected);
  EXPECT_EQ(index["metadata"]["total_size"], bytes);
}

TEST_F(SliceTest, LockHashesEveryFileAndEveryTensor) {
  for (const bool signed_model : {false, true}) {  // else the hashes of tensors come from the model's lock
    if (signed_model) {
      ASSERT_TRUE(Sign({.model = model(), .replace = false, .version = "test", .now = TestTime()}).ok());
    }
    const fs::path cut = temp() / (signed_model ? "of_signed" : "cut");
    ASSERT_TRUE(Cut(model(), {"code"}, cut).ok());
    const auto lock = nlohmann::json::parse(ReadBytes(cut / "scion.lock.json"));
    auto files = ReadTree(cut);
    files.erase("scion.lock.json");
    EXPECT_EQ(lock["files"].size(), files.size());
    for (const auto& [path, bytes] : files) {
      ASSERT_TRUE(lock["files"].contains(path)) << path;
      EXPECT_EQ(lock["files"][path]["sha256"], Sha256Hex(bytes)) << path;
      EXPECT_EQ(lock["files"][path]["size"], bytes.size()) << path;
      if (!path.ends_with(".safetensors")) continue;
      EXPECT_EQ(lock["files"][path]["tensors"].size(), TensorsIn(bytes).size()) << path;
      for (const TensorPlace& t : TensorsIn(bytes)) {
        EXPECT_EQ(lock["files"][path]["tensors"][t.name], Sha256Hex(bytes.substr(t.begin, t.end - t.begin))) << t.name;
      }
    }
    EXPECT_EQ(lock["domains"].size(), 1u);
    EXPECT_EQ(lock["domains"]["code"]["file"], "domains/code.safetensors");
  }
}

TEST_F(SliceTest, LineageTellsWhatWasCutFromWhat) {
  ASSERT_TRUE(Sign({.model = model(), .replace = false, .version = "test", .now = TestTime()}).ok());
  ASSERT_TRUE(Cut(model(), {"code", "en"}, out()).ok());
  ASSERT_TRUE(Cut(out(), {"code"}, temp() / "second").ok());
  const auto sha256_of = [](const fs::path& directory) {
    return nlohmann::json::parse(ReadBytes(directory / "scion.lock.json"))["lock_sha256"];
  };
  const auto lineage = nlohmann::json::parse(ReadBytes(temp() / "second" / "scion.lock.json"))["lineage"];
  ASSERT_EQ(lineage.size(), 3u);
  EXPECT_EQ(lineage[0]["verb"], "lock");
  const nlohmann::json first = {{"verb", "slice"},           {"time", "2023-11-14T22:13:20Z"},
                                {"version", "test"},         {"source", "model"},
                                {"domains", {"code", "en"}}, {"source_lock_sha256", sha256_of(model())}};
  EXPECT_EQ(lineage[1], first);
  EXPECT_EQ(lineage[2]["source"], "cut");
  EXPECT_EQ(lineage[2]["source_lock_sha256"], sha256_of(out()));
}

TEST_F(SliceTest, CutKeepsTheGenerationOfItsDomain) {
  ASSERT_TRUE(Sign({.model = model(), .replace = false, .version = "test", .now = TestTime()}).ok());
  fs::rename(model() / "domains/code.safetensors", model() / "domains/code.g2.safetensors");
  LockFile lock = *ParseLockFile(ReadBytes(model() / "scion.lock.json"));
  auto entry = lock.files.extract("domains/code.safetensors");
  entry.key() = "domains/code.g2.safetensors";
  lock.files.insert(std::move(entry));
  lock.domains["code"] = {.file = "domains/code.g2.safetensors", .generation = 2};
  WriteBytes(model() / "scion.lock.json", SerializeLockFile(lock));
  const auto result = Cut(model(), {"code"}, out());
  ASSERT_TRUE(result.ok()) << result.status();
  const auto cut = Checkpoint::Open(out());
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ((*cut)->files()[1].path, "domains/code.g2.safetensors");
  EXPECT_EQ((*cut)->files()[1].generation, 2u);
}

TEST_F(SliceTest, CanariesOfOtherDomainsAreNowhereInTheCut) {
  // 16 random bytes in every tensor of every file; route tables get theirs as the first four entries' order, which must
  // stay experts, so they are told apart by their data instead.
  TinyModel tiny = MakeTinyModel(ThreeDomains());
  std::map<std::string, std::vector<std::string>> canaries;  // by file
  uint64_t state = 88172645463325252;
  for (TinyFile& file : tiny.files) {
    for (TinyTensor& tensor : file.tensors) {
      if (tensor.dtype == DType::kI32) {
        canaries[file.path].push_back(tensor.data);
        continue;
      }
      std::string canary;
      while (canary.size() < 16) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        canary += static_cast<char>(state >> 33);
      }
      tensor.data.replace(tensor.data.size() / 2, canary.size(), canary);
      canaries[file.path].push_back(canary);
    }
  }
  fs::remove_all(model());
  WriteTinyModel(tiny, model());
  for (const std::vector<std::string>& kept : {std::vector<std::string>{"zh"}, {"code"}, {"en"}, {"zh", "en"}}) {
    fs::remove_all(out());
    ASSERT_TRUE(Cut(model(), kept, out()).ok());
    std::string all_bytes;
    for (const auto& [path, bytes] : ReadTree(out())) all_bytes += bytes;
    int present = 0, absent = 0;
    for (const auto& [path, tensors] : canaries) {
      const bool own = path == "trunk.safetensors" || std::any_of(kept.begin(), kept.end(), [&](const std::string& d) {
                         return path == "domains/" + d + ".safetensors";
                       });
      for (const std::string& canary : tensors) {
        EXPECT_EQ(all_bytes.find(canary) != std::string::npos, own) << path;
        ++(own ? present : absent);
      }
    }
    EXPECT_GT(present, 0);
    EXPECT_GT(absent, 0);
  }
}

TEST_F(SliceTest, CutOfACutIsTheSameAsACutOfTheWhole) {
  ASSERT_TRUE(Cut(model(), {"code", "en"}, temp() / "two").ok());
  ASSERT_TRUE(Cut(temp() / "two", {"en"}, temp() / "via").ok());
  ASSERT_TRUE(Cut(model(), {"en"}, out()).ok());
  auto direct = ReadTree(out()), via = ReadTree(temp() / "via");
  direct.erase("scion.lock.json");  // the lineage differs
  via.erase("scion.lock.json");
  EXPECT_EQ(direct, via);
}

TEST_F(SliceTest, ExistingTargetIsRefusedAndLeftAsItIs) {
  fs::create_directory(out());
  WriteBytes(out() / "precious", "x");
  const auto result = Cut(model(), {"code"}, out());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr(out().string()));
  EXPECT_THAT(Names(out()), ElementsAre("precious"));
  // An empty directory, a file and a dangling link are in the way too, and so is "cut/".
  fs::remove(out() / "precious");
  EXPECT_EQ(Cut(model(), {"code"}, out() / "").status().code(), absl::StatusCode::kAlreadyExists);
  fs::remove(out());
  fs::create_symlink("nowhere", out());
  EXPECT_EQ(Cut(model(), {"code"}, out()).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(fs::is_symlink(out()));
  EXPECT_THAT(Names(temp()), ElementsAre("cut", "model"));
}

TEST_F(SliceTest, TrailingSlashNamesTheSameDirectory) {
  ASSERT_TRUE(Cut(model(), {"code"}, out() / "").ok());
  EXPECT_THAT(Names(temp()), ElementsAre("cut", "model"));
}

TEST_F(SliceTest, TargetInsideTheModelIsRefused) {
  const auto before = ReadTree(model());
  const auto result = Cut(model(), {"code"}, model() / "domains" / "cut");
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("inside the model"));
  // By way of a link as well.
  fs::create_directory_symlink(model(), temp() / "link");
  EXPECT_EQ(Cut(model(), {"code"}, temp() / "link" / "cut").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadTree(model()), before);
}

TEST_F(SliceTest, UnknownDomainListsThoseThatExist) {
  const auto result = Cut(model(), {"code", "fr"}, out());
  ExpectRefused(result, absl::StatusCode::kNotFound, "'fr'");
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("zh, code, en"));
}

TEST_F(SliceTest, DomainNamedTwiceIsRefused) {
  ExpectRefused(Cut(model(), {"code", "code"}, out()), absl::StatusCode::kInvalidArgument, "twice");
}

TEST_F(SliceTest, ModelWithoutDomainsIsRefused) {
  TinyModelOptions options;
  options.model_type = "llama";
  WriteTinyModel(MakeTinyModel(options), temp() / "llama");
  ExpectRefused(Cut(temp() / "llama", {"default"}, out()), absl::StatusCode::kFailedPrecondition, "no domains");
}

TEST_F(SliceTest, MissingModelIsNamed) {
  ExpectRefused(Cut(temp() / "nothing", {"code"}, out()), absl::StatusCode::kNotFound, (temp() / "nothing").string());
}

TEST_F(SliceTest, MissingParentOfTheTargetIsNamed) {
  const auto result = Cut(model(), {"code"}, temp() / "no" / "cut");
  EXPECT_EQ(result.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr((temp() / "no" / "cut").string()));
}

TEST_F(SliceTest, SourceThatIsNotWhatItsLockSaysIsNotCut) {
  ASSERT_TRUE(Sign({.model = model(), .replace = false, .version = "test", .now = TestTime()}).ok());
  const std::string bytes = ReadBytes(model() / "domains/code.safetensors");
  FlipByte(model() / "domains/code.safetensors", bytes.size() - 1000);
  ExpectRefused(Cut(model(), {"code"}, out()), absl::StatusCode::kDataLoss, "domains/code.safetensors");
  // The damage is code's alone.
  EXPECT_TRUE(Cut(model(), {"zh"}, out()).ok());
}

TEST_F(SliceTest, CompanionThatLinksOutOfTheModelIsRefused) {
  WriteBytes(temp() / "secret", "x");
  fs::create_symlink("../secret", model() / "tokenizer.json");
  ExpectRefused(Cut(model(), {"code"}, out()), absl::StatusCode::kInvalidArgument, "tokenizer.json");
}

TEST_F(SliceTest, LeavingsOfAKilledRunAreCleanedUp) {
  fs::create_directories(StagingPath(out()) / "domains");
  WriteBytes(StagingPath(out()) / "domains" / "junk.safetensors", "half");
  ASSERT_TRUE(Cut(model(), {"code"}, out()).ok());
  EXPECT_FALSE(fs::exists(out() / "domains" / "junk.safetensors"));
  EXPECT_THAT(Names(temp()), ElementsAre("cut", "model"));
}

TEST_F(SliceTest, AnotherRunAtTheSamePlaceIsNotDisturbed) {
  auto other = StagedDirectory::Create(out());
  ASSERT_TRUE(other.ok()) << other.status();
  WriteBytes(other->path() / "work", "in progress");
  const auto result = Cut(model(), {"code"}, out());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition) << result.status();
  EXPECT_EQ(ReadBytes(other->path() / "work"), "in progress");
  ASSERT_TRUE(other->Commit().ok());
  EXPECT_EQ(ReadBytes(out() / "work"), "in progress");
}

TEST_F(SliceTest, TargetThatAppearsMeanwhileIsNotReplaced) {
  auto staged = StagedDirectory::Create(out());
  ASSERT_TRUE(staged.ok());
  fs::create_directory(out());
  EXPECT_EQ(staged->Commit().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(fs::is_empty(out()));
}

absl::StatusOr<SliceResult> Link(const fs::path& model, const std::string& domain, const fs::path& out) {
  return Slice({.model = model, .out = out, .domains = {domain}, .link = true, .version = "test", .now = TestTime()});
}

TEST_F(SliceTest, LinkedCutIsTheCutThatACopyIs) {
  WriteBytes(model() / "tokenizer.json", "{\"a\": 1}");
  Resign(model());
  const auto before = ReadTree(model());
  const auto result = Link(model(), "code", out());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->reflinks + result->hard_links, 2);
  ASSERT_TRUE(Cut(model(), {"code"}, temp() / "copy").ok());
  EXPECT_EQ(ReadTree(out()), ReadTree(temp() / "copy"));  // the lock, with all hashes, included
  EXPECT_EQ(ReadTree(model()), before);
  const auto inode = [](const fs::path& path) {
    struct stat status;
    EXPECT_EQ(::stat(path.c_str(), &status), 0);
    return status.st_ino;
  };
  for (const char* name : {"trunk.safetensors", "domains/code.safetensors"}) {
    EXPECT_EQ(inode(out() / name) == inode(model() / name), result->hard_links > 0) << name;
  }
  for (const char* name : {"tokenizer.json", "config.json", "generation_config.json", "scion.lock.json"}) {
    EXPECT_NE(inode(out() / name), inode(model() / name)) << name << " is written anew";
  }
  // The model may go; the cut stays whole.
  fs::remove_all(model());
  EXPECT_TRUE(Checkpoint::Open(out()).ok());
}

TEST_F(SliceTest, LinkingTakesItsHashesFromTheLockOrIsRefused) {
  ExpectRefused(Link(model(), "code", out()), absl::StatusCode::kFailedPrecondition, "moe-extract lock");
  Resign(model());
  ASSERT_TRUE(Link(model(), "code", out()).ok());
  // Nothing is read, so that damage goes along; but the cut's lock tells.
  fs::remove_all(out());
  const fs::path file = model() / "domains/code.safetensors";
  FlipByte(file, ReadBytes(file).size() - 1000);
  ASSERT_TRUE(Link(model(), "code", out()).ok());
  const auto report = Verify(OptionsFor(out(), model()));
  ASSERT_TRUE(report.ok());
  ASSERT_FALSE(report->differences.empty());
  EXPECT_EQ(report->differences[0].file, "domains/code.safetensors");
}

TEST_F(SliceTest, LinkIntoAnotherFileSystemIsRefusedWithTheReason) {
  Resign(model());
  struct stat here, there;
  const fs::path shm = "/dev/shm";
  ASSERT_EQ(::stat(temp().c_str(), &here), 0);
  ASSERT_EQ(::stat(shm.c_str(), &there), 0);
  ASSERT_NE(here.st_dev, there.st_dev) << "the test needs two file systems";
  const fs::path out = shm / ("scion_link_test_" + std::to_string(::getpid()));
  const auto result = Link(model(), "code", out);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition) << result.status();
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("different file systems"));
  EXPECT_FALSE(fs::exists(out));
  EXPECT_FALSE(fs::exists(StagingPath(out)));
}

TEST_F(SliceTest, FilesOfSeveralChunksAreHashedWhole) {
  // 12 MB in one tensor, cut by chunks of 4 MiB, and tensors that end and begin inside of one.
  TinyModelOptions options = ThreeDomains();
  options.vocab_size = 50'000;
  options.hidden_size = 128;
  fs::remove_all(model());
  WriteTinyModel(MakeTinyModel(options), model());
  ASSERT_TRUE(Cut(model(), {"zh"}, out()).ok());
  const std::string bytes = ReadBytes(out() / "trunk.safetensors");
  ASSERT_GT(bytes.size(), size_t{12} << 20);
  EXPECT_TRUE(bytes == ReadBytes(model() / "trunk.safetensors"));
  const auto lock = nlohmann::json::parse(ReadBytes(out() / "scion.lock.json"));
  EXPECT_EQ(lock["files"]["trunk.safetensors"]["sha256"], Sha256Hex(bytes));
  for (const TensorPlace& t : TensorsIn(bytes)) {
    EXPECT_EQ(lock["files"]["trunk.safetensors"]["tensors"][t.name], Sha256Hex(bytes.substr(t.begin, t.end - t.begin)))
        << t.name;
  }
}

}  // namespace
}  // namespace scion::test
