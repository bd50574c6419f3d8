// What inspect tells of a model, what --check finds, and what lock writes.

#include "extract/inspect.h"

#include "engine/base/sha256.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class InspectTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteTinyModel(MakeTinyModel(), model()); }
  fs::path model() const { return temp_.path() / "model"; }
  static SignOptions SignAs(const fs::path& model, bool replace) {
    return {.model = model, .replace = replace, .version = "test", .now = TestTime()};
  }

 private:
  TempDir temp_;
};

TEST_F(InspectTest, CountsAreThoseOfTheModel) {
  const auto json = Inspect(model());
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["num_hidden_layers"], 3);
  EXPECT_EQ((*json)["sparse_layers"], Json::array({1, 2}));
  EXPECT_EQ((*json)["default_domain"], "alpha");
  EXPECT_EQ((*json)["tokenizer"], false);
  EXPECT_TRUE((*json)["lock"].is_null());
  const Json& parts = (*json)["parts"];
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[0]["name"], "trunk");
  EXPECT_FALSE(parts[0].contains("experts"));
  // Embedding 97 x 32; per layer q and o 32 x 32, k and v 16 x 32, two norms; a dense FFN of 48 in layer 0; last norm.
  const int trunk = 97 * 32 + 3 * (2 * 32 * 32 + 2 * 16 * 32 + 2 * 32) + 3 * 48 * 32 + 32;
  EXPECT_EQ(parts[0]["parameters"], trunk);
  // Two sparse layers of 3 and of 2 experts of 3 x 40 x 32; route tables are not parameters.
  EXPECT_EQ(parts[1]["name"], "alpha");
  EXPECT_EQ(parts[1]["experts"], 3);
  EXPECT_EQ(parts[1]["parameters"], 2 * 3 * 3 * 40 * 32);
  EXPECT_EQ(parts[2]["parameters"], 2 * 2 * 3 * 40 * 32);
  EXPECT_EQ(parts[2]["files"][0]["path"], "domains/beta.safetensors");
  EXPECT_EQ(parts[2]["files"][0]["generation"], 1);
  EXPECT_EQ(parts[2]["bytes"], fs::file_size(model() / "domains/beta.safetensors"));
  EXPECT_EQ((*json)["parameters"], trunk + 2 * 5 * 3 * 40 * 32);

  const std::string table = InspectTable(*json);
  EXPECT_THAT(table, HasSubstr("alpha *"));
  EXPECT_THAT(table, HasSubstr("domains/beta.safetensors"));
  EXPECT_THAT(table, HasSubstr("tokenizer: none"));
  EXPECT_THAT(table, HasSubstr("lock: none"));
}

TEST_F(InspectTest, TheDefaultDomainIsMarkedWhereverItStands) {
  TinyModelOptions options;
  options.default_domain = "beta";
  WriteTinyModel(MakeTinyModel(options), model() / "of_beta");
  const auto json = Inspect(model() / "of_beta");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["default_domain"], "beta");
  EXPECT_THAT(InspectTable(*json), HasSubstr("\nbeta *"));
  EXPECT_THAT(InspectTable(*json), Not(HasSubstr("alpha *")));
}

TEST_F(InspectTest, PlainLlamaDirectoryIsDescribedToo) {
  TinyModelOptions options;
  options.model_type = "llama";
  WriteTinyModel(MakeTinyModel(options), model() / "llama");
  const auto json = Inspect(model() / "llama");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ((*json)["parts"].size(), 1u);
  EXPECT_THAT(InspectTable(*json), HasSubstr("sparse: none"));
}

TEST_F(InspectTest, LockCoversEveryFileAndTensor) {
  WriteBytes(model() / "tokenizer.json", "{}");
  const auto lock = Sign(SignAs(model(), false));
  ASSERT_TRUE(lock.ok()) << lock.status();
  auto files = ReadTree(model());
  files.erase("scion.lock.json");
  ASSERT_EQ(lock->files.size(), files.size());
  for (const auto& [path, bytes] : files) EXPECT_EQ(lock->files.at(path).sha256, Sha256Hex(bytes)) << path;
  EXPECT_EQ(lock->files.at("domains/alpha.safetensors").tensors.size(), 2u * (3 * 3 + 1));
  EXPECT_EQ(ReadBytes(model() / "scion.lock.json"), SerializeLockFile(*lock));
  const auto differences = CheckHashes(model(), nullptr);
  ASSERT_TRUE(differences.ok());
  EXPECT_TRUE(differences->empty());
}

TEST_F(InspectTest, ExistingLockIsReplacedOnlyWhenAsked) {
  const auto first = Sign(SignAs(model(), false));
  ASSERT_TRUE(first.ok());
  const std::string text = ReadBytes(model() / "scion.lock.json");
  EXPECT_EQ(Sign(SignAs(model(), false)).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadBytes(model() / "scion.lock.json"), text);
  const auto second = Sign(SignAs(model(), true));
  ASSERT_TRUE(second.ok());
  ASSERT_EQ(second->lineage.size(), 2u);
  EXPECT_EQ(second->lineage[1].verb, "lock");
  EXPECT_EQ(second->lineage[1].source_lock_sha256, LockSha256(*first));
}

TEST_F(InspectTest, CheckNamesTheDamagedFileAndTensor) {
  ASSERT_TRUE(Sign(SignAs(model(), false)).ok());
  const std::string path = "domains/beta.safetensors";
  const std::string bytes = ReadBytes(model() / path);
  const TensorPlace tensor = TensorsIn(bytes).at(4);
  FlipByte(model() / path, tensor.begin + 5);
  auto differences = CheckHashes(model(), nullptr);
  ASSERT_TRUE(differences.ok());
  ASSERT_EQ(differences->size(), 1u);
  EXPECT_EQ(differences->at(0).file, path);
  EXPECT_EQ(differences->at(0).tensor, tensor.name);
  WriteBytes(model() / path, bytes.substr(0, bytes.size() - 1));
  differences = CheckHashes(model(), nullptr);
  ASSERT_EQ(differences->size(), 1u);
  EXPECT_THAT(differences->at(0).what, HasSubstr(std::to_string(bytes.size())));
}

TEST_F(InspectTest, CheckWithoutALockIsRefused) {
  EXPECT_EQ(CheckHashes(model(), nullptr).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace scion::test
