// What a graft writes, that it changes no bit of what was there, and what it refuses.

#include "extract/graft.h"

#include <memory>
#include <set>

#include "engine/base/sha256.h"
#include "extract/model_transaction.h"
#include "tests/extract/graft_fixture.h"

namespace scion::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GraftTest : public GraftFixture {
 protected:
  // Refused with this code and these texts, in place and into a new directory, and nothing is written anywhere.
  void ExpectRefused(const std::string& domain, const std::string& as, absl::StatusCode code,
                     const std::vector<std::string>& texts) {
    const auto before = ReadTree(temp());
    for (const bool in_place : {true, false}) {
      const auto result = GraftFrom(domain, as, in_place ? std::nullopt : std::optional(out()));
      EXPECT_EQ(result.status().code(), code) << result.status();
      for (const std::string& text : texts) EXPECT_THAT(std::string(result.status().message()), HasSubstr(text));
      EXPECT_EQ(ReadTree(temp()), before);
      EXPECT_FALSE(fs::exists(model() / ".scion-transaction"));
      EXPECT_FALSE(fs::exists(out()));
    }
  }
};

TEST_F(GraftTest, AddsOneFileWithTheDonorsBytesUnderNewNames) {
  const auto before = WeightFiles(model());
  const auto result = GraftFrom("gamma", "law");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->file, "domains/law.safetensors");
  EXPECT_EQ(result->generation, 1u);
  EXPECT_EQ(result->num_experts, 4);
  EXPECT_FALSE(result->replaced);

  auto after = WeightFiles(model());
  const std::string law = after.at("domains/law.safetensors");
  EXPECT_EQ(law.size(), result->bytes);
  after.erase("domains/law.safetensors");
  EXPECT_EQ(after, before);
  const std::string gamma = ReadBytes(donor() / "domains" / "gamma.safetensors");
  const auto expected = TensorsIn(gamma);
  const auto found = TensorsIn(law);
  ASSERT_EQ(found.size(), expected.size());
  std::map<std::string, std::string> data;
  for (const TensorPlace& tensor : found) data[tensor.name] = law.substr(tensor.begin, tensor.end - tensor.begin);
  for (const TensorPlace& tensor : expected) {
    std::string name = tensor.name;
    name.replace(name.find("gamma"), 5, "law");
    EXPECT_EQ(data[name], gamma.substr(tensor.begin, tensor.end - tensor.begin)) << name;
  }
  EXPECT_THAT(Names(model()),
              ElementsAre("config.json", "domains", "generation_config.json", "model.safetensors.index.json",
                          "scion.lock.json", "tokenizer.json", "trunk.safetensors"));
}

TEST_F(GraftTest, UnderItsOwnNameTheFileIsCopiedWhole) {
  ASSERT_TRUE(GraftFrom("gamma", "gamma").ok());
  EXPECT_EQ(ReadBytes(model() / "domains/gamma.safetensors"), ReadBytes(donor() / "domains/gamma.safetensors"));
}

TEST_F(GraftTest, ConfigIndexAndLockSayWhatIsThere) {
  const auto config_before = nlohmann::ordered_json::parse(ReadBytes(model() / "config.json"));
  ASSERT_TRUE(GraftFrom("gamma", "law").ok());
  auto expected = config_before;
  expected["domains"].push_back({{"name", "law"}, {"num_experts", 4}});
  EXPECT_EQ(nlohmann::ordered_json::parse(ReadBytes(model() / "config.json")), expected);

  std::map<std::string, std::string> weight_map;
  size_t bytes = 0;
  for (const auto& [path, content] : WeightFiles(model())) {
    for (const TensorPlace& tensor : TensorsIn(content)) {
      weight_map[tensor.name] = path;
      bytes += tensor.end - tensor.begin;
    }
  }
  const auto index = nlohmann::json::parse(ReadBytes(model() / "model.safetensors.index.json"));
  EXPECT_EQ((index["weight_map"].get<std::map<std::string, std::string>>()), weight_map);
  EXPECT_EQ(index["metadata"]["total_size"], bytes);

  const auto lock = nlohmann::json::parse(ReadBytes(model() / "scion.lock.json"));
  auto files = ReadTree(model());
  files.erase("scion.lock.json");
  EXPECT_EQ(lock["files"].size(), files.size());
  for (const auto& [path, content] : files) {
    EXPECT_EQ(lock["files"][path]["sha256"], Sha256Hex(content)) << path;
    if (!path.ends_with(".safetensors")) continue;
    for (const TensorPlace& t : TensorsIn(content)) {
      EXPECT_EQ(lock["files"][path]["tensors"][t.name], Sha256Hex(content.substr(t.begin, t.end - t.begin)));
    }
  }
  const auto donor_lock = nlohmann::json::parse(ReadBytes(donor() / "scion.lock.json"));
  const auto& last = lock["lineage"].back();
  EXPECT_EQ(last["verb"], "graft");
  EXPECT_EQ(last["source"], "donor@gamma");
  EXPECT_EQ(last["source_lock_sha256"], donor_lock["lock_sha256"]);
  EXPECT_EQ(last["time"], "2023-11-14T22:13:20Z");
  EXPECT_EQ(last["domains"], nlohmann::json({"law"}));
}

