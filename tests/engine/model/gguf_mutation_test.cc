// Random damage to a GGUF file's header: whatever comes of it is a file that opens or an error of the stated kinds.
#include "tests/engine/model/gguf_mutation.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <random>
#include <string>

#include "engine/model/checkpoint.h"
#include "tests/support/tiny_gguf.h"
#include "tests/support/tiny_model.h"

namespace scion::test {
namespace {

TEST(GgufMutation, EndsInAFileThatOpensOrAnErrorOfTheStatedKinds) {
  const TempDir dir;
  const auto path = dir.path() / "tiny.gguf";
  std::map<absl::StatusCode, int> outcomes;
  for (const TinyGgufOptions& options : kMutatedGgufs) {
    const TinyGguf file = MakeTinyGguf(options);
    const std::string whole = file.Bytes();
    const size_t header_bytes = file.Header().size();
    WriteBytes(path, whole);
    ASSERT_TRUE(Checkpoint::Open(path).ok()) << "the undamaged control";
    for (uint64_t seed = 0; seed < 600; ++seed) {
      WriteBytes(path, MutateGguf(whole, header_bytes, seed));
      const absl::StatusCode code = Checkpoint::Open(path).status().code();
      ++outcomes[code];
      EXPECT_TRUE(code == absl::StatusCode::kOk || code == absl::StatusCode::kDataLoss ||
                  code == absl::StatusCode::kInvalidArgument || code == absl::StatusCode::kUnimplemented ||
                  code == absl::StatusCode::kResourceExhausted)
          << absl::StatusCodeToString(code) << ", seed " << seed;
    }
  }
  // Most mutations are damage, of more than one kind; a changed name of the model is none.
  EXPECT_GT(outcomes[absl::StatusCode::kDataLoss], 300);
  EXPECT_GT(outcomes[absl::StatusCode::kInvalidArgument], 10);
  EXPECT_GT(outcomes[absl::StatusCode::kUnimplemented], 10);
  EXPECT_LT(outcomes[absl::StatusCode::kOk], 900);
}

}  // namespace
}  // namespace scion::test
