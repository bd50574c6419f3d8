// A table-routed model as a Hugging Face directory: Scion's own form, with the code of the model class beside it.
#include "extract/export_scion.h"

#include <map>
#include <string>
#include <vector>

#include "extract/inspect.h"
#include "tests/extract/export_fixture.h"

namespace scion::test {
namespace {

using testing::HasSubstr;
using ExportScionTest = ExportTest;

nlohmann::json ConfigOf(const fs::path& directory) {
  return nlohmann::json::parse(ReadBytes(directory / "config.json"));
}

// What config.json must say: all that the source's says, but for how the weights are stored and where the code is.
nlohmann::json ExpectedConfig(const fs::path& source, const char* dtype) {
  nlohmann::json config = ConfigOf(source);
  config.erase("quantization_config");
  config["dtype"] = config["torch_dtype"] = dtype;
  config["auto_map"] = {{"AutoConfig", "configuration_scion.ScionConfig"},
                        {"AutoModelForCausalLM", "modeling_scion.ScionForCausalLM"}};
  return config;
}

// By name.
std::map<std::string, std::string> TensorsOf(const fs::path& file) {
  const std::string bytes = ReadBytes(file);
  std::map<std::string, std::string> tensors;
  for (const TensorPlace& t : TensorsIn(bytes)) tensors[t.name] = bytes.substr(t.begin, t.end - t.begin);
  return tensors;
}

// Wider elements lie before narrower ones, so that all are aligned.
void ExpectAligned(const fs::path& file) {
  std::map<size_t, size_t> width_at;
  for (const TensorPlace& t : TensorsIn(ReadBytes(file))) width_at[t.begin] = DTypeBytes(t.dtype);
  size_t before = 8;
  for (const auto& [place, width] : width_at) {
    EXPECT_LE(width, before) << file;
    before = width;
  }
}

TEST_F(ExportScionTest, TensorsAndConfigAreTheSources) {
  for (const bool tied : {false, true}) {
    for (const int k : {1, 2}) {
      TinyModelOptions options;
      options.tie_word_embeddings = tied;
      options.num_experts_per_tok = k;
      options.route_weights = k == 2;
      options.default_domain = "beta";
      fs::remove_all(model());
      fs::remove_all(hf());
      Write(options);
      ASSERT_TRUE(Ok(ToHf(model(), hf())));
      EXPECT_EQ(ConfigOf(hf()), ExpectedConfig(model(), "bfloat16")) << tied << k;
      for (const char* file : {"trunk.safetensors", "domains/alpha.safetensors", "domains/beta.safetensors"}) {
        EXPECT_EQ(TensorsOf(hf() / file), TensorsOf(model() / file)) << file << tied << k;
        ExpectAligned(hf() / file);
      }
    }
  }
}

TEST_F(ExportScionTest, ATableRoutedModelBringsItsCodeAlong) {
  TinyModelOptions options;
  options.num_experts_per_tok = 2;
  options.route_weights = true;
  options.tie_word_embeddings = false;
  options.with_lock = true;
  Write(options);
  ASSERT_TRUE(Ok(ToHf(model(), hf())));
  for (int domain : {0, 1}) {
    EXPECT_TRUE(SameBits(LogitsOf(hf(), WeightMode::kAsIs, domain), LogitsOf(model(), WeightMode::kAsIs, domain)));
  }
  const fs::path classes = fs::path(SCION_SOURCE_DIR) / "client/python/scion";
  for (const char* name : {"configuration_scion.py", "modeling_scion.py"}) {
    EXPECT_EQ(ReadBytes(hf() / name), ReadBytes(classes / name)) << name;
  }
  // A lock that covers all of it, and remembers where it is from.
  const auto differences = CheckHashes(hf(), nullptr);
  ASSERT_TRUE(differences.ok()) << differences.status();
  EXPECT_TRUE(differences->empty());
  const auto lock = nlohmann::json::parse(ReadBytes(hf() / "scion.lock.json"));
  EXPECT_TRUE(lock["files"].contains("modeling_scion.py"));
  EXPECT_EQ(lock["lineage"].back()["verb"], "export");
  EXPECT_EQ(lock["lineage"].back()["domains"], nlohmann::json({"alpha", "beta"}));

  // A cut of it has the code too; exported again, it is this program's.
  const fs::path cut = dir_.path() / "cut", again = dir_.path() / "again";
  ASSERT_TRUE(Ok(Cut(hf(), {"beta"}, cut).status()));
  EXPECT_EQ(ReadBytes(cut / "modeling_scion.py"), ReadBytes(classes / "modeling_scion.py"));
  WriteBytes(cut / "modeling_scion.py", "another version");
  Resign(cut);
  ASSERT_TRUE(Ok(ToHf(cut, again)));
  EXPECT_EQ(ReadBytes(again / "modeling_scion.py"), ReadBytes(classes / "modeling_scion.py"));
  EXPECT_TRUE(SameBits(LogitsOf(again), LogitsOf(model(), WeightMode::kAsIs, 1)));
}

TEST_F(ExportScionTest, ATableRoutedModelOfOtherTypes) {
  TinyModelOptions options;
  options.num_experts_per_tok = 2;
  options.route_weights = true;
  Write(options);
  const std::vector<float> expected = LogitsOf(model(), WeightMode::kF32, 1);
  ASSERT_TRUE(Ok(ToHf(model(), hf(), DType::kF32)));
  EXPECT_TRUE(SameBits(LogitsOf(hf(), WeightMode::kAsIs, 1), expected));
  EXPECT_EQ(ConfigOf(hf()), ExpectedConfig(model(), "float32"));
  for (const auto& [name, bytes] : TensorsOf(model() / "domains/beta.safetensors")) {
    const std::string exported = TensorsOf(hf() / "domains/beta.safetensors")[name];
    if (name.find(".route") != std::string::npos) {
      EXPECT_EQ(exported, bytes) << name;
    } else {
      EXPECT_EQ(exported.size(), 2 * bytes.size()) << name;
    }
  }
  // Back without loss; routes and their weights are what they were.
  const fs::path back = dir_.path() / "back";
  ASSERT_TRUE(Ok(ToHf(hf(), back, DType::kBF16)));
  EXPECT_TRUE(SameBits(LogitsOf(back, WeightMode::kAsIs, 1), LogitsOf(model(), WeightMode::kAsIs, 1)));
  EXPECT_EQ(ToHf(model(), dir_.path() / "q8", DType::kQ8_0).code(), absl::StatusCode::kInvalidArgument);

  // Blocks become F32.
  options.blocks = DType::kQ8_0;
  options.hidden_size = options.intermediate_size = options.moe_intermediate_size = 64;
  const fs::path blocks = dir_.path() / "blocks", plain = dir_.path() / "plain";
  WriteTinyModel(MakeTinyModel(options), blocks);
  ASSERT_TRUE(Ok(ToHf(blocks, plain)));
  EXPECT_TRUE(SameBits(LogitsOf(plain, WeightMode::kF32, 1), LogitsOf(blocks, WeightMode::kF32, 1)));
  EXPECT_TRUE(ConfigOf(blocks).contains("quantization_config"));
  EXPECT_EQ(ConfigOf(plain), ExpectedConfig(blocks, "float32"));
}

TEST_F(ExportScionTest, ATableRoutedModelIsNotReplacedAndNothingIsLeft) {
  TinyModelOptions options;
  options.with_lock = true;
  Write(options);
  ASSERT_TRUE(Ok(ToHf(model(), dir_.path() / "control")));
  fs::create_directory(hf());
  EXPECT_EQ(ToHf(model(), hf()).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ToHf(model(), model() / "inside").code(), absl::StatusCode::kInvalidArgument);
  const fs::path trunk = model() / "trunk.safetensors";
  FlipByte(trunk, fs::file_size(trunk) - 7);
  const absl::Status status = ToHf(model(), dir_.path() / "damaged");
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("trunk.safetensors is not what the model's lock says"));
  ExpectOnly({"control", "hf", "model"});
}

}  // namespace
}  // namespace scion::test
