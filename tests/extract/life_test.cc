// The later life of a model: drop, rollback, gc and log, and that readers and writers never see a state between.

#include <atomic>
#include <thread>

#include "engine/base/sha256.h"
#include "extract/inspect.h"
#include "extract/lineage_log.h"
#include "extract/model_transaction.h"
#include "tests/extract/graft_fixture.h"
#include "tests/extract/on_open.h"

namespace scion::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class LifeTest : public GraftFixture {
 protected:
  std::vector<std::string> Domains() {
    const auto opened = Checkpoint::Open(model());
    if (!opened.ok()) {
      ADD_FAILURE() << opened.status();
      return {};
    }
    std::vector<std::string> names;
    for (const DomainSpec& domain : (*opened)->spec().domains) names.push_back(domain.name);
    return names;
  }

  // 0 if the graft fails.
  uint64_t GraftedGeneration(const std::string& domain, const std::string& as) {
    const auto result = GraftFrom(domain, as);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? result->generation : 0;
  }

  nlohmann::json Lock() { return nlohmann::json::parse(ReadBytes(model() / "scion.lock.json")); }
  nlohmann::json Config() { return nlohmann::json::parse(ReadBytes(model() / "config.json")); }

  void ExpectSound() {
    const auto differences = CheckHashes(model(), nullptr);
    ASSERT_TRUE(differences.ok()) << differences.status();
    EXPECT_THAT(*differences, IsEmpty()) << (differences->empty() ? "" : ToString(differences->front()));
    EXPECT_FALSE(fs::exists(model() / ".scion-transaction"));
  }
};

TEST_F(LifeTest, GraftThenDropLeavesTheWeightsAsTheyWere) {
  const auto before = WeightFiles(model());
  const auto config = Config();
  const auto index = ReadBytes(model() / "model.safetensors.index.json");
  ASSERT_TRUE(GraftFrom("gamma", "law").ok());
  EXPECT_THAT(Domains(), ElementsAre("alpha", "beta", "law"));
  const auto dropped = DropDomain("law");
  ASSERT_TRUE(dropped.ok()) << dropped.status();
  EXPECT_EQ(dropped->file, "domains/law.safetensors");
  EXPECT_THAT(Domains(), ElementsAre("alpha", "beta"));
  ExpectSound();
  ASSERT_TRUE(Gc().ok());
  ExpectSound();
  EXPECT_EQ(WeightFiles(model()), before);
  EXPECT_EQ(Config(), config);
  // The tiny model's writer has its own way to lay the text out, and gives no size.
  EXPECT_EQ(nlohmann::json::parse(ReadBytes(model() / "model.safetensors.index.json"))["weight_map"],
            nlohmann::json::parse(index)["weight_map"]);
}

TEST_F(LifeTest, DropKeepsADefaultAndTheLastDomain) {
  const auto dropped = DropDomain("alpha");
  ASSERT_TRUE(dropped.ok()) << dropped.status();
  EXPECT_EQ(dropped->default_domain, "beta");
  EXPECT_EQ(Config()["default_domain"], "beta");
  const auto before = ReadTree(model());
  const auto last = DropDomain("beta");
  EXPECT_EQ(last.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(last.status().message()), HasSubstr("last domain"));
  const auto unknown = DropDomain("alpha");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("beta"));
  EXPECT_EQ(ReadTree(model()), before);
}

TEST_F(LifeTest, RollbackUndoesADrop) {
  const std::string beta = LogitsAlone(model(), "beta");
  ASSERT_TRUE(DropDomain("beta").ok());
  const auto back = RollbackDomain("beta");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_FALSE(back->from.has_value());
  EXPECT_EQ(back->to, 1u);
  EXPECT_EQ(LogitsAlone(model(), "beta"), beta);
  EXPECT_FALSE(Lock().contains("earlier"));
  ExpectSound();
}