TEST_F(GraftTest, ANewDirectoryHoldsWhatAGraftInPlaceMakes) {
  const auto untouched = ReadTree(model());
  ASSERT_TRUE(GraftFrom("gamma", "beta", out()).ok());
  EXPECT_EQ(ReadTree(model()), untouched);
  auto made = ReadTree(out());
  ASSERT_TRUE(GraftFrom("gamma", "beta").ok());
  auto changed = ReadTree(model());
  EXPECT_EQ(made.erase("scion.lock.json"), 1u);
  EXPECT_EQ(changed.erase("scion.lock.json"), 1u);
  EXPECT_EQ(changed.erase("domains/beta.safetensors"), 1u);  // what was replaced stays for rollback
  EXPECT_EQ(made, changed);
  EXPECT_TRUE(made.contains("domains/beta.g2.safetensors"));
  const auto lock = nlohmann::json::parse(ReadBytes(out() / "scion.lock.json"));
  EXPECT_EQ(lock["domains"]["beta"]["generation"], 2);
  EXPECT_EQ(lock["lineage"][1]["verb"], "copy");
  EXPECT_EQ(lock["lineage"][2]["verb"], "graft");
}

TEST_F(GraftTest, TheNewDomainHasTheDonorsBitsAndTheOthersKeepTheirs) {
  const std::string alpha = LogitsAlone(model(), "alpha"), beta = LogitsAlone(model(), "beta");
  ASSERT_TRUE(GraftFrom("gamma", "law").ok());
  EXPECT_EQ(LogitsAlone(model(), "law"), LogitsAlone(donor(), "gamma"));
  EXPECT_EQ(LogitsAlone(model(), "alpha"), alpha);
  EXPECT_EQ(LogitsAlone(model(), "beta"), beta);
  EXPECT_NE(LogitsAlone(model(), "law"), alpha);
}

// Rows of old and new domains in one step, chunk beside chunk: every row as in the model that its domain is from.
TEST_F(GraftTest, InCompanyOldAndNewDomainsKeepTheirBits) {
  Running before(model()), source(donor());
  ASSERT_TRUE(GraftFrom("gamma", "law").ok());
  ASSERT_TRUE(GraftFrom("delta", "beta").ok());
  Running grafted(model());
  ASSERT_EQ(grafted.model->spec().domains.size(), 3u);

  const std::vector<int32_t> all = WholeVocabulary();
  struct Company {
    std::string domain;
    Running* origin;
    std::string origin_domain;
    std::vector<int32_t> prompt;
  };
  const std::vector<Company> company = {{"alpha", &before, "alpha", {all.begin(), all.begin() + 40}},
                                        {"law", &source, "gamma", {all.begin() + 10, all.end()}},
                                        {"beta", &source, "delta", {all.begin() + 5, all.begin() + 60}},
                                        {"alpha", &before, "alpha", {all.begin() + 30, all.end()}},
                                        {"law", &source, "gamma", {all.begin(), all.begin() + 9}}};
  const size_t vocab = static_cast<size_t>(grafted.model->spec().vocab_size);
  auto cache = KvCache::Create(grafted.model->KvPlanes(), kernels::kKvBlockTokens, 64);
  ASSERT_TRUE(cache.ok());
  std::vector<std::vector<int32_t>> blocks(company.size());
  std::vector<std::string> together(company.size());
  constexpr int kBlocksEach = 8;
  for (size_t i = 0; i < company.size(); ++i) {
    for (int b = 0; b < kBlocksEach; ++b) blocks[i].push_back(*cache->Allocate());
  }
  // Seven tokens of each at a time.
  for (int position = 0; position < 97; position += 7) {
    std::vector<int32_t> ids, rows;
    std::vector<StepChunk> chunks;
    std::vector<size_t> owner;
    for (size_t i = 0; i < company.size(); ++i) {
      const int count = std::min(7, static_cast<int>(company[i].prompt.size()) - position);
      if (count <= 0) continue;
      chunks.push_back({.domain = grafted.Domain(company[i].domain),
                        .row_begin = static_cast<int>(ids.size()),
                        .num_rows = count,
                        .position = position,
                        .blocks = blocks[i]});
      for (int r = 0; r < count; ++r) {
        rows.push_back(static_cast<int32_t>(ids.size()));
        owner.push_back(i);
        ids.push_back(company[i].prompt[static_cast<size_t>(position + r)]);
      }
    }
    if (ids.empty()) break;
    grafted.model->Forward({.token_ids = ids, .chunks = chunks, .logit_rows = rows}, *cache);
    std::vector<float> logits(vocab);
    for (size_t r = 0; r < rows.size(); ++r) {
      grafted.model->Logits(static_cast<int>(r), 1, logits.data());
      together[owner[r]].append(reinterpret_cast<const char*>(logits.data()), vocab * sizeof(float));
    }
  }
  for (size_t i = 0; i < company.size(); ++i) {
    const Company& c = company[i];
    EXPECT_EQ(together[i], LogitsAlone(*c.origin, c.origin_domain, c.prompt)) << i << ": " << c.domain;
  }
}

