// The promises of a cut, on the model that is shipped.

#include <iostream>

#include "extract/inspect.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {
namespace {

const fs::path kDemo = fs::path(SCION_SOURCE_DIR) / "deploy" / "demo";

TEST(DemoTest, ShippedFilesAreWhatTheirLockSays) {
  const auto differences = CheckHashes(kDemo, nullptr);
  ASSERT_TRUE(differences.ok()) << differences.status();
  for (const Difference& d : *differences) ADD_FAILURE() << ToString(d);
}

TEST(DemoTest, CutOfEachDomainHasTheSameBits) {
  const TempDir temp;
  const auto demo = Inspect(kDemo);
  ASSERT_TRUE(demo.ok()) << demo.status();
  int domains = 0;
  for (const Json& part : (*demo)["parts"]) {
    if (!part.contains("experts")) continue;
    const std::string domain = part["name"];
    ASSERT_TRUE(Cut(kDemo, {domain}, temp.path() / domain).ok());
    for (const kernels::Tier tier : kernels::SupportedTiers()) {
      VerifyOptions options = OptionsFor(temp.path() / domain, kDemo);
      options.tier = tier;
      const auto report = Verify(options);
      ASSERT_TRUE(report.ok()) << report.status();
      for (const Difference& d : report->differences) ADD_FAILURE() << domain << ": " << ToString(d);
      for (const LayerCoverage& layer : report->coverage.at(domain)) EXPECT_EQ(layer.visited, part["experts"]);
    }
    ++domains;
  }
  EXPECT_EQ(domains, 4);
}

TEST(DemoTest, FlippedSignInAnyExpertTensorIsNamed) {
  const TempDir temp;
  const fs::path cut = temp.path() / "cpp";
  ASSERT_TRUE(Cut(kDemo, {"cpp"}, cut).ok());
  const std::string path = "domains/cpp.safetensors";
  const std::string intact = ReadBytes(cut / path);
  int tensors = 0, found_by_logits = 0;
  for (const TensorPlace& tensor : TensorsIn(intact)) {
    if (tensor.name.find(".experts.") == std::string::npos) continue;
    std::string bytes = intact;
    FlipSignOfLargest(bytes, tensor);
    WriteBytes(cut / path, bytes);
    ASSERT_NO_FATAL_FAILURE(Resign(cut));
    VerifyOptions options = OptionsFor(cut, kDemo);
    const auto report = Verify(options);
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_EQ(report->differences.size(), 1u) << tensor.name;
    EXPECT_EQ(report->differences[0].file, path);
    EXPECT_EQ(report->differences[0].tensor, tensor.name);
    options.compare_bytes = false;
    options.tier = kernels::SupportedTiers().back();
    const auto logits = Verify(options);
    ASSERT_TRUE(logits.ok()) << logits.status();
    found_by_logits += !logits->differences.empty();
    ++tensors;
  }
  std::cout << "logits alone found " << found_by_logits << " of " << tensors << " flipped expert tensors\n";
  EXPECT_EQ(tensors, 3 * 4 * 3);
  EXPECT_EQ(found_by_logits, tensors);
}

}  // namespace
}  // namespace scion::test