TEST_F(LifeTest, RollbackGoesBackGenerationByGenerationAndForwardByNumber) {
  const std::string first = LogitsAlone(model(), "beta");
  ASSERT_EQ(GraftedGeneration("gamma", "beta"), 2u);
  const std::string second = LogitsAlone(model(), "beta");
  ASSERT_EQ(GraftedGeneration("delta", "beta"), 3u);
  const std::string third = LogitsAlone(model(), "beta");
  EXPECT_NE(first, second);
  EXPECT_NE(second, third);
  EXPECT_EQ(Config()["domains"][1], (nlohmann::json{{"name", "beta"}, {"num_experts", 1}}));

  const auto back = RollbackDomain("beta");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->from, 3u);
  EXPECT_EQ(back->to, 2u);
  EXPECT_EQ(back->file, "domains/beta.g2.safetensors");
  EXPECT_EQ(LogitsAlone(model(), "beta"), second);
  ASSERT_TRUE(RollbackDomain("beta").ok());
  EXPECT_EQ(LogitsAlone(model(), "beta"), first);
  EXPECT_EQ(Config()["domains"][1], (nlohmann::json{{"name", "beta"}, {"num_experts", 2}}));
  ExpectSound();

  const auto nothing = RollbackDomain("beta");
  EXPECT_EQ(nothing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(nothing.status().message()), HasSubstr("others on the disk: 2, 3"));
  ASSERT_TRUE(RollbackDomain("beta", 3).ok());
  EXPECT_EQ(LogitsAlone(model(), "beta"), third);
  EXPECT_FALSE(RollbackDomain("beta", 9).ok());
  EXPECT_FALSE(RollbackDomain("law").ok());
  // A generation's number is never used again.
  ASSERT_TRUE(RollbackDomain("beta").ok());
  EXPECT_EQ(GraftedGeneration("gamma", "beta"), 4u);
  ExpectSound();
}

TEST_F(LifeTest, RollbackRefusesAFileThatChanged) {
  ASSERT_TRUE(GraftFrom("gamma", "beta").ok());
  const std::string file = ReadBytes(model() / "domains/beta.safetensors");
  FlipByte(model() / "domains/beta.safetensors", file.size() - 1);
  const auto before = ReadTree(model());
  const auto result = RollbackDomain("beta");
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("domains/beta.safetensors"));
  EXPECT_EQ(ReadTree(model()), before);
  WriteBytes(model() / "domains/beta.safetensors", file);
  EXPECT_TRUE(RollbackDomain("beta").ok());
}

TEST_F(LifeTest, GcRemovesWhatNoGenerationInUseNeeds) {
  const auto names = [](const absl::StatusOr<CollectGarbageResult>& result) {
    std::vector<std::string> paths;
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return paths;
    for (const auto& file : result->removed) paths.push_back(file.path);
    return paths;
  };
  ASSERT_TRUE(Gc().ok());
  const auto untouched = ReadTree(model());
  EXPECT_THAT(names(Gc()), IsEmpty());
  EXPECT_EQ(ReadTree(model()), untouched);

  ASSERT_TRUE(GraftFrom("gamma", "beta").ok());
  ASSERT_TRUE(GraftFrom("delta", "beta").ok());
  ASSERT_TRUE(DropDomain("alpha").ok());
  WriteBytes(model() / "domains" / "stranger.safetensors", "left by nobody knows whom");
  WriteBytes(model() / "domains" / "notes.txt", "not weights");
  const auto before = ReadTree(model());
  EXPECT_THAT(names(Gc(0, true)), ElementsAre("domains/alpha.safetensors", "domains/beta.g2.safetensors",
                                              "domains/beta.safetensors", "domains/stranger.safetensors"));
  EXPECT_EQ(ReadTree(model()), before);
  EXPECT_THAT(names(Gc(1)), ElementsAre("domains/beta.safetensors", "domains/stranger.safetensors"));
  ExpectSound();
  ASSERT_TRUE(RollbackDomain("beta").ok());
  ASSERT_TRUE(RollbackDomain("alpha").ok());
  EXPECT_THAT(names(Gc()), ElementsAre("domains/beta.g3.safetensors"));
  ExpectSound();
  EXPECT_THAT(Names(model() / "domains"), ElementsAre("alpha.safetensors", "beta.g2.safetensors", "notes.txt"));
  const auto gone = RollbackDomain("beta");
  EXPECT_EQ(gone.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(gone.status().message()), HasSubstr("gc removes"));
}