TEST_F(GraftTest, DonorsMayBeSlicesAndHaveOtherNumbersOfExperts) {
  const fs::path slice = temp() / "slice";
  ASSERT_TRUE(Cut(donor(), {"delta"}, slice).ok());
  const auto result =
      Graft({.model = model(), .donor = {slice, ""}, .as = "law", .out = {}, .version = "test", .now = TestTime()});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->donor_domain, "delta");
  EXPECT_EQ(result->num_experts, 1);
  EXPECT_EQ(LogitsAlone(model(), "law"), LogitsAlone(donor(), "delta"));
}

TEST_F(GraftTest, TheModelItselfCanBeTheDonor) {
  const auto result = Graft(
      {.model = model(), .donor = {model(), "beta"}, .as = "law", .out = {}, .version = "test", .now = TestTime()});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(LogitsAlone(model(), "law"), LogitsAlone(model(), "beta"));
}

// Models of blocks, and a donor whose domain is of other blocks than the model.
TEST_F(GraftTest, QuantisedDomainsKeepTheirTypes) {
  TinyModelOptions options = ModelOptions();
  options.hidden_size = 64;
  options.moe_intermediate_size = 64;
  options.intermediate_size = 64;
  options.blocks = DType::kQ4_0;
  fs::remove_all(model());
  WriteTinyModel(MakeTinyModel(options), model());
  WriteBytes(model() / "tokenizer.json", "{\"vocab\": {}}\n");
  Resign(model());
  options.domains = {{"gamma", 4}, {"delta", 1}};
  options.default_domain = "gamma";
  const TinyModel q4 = MakeTinyModel(options);
  // The donor: the model's trunk, experts of Q8_0.
  options.blocks = DType::kQ8_0;
  TinyModel mixed = MakeTinyModel(options);
  mixed.File("trunk.safetensors") = q4.files[0];
  mixed.config["quantization_config"]["type"] = "Q8_0";
  for (const TinyTensor& tensor : q4.files[0].tensors) {
    if (tensor.blocks.has_value()) {
      mixed.config["quantization_config"]["tensors"][tensor.name] = DTypeName(*tensor.blocks);
    }
  }
  WriteDonor(mixed);
  const std::string alpha = LogitsAlone(model(), "alpha");
  ASSERT_TRUE(GraftFrom("gamma", "law").ok());
  EXPECT_EQ(LogitsAlone(model(), "law"), LogitsAlone(donor(), "gamma"));
  EXPECT_EQ(LogitsAlone(model(), "alpha"), alpha);
  const auto types = nlohmann::json::parse(ReadBytes(model() / "config.json"))["quantization_config"]["tensors"];
  EXPECT_EQ(types["model.layers.1.mlp.domains.law.experts.0.gate_proj.weight"], "Q8_0");

  // Replaced by one of the model's own blocks, and back.
  WriteDonor(q4);
  const std::string law = LogitsAlone(model(), "law");
  ASSERT_TRUE(GraftFrom("gamma", "law").ok());
  EXPECT_EQ(LogitsAlone(model(), "law"), LogitsAlone(donor(), "gamma"));
  const auto restored = RollbackDomain("law");
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(LogitsAlone(model(), "law"), law);
}