TEST_F(LifeTest, TheLogTellsItAll) {
  ASSERT_TRUE(GraftFrom("gamma", "beta").ok());
  ASSERT_TRUE(DropDomain("alpha").ok());
  const auto log = LineageLog(model());
  ASSERT_TRUE(log.ok()) << log.status();
  std::vector<std::string> verbs;
  for (const Json& entry : (*log)["lineage"]) verbs.push_back(entry["verb"]);
  EXPECT_THAT(verbs, ElementsAre("lock", "graft", "drop"));
  EXPECT_EQ((*log)["domains"][0]["name"], "alpha");
  EXPECT_EQ((*log)["domains"][0]["generations"][0]["in_use"], false);
  EXPECT_EQ((*log)["domains"][1]["generations"][1]["generation"], 2);
  EXPECT_EQ((*log)["domains"][1]["generations"][1]["in_use"], true);
  EXPECT_THAT(LineageLogText(*log), HasSubstr("beta generation 2 (in use): domains/beta.g2.safetensors"));
  EXPECT_THAT(LineageLogText(*log), HasSubstr("from donor@gamma (lock "));
}

TEST_F(LifeTest, SigningKeepsTheEarlierGenerations) {
  ASSERT_TRUE(GraftFrom("gamma", "beta").ok());
  const auto earlier = Lock()["earlier"];
  Resign(model());
  EXPECT_EQ(Lock()["earlier"], earlier);
  EXPECT_TRUE(RollbackDomain("beta").ok());
}

TEST_F(LifeTest, ASecondWriterIsRefusedWhileTheFirstWorks) {
  const auto before = ReadTree(model());
  {
    const auto first = ModelTransaction::Begin(model());
    ASSERT_TRUE(first.ok()) << first.status();
    for (const absl::Status& status :
         {GraftFrom("gamma", "law").status(), DropDomain("beta").status(), Gc().status(),
          RollbackDomain("beta").status(),
          Sign({.model = model(), .replace = true, .version = "test", .now = TestTime()}).status()}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("another run"));
    }
  }
  EXPECT_EQ(ReadTree(model()), before);
  EXPECT_TRUE(GraftFrom("gamma", "law").ok());
}