TEST_F(GraftTest, ATrunkOfOneOtherBitIsRefusedByTheTensorsName) {
  const fs::path trunk = donor() / "trunk.safetensors";
  std::string bytes = ReadBytes(trunk);
  const auto tensors = TensorsIn(bytes);
  for (const TensorPlace& tensor : {tensors.front(), tensors[tensors.size() / 2], tensors.back()}) {
    const std::string whole = bytes;
    bytes[tensor.end - 1] = static_cast<char>(bytes[tensor.end - 1] ^ 0x01);
    WriteBytes(trunk, bytes);
    ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition, {"'" + tensor.name + "'", "differs"});
    Resign(donor());  // a lock that agrees with the other trunk is no excuse
    ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition, {"'" + tensor.name + "'", "differs"});
    bytes = whole;
  }
  WriteBytes(trunk, bytes);
  Resign(donor());
  EXPECT_TRUE(GraftFrom("gamma", "law").ok());
}

TEST_F(GraftTest, OtherShapesAreRefusedByTheTensorsName) {
  TinyModelOptions options = DonorOptions();
  options.moe_intermediate_size = 48;
  WriteDonor(options);
  ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition,
                {"model.layers.1.mlp.domains.gamma.experts.0.gate_proj.weight", "[48, 32]", "[40, 32]"});
  options = DonorOptions();
  options.vocab_size = 98;
  WriteDonor(options);
  ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition,
                {"model.layers.1.mlp.domains.gamma.route", "[1, 98]", "[1, 97]"});
  options = DonorOptions();
  options.num_experts_per_tok = 2;
  WriteDonor(options);
  ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition, {"domains.gamma.route", "[2, 97]", "[1, 97]"});
  options = DonorOptions();
  options.sparse_layers = {2};
  WriteDonor(options);
  ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition, {"model.layers.1.mlp.domains.gamma.experts.0"});
  options = DonorOptions();
  options.intermediate_size = 56;
  WriteDonor(options);
  ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition,
                {"model.layers.0.mlp.gate_proj.weight", "[56, 32]"});
  options = DonorOptions();
  options.tie_word_embeddings = false;
  WriteDonor(options);
  ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition, {"tie_word_embeddings"});
}

TEST_F(GraftTest, AConfigThatComputesDifferentlyIsRefused) {
  for (const auto& [key, value] : {std::pair("rms_norm_eps", 0.5), std::pair("rope_theta", 1234.0)}) {
    TinyModel made = MakeTinyModel(DonorOptions());
    made.config[key] = value;
    made.config.erase("rope_parameters");
    WriteDonor(made);
    ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition, {key});
  }
}

TEST_F(GraftTest, AnotherVocabularyIsRefused) {
  WriteBytes(donor() / "tokenizer.json", "{\"vocab\": {\"a\": 0}}\n");
  ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition, {"tokenizer.json", "vocabulary"});
  fs::remove(donor() / "tokenizer.json");
  ExpectRefused("gamma", "law", absl::StatusCode::kFailedPrecondition, {"tokenizer.json", "model only"});
}

TEST_F(GraftTest, NamesAreChecked) {
  for (const char* name : {"../evil", "", "Law", "auto", "all", "a/b", "law.", "1law"}) {
    ExpectRefused("gamma", name, absl::StatusCode::kInvalidArgument, {"domain's name"});
  }
  ExpectRefused("", "law", absl::StatusCode::kInvalidArgument, {"gamma, delta", "@"});
  ExpectRefused("epsilon", "law", absl::StatusCode::kNotFound, {"'epsilon'", "gamma, delta"});
}

TEST_F(GraftTest, ADamagedDonorIsRefused) {
  const fs::path file = donor() / "domains" / "gamma.safetensors";
  const std::string sound = ReadBytes(file);
  for (const TensorPlace& tensor : TensorsIn(sound)) {
    if (tensor.name.find(".route") != std::string::npos) continue;  // checked when opened
    std::string bytes = sound;
    bytes[tensor.begin] = static_cast<char>(bytes[tensor.begin] ^ 0x01);
    WriteBytes(file, bytes);
    ExpectRefused("gamma", "law", absl::StatusCode::kDataLoss, {"domains/gamma.safetensors", "sha256"});
    break;
  }
  WriteBytes(file, sound.substr(0, sound.size() - 1));
  ExpectRefused("gamma", "law", absl::StatusCode::kDataLoss, {"domains/gamma.safetensors"});
  WriteBytes(file, sound);
  EXPECT_TRUE(GraftFrom("gamma", "law", out()).ok());
  EXPECT_TRUE(GraftFrom("gamma", "law").ok());
}

TEST_F(GraftTest, ModelsWithoutLockOrWithAnEditedConfigAreNotChangedInPlace) {
  const std::string lock = ReadBytes(model() / "scion.lock.json");
  fs::remove(model() / "scion.lock.json");
  const auto unlocked = ReadTree(model());
  auto result = GraftFrom("gamma", "law");
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("moe-extract lock"));
  EXPECT_EQ(ReadTree(model()), unlocked);
  EXPECT_TRUE(GraftFrom("gamma", "law", out()).ok());

  WriteBytes(model() / "scion.lock.json", lock);
  WriteBytes(model() / "config.json", ReadBytes(model() / "config.json") + " ");
  result = GraftFrom("gamma", "law");
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("--replace"));
  Resign(model());
  EXPECT_TRUE(GraftFrom("gamma", "law").ok());
}

TEST_F(GraftTest, TheDonorsTextMayHaveAnAt) {
  fs::create_directory(temp() / "a@b");
  EXPECT_EQ(ParseDonor((temp() / "a@b").string()).domain, "");
  EXPECT_EQ(ParseDonor((temp() / "a@b").string() + "@code").domain, "code");
  EXPECT_EQ(ParseDonor("x/y@code").model, "x/y");
  EXPECT_EQ(ParseDonor("x/y").model, "x/y");
}

TEST_F(GraftTest, TheGraftIsVerifiedAgainstModelAndDonor) {
  ASSERT_TRUE(GraftFrom("gamma", "law", out()).ok());
  VerifyOptions options = OptionsFor(out(), model());
  options.graft = GraftUnderTest{{donor(), "gamma"}, "law"};
  const auto sound = Verify(options);
  ASSERT_TRUE(sound.ok()) << sound.status();
  EXPECT_TRUE(sound->differences.empty()) << ToString(sound->differences.front());
  EXPECT_THAT(sound->domains, ElementsAre("alpha", "beta", "law"));
  EXPECT_EQ(sound->coverage.size(), 3u);
  EXPECT_GT(sound->positions, 0);
  EXPECT_TRUE(sound->donor_files.contains("domains/gamma.safetensors"));
  EXPECT_TRUE(sound->model_files.contains("domains/beta.safetensors"));

  // One bit of each part, signed again so that only the comparison can find it.
  for (const auto& [path, text] :
       {std::pair("trunk.safetensors", "the model"), std::pair("domains/beta.safetensors", "the model"),
        std::pair("domains/law.safetensors", "the donor")}) {
    const std::string whole = ReadBytes(out() / path);
    const TensorPlace tensor = TensorsIn(whole).front();
    FlipByte(out() / path, tensor.begin);
    Resign(out());
    const auto report = Verify(options);
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_EQ(report->differences.size(), 1u) << path;
    EXPECT_EQ(report->differences[0].tensor, tensor.name);
    EXPECT_THAT(report->differences[0].what, HasSubstr(text));
    WriteBytes(out() / path, whole);
  }
  // The second line of defence, alone: the logits of the donor's domain and of the model's own.
  VerifyOptions logits_only = options;
  logits_only.compare_bytes = false;
  for (const std::string domain : {"beta", "law"}) {
    const std::string path = "domains/" + domain + ".safetensors";
    const std::string whole = ReadBytes(out() / path);
    std::string flipped = whole;
    for (const TensorPlace& tensor : TensorsIn(whole)) {
      if (tensor.name.ends_with("experts.0.down_proj.weight")) FlipSignOfLargest(flipped, tensor);
    }
    WriteBytes(out() / path, flipped);
    Resign(out());
    const auto report = Verify(logits_only);
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_FALSE(report->differences.empty()) << domain;
    EXPECT_THAT(report->differences[0].what, HasSubstr("prompt ")) << domain;
    WriteBytes(out() / path, whole);
  }
  // The wrong donor domain.
  Resign(out());
  options.graft->donor.domain = "delta";
  const auto report = Verify(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_FALSE(report->differences.empty());
}

}  // namespace
}  // namespace scion::test