TEST_F(LifeTest, ATransactionThatIsGivenUpLeavesNothing) {
  const auto before = ReadTree(model());
  {
    auto transaction = ModelTransaction::Begin(model());
    ASSERT_TRUE(transaction.ok()) << transaction.status();
    auto file = transaction->CreateDataFile("domains/law.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(file->Append(std::as_bytes(std::span("half"))).ok());
    EXPECT_TRUE(fs::exists(model() / ".scion-transaction"));
    EXPECT_THAT(Domains(), ElementsAre("alpha", "beta"));
  }
  EXPECT_EQ(ReadTree(model()), before);
  EXPECT_FALSE(fs::exists(model() / ".scion-transaction"));
}

// The states that a writer passes through, each laid out by hand.
TEST_F(LifeTest, AReaderObeysTheLockBetweenTwoRenames) {
  const auto before = ReadTree(model());
  ASSERT_TRUE(GraftFrom("gamma", "law").ok());
  const auto after = ReadTree(model());
  const auto lay_out = [&](const std::map<std::string, std::string>& files) {
    fs::remove_all(model());
    for (const auto& [path, bytes] : files) {
      fs::create_directories((model() / path).parent_path());
      WriteBytes(model() / path, bytes);
    }
  };
  const auto keep = [&](const std::string& text) {
    fs::create_directories(model() / ".scion-transaction");
    WriteBytes(model() / ".scion-transaction" / Sha256Hex(text), text);
  };
  // New config, old lock: before.
  auto between = after;
  between["scion.lock.json"] = before.at("scion.lock.json");
  lay_out(between);
  keep(before.at("config.json"));
  EXPECT_THAT(Domains(), ElementsAre("alpha", "beta"));
  // Old config, new lock, as while a drop is undone or a drop done: after.
  between = after;
  between["config.json"] = before.at("config.json");
  lay_out(between);
  keep(after.at("config.json"));
  EXPECT_THAT(Domains(), ElementsAre("alpha", "beta", "law"));
  // A text under a name that is not its hash is not believed.
  WriteBytes(model() / ".scion-transaction" / Sha256Hex(after.at("config.json")), before.at("config.json"));
  EXPECT_FALSE(Checkpoint::Open(model()).ok());
  // The next writer makes it whole.
  keep(after.at("config.json"));
  ASSERT_TRUE(Gc().ok());
  EXPECT_EQ(ReadTree(model()), after);
  // And one that was edited by hand is read as it is.
  auto config = Config();
  config["max_position_embeddings"] = 64;
  WriteBytes(model() / "config.json", config.dump());
  const auto edited = Checkpoint::Open(model());
  ASSERT_TRUE(edited.ok()) << edited.status();
  EXPECT_EQ((*edited)->spec().max_position_embeddings, 64);
}

// The domain is dropped, and its file removed, between a reader's look at the lock and at the file.
TEST_F(LifeTest, AReaderWhoseFileIsGoneReadsTheLockAgain) {
  const auto before = ReadTree(model());
  ASSERT_TRUE(GraftFrom("gamma", "law").ok());
  const fs::path law = model() / "domains/law.safetensors";
  {
    // The control: a file that can't be opened, while the lock stays as it is.
    int times = 0;
    const OnOpen hook(law, [&] { ++times; });
    EXPECT_FALSE(Checkpoint::Open(model()).ok());
    EXPECT_EQ(times, 1);
  }
  EXPECT_THAT(Domains(), ElementsAre("alpha", "beta", "law"));
  int times = 0;
  const OnOpen hook(law, [&] {
    ++times;
    for (const auto& [path, bytes] : before) WriteBytes(model() / path, bytes);
    fs::remove(law);
  });
  EXPECT_THAT(Domains(), ElementsAre("alpha", "beta"));
  EXPECT_EQ(times, 1);
}

TEST_F(LifeTest, ReadersSeeBeforeOrAfterWhileWritersWork) {
  const std::vector<std::string> two = {"alpha", "beta"}, three = {"alpha", "beta", "law"};
  std::atomic<bool> done = false;
  std::atomic<int> opened = 0, saw_two = 0, saw_three = 0;
  std::thread reader([&] {
    while (!done) {
      const std::vector<std::string> names = Domains();
      saw_two += names == two;
      saw_three += names == three;
      ++opened;
    }
  });
  for (int round = 0; round < 15; ++round) {
    // Of another number of experts each time, so that no config.json fits the other generation.
    for (const char* domain : {"gamma", "delta"}) {
      const auto grafted = GraftFrom(domain, "law");
      ASSERT_TRUE(grafted.ok()) << grafted.status();
    }
    ASSERT_TRUE(RollbackDomain("law").ok());
    ASSERT_TRUE(DropDomain("law").ok());
    ASSERT_TRUE(Gc().ok());
  }
  done = true;
  reader.join();
  EXPECT_EQ(saw_two + saw_three, opened);
  EXPECT_GT(saw_two, 0);
  EXPECT_GT(saw_three, 0);
}

}  // namespace
}  // namespace scion::test
